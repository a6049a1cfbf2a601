"""Results as rows, and rows as tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from pdd_lightning.evaluation.results import TaskResult
from pdd_lightning.progress import percent


def rows_from_results(
    results: Sequence[TaskResult], class_names: Sequence[str], every_stage: bool = False
) -> list[dict[str, Any]]:
    """Mean and spread of each row, ready for JSON.

    Accuracies are in [0, 1]; `std` is the sample standard deviation over networks (0 for a single one).

    Args:
        results: Results of networks, in any order.
        class_names: Name of each class, by label.
        every_stage: Add a row for each earlier stage of progressive training.
    """
    groups: dict[tuple[str, str], list[TaskResult]] = {}
    for result in results:
        groups.setdefault((result.about["row"], result.about["protocol"]), []).append(result)
    rows = []
    for (_, protocol), members in groups.items():
        last = len(members[0].scores) - 1
        first = 0 if every_stage and protocol == "progressive" else last
        members = sorted(members, key=lambda member: member.number)
        rows += [_row(members, phase, class_names) for phase in range(first, last + 1)]
    return rows


def _row(members: Sequence[TaskResult], phase: int, class_names: Sequence[str]) -> dict[str, Any]:
    """The row of networks after a phase, counted from 0."""
    about = dict(members[0].about)
    images, phases = about.pop("images"), about.pop("phases")
    accuracies = [member.scores[phase].accuracy for member in members]
    per_class = [statistics.fmean(column) for column in zip(*(m.scores[phase].per_class for m in members), strict=True)]
    return {
        **about,
        "stage": phases[phase]["stages"][1],
        "num_stages": phases[-1]["stages"][1],
        "images": images[phase],
        "steps": sum(each["steps"] for each in phases[: phase + 1]),
        "epochs": [each["epochs"] for each in phases[: phase + 1]],
        "learning_rates": [each["lr"] for each in phases[: phase + 1]],
        "mean": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "n": len(accuracies),
        "accuracies": accuracies,
        "per_class": dict(zip(class_names, per_class, strict=True)),
        "seconds": sum(member.seconds[phase] for member in members),
    }


def row_title(row: dict[str, Any]) -> str:
    """A row's name that no other row of the evaluation has."""
    protocol = "" if row["protocol"] in ("progressive", "all images") else f", {row['protocol']}"
    stage = "" if row["stage"] == row["num_stages"] else f", stage {row['stage']}"
    return f"{row['row']}{protocol}{stage}"


def rows_table(rows: Sequence[dict[str, Any]]) -> str:
    """Evaluation rows as a text table, under a line with what they have in common."""
    if not rows:
        return "nothing evaluated"
    columns = {
        "training images": [row["row"] for row in rows],
        "protocol": [row["protocol"] for row in rows],
        "stage": ["-" if row["protocol"] == "all images" else str(row["stage"]) for row in rows],
        "images": [str(row["images"]) for row in rows],
        "steps": [str(row["steps"]) for row in rows],
        "networks": [str(row["n"]) for row in rows],
        "accuracy %": [percent(row["mean"], row["std"], row["n"]) for row in rows],
        "seconds": [f"{row['seconds']:.0f}" for row in rows],
    }
    if all(row["stage"] == row["num_stages"] for row in rows):
        del columns["stage"]
    if len(set(columns["networks"])) == 1:
        del columns["networks"]
    cells = [list(line) for line in zip(*columns.values(), strict=True)]
    return f"{_in_common(rows)}\n\n{format_table(list(columns), cells)}"


def _in_common(rows: Sequence[dict[str, Any]]) -> str:
    """The facts that a table's rows share, as a sentence."""
    row, counts = rows[0], {row["n"] for row in rows}
    part = {"val": "validation"}.get(row["part"], row["part"])
    network = row["network"]["class_path"].rpartition(".")[2]
    number = f"{row['n']} " if len(counts) == 1 else ""
    number += f"{'network' if counts == {1} else 'networks'} ({network})"
    augment = f"augmentation {row['augment']}" if row["augment"] != "none" else "no augmentation"
    epochs = f"{row['epochs'][0]} epochs a stage, " if row["protocol"] == "progressive" else ""
    return f"Accuracy on {row['scored']} {part} images, {number}, {epochs}{augment}, seed {row['seed']}."


def stages_table(stages: Sequence[dict[str, Any]]) -> str:
    """Reports of stages as a text table."""
    header = [
        "stage",
        "images",
        "real images",
        "learned lr",
        "matching loss",
        "accuracy of theta %",
        "distil s",
        "train s",
        "memory MB",
    ]
    cells = [
        [
            str(stage["stage"]),
            str(stage["images"]),
            "-" if stage["real_images"] is None else str(stage["real_images"]),
            "-" if stage["learned_lr"] is None else f"{stage['learned_lr']:.4g}",
            f"{stage['first_loss']:.3f} -> {stage['last_loss']:.3f}",
            percent(stage["val_accuracy"], stage["val_std"], stage["val_networks"]),
            f"{stage['seconds']['distil']:.0f}",
            f"{stage['seconds']['transition'] + stage['seconds']['experts']:.0f}",
            f"{stage['peak_memory_mb']:.0f}",
        ]
        for stage in stages
    ]
    return format_table(header, cells)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns under a ruled header; the first column is flush left, the others flush right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def layout(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))])

    return "\n".join([layout(header), "-" * (sum(widths) + 2 * len(widths) - 2), *map(layout, rows)])
