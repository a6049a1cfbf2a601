"""Results as rows, and rows as tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from pdd_lightning.evaluation.tasks import TaskResult


def rows_from_results(results: Sequence[TaskResult], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Mean and spread of each row, ready for JSON.

    Accuracies are in [0, 1]; `std` is the sample standard deviation over networks (0 for a single one).
    """
    rows = []
    for name in dict.fromkeys(result.row for result in results):
        members = sorted((result for result in results if result.row == name), key=lambda result: result.seed)
        accuracies = [member.score.accuracy for member in members]
        per_class = [statistics.fmean(column) for column in zip(*(m.score.per_class for m in members), strict=True)]
        rows.append(
            {
                "row": name,
                "protocol": members[0].protocol,
                "part": members[0].part,
                "images": members[0].images,
                "mean": statistics.fmean(accuracies),
                "std": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
                "n": len(accuracies),
                "accuracies": accuracies,
                "per_class": dict(zip(class_names, per_class, strict=True)),
                "seconds": sum(member.seconds for member in members),
            }
        )
    return rows


def rows_table(rows: Sequence[dict[str, Any]]) -> str:
    """Evaluation rows as a text table."""
    header = ["training images", "protocol", "images", "part", "accuracy %", "networks", "seconds"]
    cells = [
        [
            row["row"],
            row["protocol"],
            str(row["images"]),
            {"val": "validation"}.get(row["part"], row["part"]),
            f"{100 * row['mean']:.1f} +-{100 * row['std']:.1f}",
            str(row["n"]),
            f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]
    return format_table(header, cells)


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
            f"{100 * stage['val_accuracy']:.1f} +-{100 * stage['val_std']:.1f}",
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
