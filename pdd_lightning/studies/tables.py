"""Rows of studies: summarised over seeds, as CSV, and as Markdown."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from typing import Any

ACCURACIES = ("mean", "std", "seed_std", "forgetting")
"""Columns that hold accuracies in [0, 1], or their spread."""
AFTER = "after_"
"""How columns begin that hold the accuracy after so many tasks."""

HEADINGS = {
    "row": "training images",
    "budget": "iterations",
    "mean": "accuracy %",
    "seed_std": "std of seeds' means",
    "networks": "networks per seed",
    "seeds": "distillation seeds",
    "ipc": "images per class and stage",
    "iterations": "iterations in total",
    "iterations_per_stage": "iterations per stage",
    "distil_seconds": "distillation s",
    "seconds_saved": "distillation s saved",
    "seconds": "evaluation s",
    "steps": "steps of each network",
    "part": "scored on",
    "forgetting": "forgetting %",
}


def over_seeds(accuracies: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Mean and spread of accuracies, one list of networks' accuracies per distillation seed.

    `mean` and `std` are over all networks, `seed_std` is the spread of the seeds' means: sample standard deviations,
    None where there is a single value.
    """
    mean, std = mean_and_spread([value for one in accuracies for value in one])
    _, seed_std = mean_and_spread([statistics.fmean(one) for one in accuracies])
    return {
        "mean": mean,
        "std": std,
        "seed_std": seed_std,
        "seeds": len(accuracies),
        "networks": len(accuracies[0]),
    }


def csv_table(rows: Sequence[dict[str, Any]]) -> str:
    """All columns as comma-separated values, accuracies in [0, 1]."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """A table of the columns in which rows differ, and a line with those that they have in common."""
    names = [name for name in _columns(rows) if name not in _spreads(rows)]
    always = ("row", "mean") if len(rows) > 1 else names
    common = [name for name in names if name not in always and len({_cell(row, name) for row in rows}) == 1]
    columns = [name for name in names if name not in common]
    lines = [
        [_heading(name) for name in columns],
        ["---:" if _is_accuracy(name) else "---" for name in columns],
        *([_cell(row, name) for name in columns] for row in rows),
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    said = [f"{_heading(name)}: {cell}" for name in common if (cell := _cell(rows[0], name))]
    return f"{table}\n\nIn all rows: {', '.join(said)}." if said else table


def _heading(name: str) -> str:
    return HEADINGS.get(name, name.replace("_", " "))


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _spreads(rows: Sequence[dict[str, Any]]) -> set[str]:
    """Columns that stand behind another one, as its standard deviation."""
    return {_spread_of(name) for name in _columns(rows)}


def _spread_of(name: str) -> str:
    return "std" if name == "mean" else f"{name}_std"


def _is_accuracy(name: str) -> bool:
    return name in ACCURACIES or name.startswith(AFTER)


def _cell(row: dict[str, Any], name: str) -> str:
    value, spread = row.get(name), row.get(_spread_of(name))
    if value is None:
        return ""
    if _is_accuracy(name):
        return f"{100 * value:.1f}" + ("" if spread is None else f" ±{100 * spread:.1f}")
    if name == "part":
        return {"val": "validation part", "test": "test part"}.get(value, str(value))
    if isinstance(value, float):
        return _short(value) + ("" if spread is None else f" ±{_short(spread)}")
    return str(value).replace("|", "\\|")


def _short(value: float) -> str:
    """Three digits, or whole numbers."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation, which is None for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
