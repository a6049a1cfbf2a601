"""Tables of rows: as text, Markdown and CSV, and cell by cell for the page."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from pdd_lightning.results.schema import ACCURACIES, AFTER, StageReport

Row = Mapping[str, Any]

SPREADS = {"mean": "std", "val_accuracy": "val_std"}
"""Columns with the standard deviation of another one; by default it is `<name>_std`."""
PARTS = {"val": "validation part", "test": "test part"}
STATISTICS = {
    "colourfulness": "Colourfulness",
    "low": "Power at low frequencies",
    "middle": "Power at middle frequencies",
    "high": "Power at high frequencies",
    "variation": "Total variation",
    "accuracy": "Accuracy of real-data networks",
    "confidence": "Confidence of real-data networks",
    "silhouette": "Silhouette of features",
    "nearest_real": "Distance to nearest real image",
}
"""The statistics that describe the images of a stage, and what plots call them."""
HEADINGS = {
    "row": "training images",
    "budget": "iterations",
    "mean": "accuracy %",
    "seed_std": "std of seeds' means",
    "n": "networks",
    "networks": "networks per seed",
    "seeds": "distillation seeds",
    "ipc": "images per class and stage",
    "iterations": "iterations in total",
    "per_class": "images per class",
    "seconds": "evaluation seconds",
    "steps": "steps of each network",
    "part": "scored on",
    "scored": "scored images",
    "augment": "augmentation",
    "init": "initialization",
    "forgetting": "forgetting %",
    "val_accuracy": "start-point accuracy %",
    "val_networks": "networks",
    "peak_memory_mb": "memory MB",
}
"""What columns are called whose names do not say it."""
STAGE = [
    "stage", "images", "learned_lr", "first_loss", "last_loss", "val_accuracy", "experts_seconds", "distil_seconds",
    "transition_seconds", "peak_memory_mb",
]  # fmt: skip
"""Columns of a table of stages; further ones only where stages differ in them."""
EVALUATION = ["row", "protocol", "images", "steps", "mean", "n", "seconds"]
"""Columns of a table of evaluated rows."""
CONDITIONS = [
    "part", "scored", "network", "init", "augment", "training", "labels", "epochs", "learning_rates", "seed",
]  # fmt: skip
"""Further ones, which say how networks were trained and scored, only where rows differ in them."""


@dataclass(frozen=True)
class Table:
    """Cells as text.

    Attributes:
        headings: Names of the columns.
        lines: Cells, line by line; empty where a row does not say.
        common: What all rows have in common, by heading.
    """

    headings: list[str]
    lines: list[list[str]]
    common: dict[str, str]

    def text(self) -> str:
        """For the terminal: the table under a sentence with what all rows have in common."""
        if not self.lines:
            return "nothing to show"
        return f"{textwrap.fill(self.facts(), 120)}\n\n{self._laid_out(self.lines, 'simple', 14)}".lstrip()

    def markdown(self) -> str:
        """In Markdown: the table above a sentence with what all rows have in common."""
        escaped = [[cell.replace("|", "\\|") for cell in line] for line in self.lines]
        return f"{self._laid_out(escaped, 'pipe')}\n\n{self.facts()}".rstrip()

    def facts(self) -> str:
        """What all rows have in common, as a sentence; empty where that is nothing."""
        facts = "; ".join(f"{heading}: {cell}" for heading, cell in self.common.items())
        return f"In all rows: {facts}." if facts else ""

    def numeric(self) -> list[bool]:
        """Which columns hold numbers."""
        number = re.compile(r"(-?\d\S*( ± \S+)?( %)?)?")
        return [all(map(number.fullmatch, column)) for column in zip(*self.lines, strict=True)]

    def _laid_out(self, lines: list[list[str]], form: str, width: int | None = None) -> str:
        align = ["right" if numeric else "left" for numeric in self.numeric()]
        return tabulate(lines, self.headings, form, disable_numparse=True, colalign=align, maxheadercolwidths=width)


def table_of(rows: Sequence[Row], columns: Sequence[str] | None = None, always: Sequence[str] | None = None) -> Table:
    """A table of the columns in which rows differ, and of what they have in common.

    Args:
        rows: Rows by name of the column; not all need have all columns.
        columns: Names of the columns, in order; by default all but those that are the spread of another one.
        always: Columns that are shown even if rows do not differ in them; by default what was trained on and the
            accuracy, or all of a single row. Columns without any value are never shown.
    """
    every = dict.fromkeys(name for row in rows for name in row)
    names = columns or [name for name in every if name not in {spread_of(each) for each in every}]
    kept: Sequence[str] = always or (("row", "mean") if len(rows) > 1 else names)
    cells = {name: [cell_of(row, name) for row in rows] for name in names}
    same = {name: column[0] for name, column in cells.items() if len(set(column)) == 1}
    shown = [name for name in names if name not in same or (name in kept and same[name])]
    lines = [list(line) for line in zip(*(cells[name] for name in shown), strict=True)]
    common = {heading_of(name): cell for name, cell in same.items() if cell and name not in kept}
    return Table([heading_of(name) for name in shown], lines, common)


def whole_table(rows: Sequence[Row], columns: Sequence[str] = ()) -> Table:
    """A table of columns, by default all, whether or not rows differ in them."""
    names = columns or list(dict.fromkeys(name for row in rows for name in row))
    return table_of(rows, names, names)


def markdown_table(rows: Sequence[Row]) -> str:
    """Rows as a table in Markdown, see `table_of`."""
    return table_of(rows).markdown()


def csv_table(rows: Sequence[Row]) -> str:
    """All columns as comma-separated values, accuracies in [0, 1]."""
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def evaluation_table(rows: Sequence[Row]) -> Table:
    """Evaluated rows; the stage is a column where some were scored before the last one."""
    stage = ["stage"] if any(row.get("stage") != row.get("num_stages") for row in rows) else []
    rows = [{**row, "stage": None} if row["protocol"] == "all images" else row for row in rows]
    return table_of(rows, [*EVALUATION, *stage, *CONDITIONS], EVALUATION)


def stages_table(reports: Sequence[StageReport]) -> Table:
    """Reports of stages."""
    return table_of([report.row() for report in reports], [*STAGE, "real_images", "val_networks"], STAGE)


def stage_line(report: StageReport, num_stages: int) -> str:
    """A finished stage in one line."""
    rate = "" if report.learned_lr is None else f", learned lr {report.learned_lr:.4g}"
    return (
        f"Stage {report.stage}/{num_stages} done: {report.images} images, matching loss"
        f" {report.first_loss:.3f} -> {report.last_loss:.3f}{rate}, start-point accuracy"
        f" {cell_of(report.row(), 'val_accuracy')} % ({report.val_networks} networks)"
    )


def description_table(rows: Sequence[Row]) -> Table:
    """Means over images, of rows of `pdd_lightning.evaluation.describe.describe_stages`."""
    return whole_table([{name: row[name] for name in ("row", "images", *STATISTICS)} for row in rows])


def continual_table(rows: Sequence[Row]) -> Table:
    """Rows of `pdd_lightning.evaluation.continual.learn_tasks`."""
    return whole_table(rows, ("row", "protocol", "images", "part", "mean", "forgetting", "n", "seconds"))


def over_seeds(accuracies: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Mean and spread of accuracies, one list of networks' accuracies per distillation seed.

    `mean` and `std` are over all networks, `seed_std` is the spread of the seeds' means, see `mean_and_spread`.
    """
    mean, std = mean_and_spread([value for one in accuracies for value in one])
    _, seed_std = mean_and_spread([statistics.fmean(one) for one in accuracies])
    counts = {"seeds": len(accuracies), "networks": len(accuracies[0])}
    return {"mean": mean, "std": std, "seed_std": seed_std, **counts}


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation, which is None for a single value and for values that are not all finite."""
    several = len(values) > 1 and all(map(math.isfinite, values))
    return statistics.fmean(values), statistics.stdev(values) if several else None


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as text by dotted name; a class stands under the name of what it is for.

    Examples:
        >>> flatten({"model": {"class_path": "package.DM", "init_args": {"ipc": 1}}})
        {'model': 'DM', 'model.ipc': '1'}
    """
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if name == "class_path":
            flat[prefix.rstrip(".")] = str(value).rpartition(".")[2]
        elif isinstance(value, Mapping):
            flat |= flatten(value, prefix if name == "init_args" else f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def heading_of(name: str) -> str:
    """What a column is called."""
    return HEADINGS.get(name, name.replace("_", " "))


def spread_of(name: str) -> str:
    """The column with the standard deviation of another one."""
    return SPREADS.get(name, f"{name}_std")


def cell_of(row: Row, name: str) -> str:
    """What a table shows of a row in a column; nothing where the row does not say."""
    value, spread = row.get(name), row.get(spread_of(name))
    if value is None or value != value:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text}".strip() for key, text in flatten(value).items())
    if isinstance(value, list):
        texts = [cell_of({"": one}, "") for one in value]
        return f"{len(texts)} x {texts[0]}" if len(texts) > 1 and len(set(texts)) == 1 else ", ".join(texts)
    in_percent = name in ACCURACIES or name.startswith(AFTER)
    if not in_percent and not isinstance(value, float):
        return PARTS.get(str(value), str(value)) if name == "part" else str(value)
    single = 1 in (row.get("n"), row.get("val_networks"))  # a single network has no spread
    shown = [value] if spread is None or single else [value, spread]
    return " ± ".join(f"{100 * figure:.1f}" if in_percent else _short(figure) for figure in shown)


def _short(value: float) -> str:
    """Three digits, or whole numbers."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
