"""Tables of rows, as text, Markdown and CSV."""

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

STD_COLUMNS = {"mean": "std", "val_accuracy": "val_std"}
"""Columns that hold the standard deviation of another one, if not named `<name>_std`."""
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
"""Titles of the statistics that describe the images of a stage."""
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
"""Headings of columns, if not their names."""
STAGE = [
    "stage", "images", "learned_lr", "first_loss", "last_loss", "val_accuracy", "experts_seconds", "distil_seconds",
    "transition_seconds", "peak_memory_mb",
]  # fmt: skip
"""Columns of a table of stages."""
EVALUATION = ["row", "protocol", "images", "steps", "mean", "n", "seconds"]
"""Columns of a table of evaluated rows."""
CONDITIONS = [
    "part", "scored", "network", "init", "augment", "training", "labels", "epochs", "learning_rates", "seed",
]  # fmt: skip
"""Columns that say how networks were trained and scored, shown only if rows differ in them."""


@dataclass(frozen=True)
class Table:
    """A table of text, with the values that all rows share by heading."""

    headings: list[str]
    lines: list[list[str]]
    common: dict[str, str]

    def text(self) -> str:
        """Return the table for a terminal, below a sentence with the common values."""
        if not self.lines:
            return "nothing to show"
        return f"{textwrap.fill(self.facts(), 120)}\n\n{self._format(self.lines, 'simple', 14)}".lstrip()

    def markdown(self) -> str:
        """Return the table in Markdown, above a sentence with the common values."""
        escaped = [[cell.replace("|", "\\|") for cell in line] for line in self.lines]
        return f"{self._format(escaped, 'pipe')}\n\n{self.facts()}".rstrip()

    def facts(self) -> str:
        """Return a sentence with the common values; empty if there are none."""
        facts = "; ".join(f"{heading}: {cell}" for heading, cell in self.common.items())
        return f"In all rows: {facts}." if facts else ""

    def numeric(self) -> list[bool]:
        """Return for each column whether it holds numbers."""
        number = re.compile(r"(-?\d\S*( ± \S+)?( %)?)?")
        return [all(map(number.fullmatch, column)) for column in zip(*self.lines, strict=True)]

    def _format(self, lines: list[list[str]], style: str, width: int | None = None) -> str:
        align = ["right" if numeric else "left" for numeric in self.numeric()]
        return tabulate(lines, self.headings, style, disable_numparse=True, colalign=align, maxheadercolwidths=width)


def make_table(rows: Sequence[Row], columns: Sequence[str] = (), always: Sequence[str] = ()) -> Table:
    """Make a table of the columns in which rows differ; values that they share are stated once.

    Args:
        rows: Rows by column; not all need have all columns.
        columns: Columns in order; by default all but those that hold the standard deviation of another one.
        always: Columns that are shown even if rows do not differ in them; by default what was trained on and the
            accuracy, or all of a single row. Columns without any value are never shown.
    """
    names = list(columns)
    if not names:
        every = dict.fromkeys(name for row in rows for name in row)
        std_columns = set(map(std_column, every))
        names = [name for name in every if name not in std_columns]
    always = always or (("row", "mean") if len(rows) > 1 else names)
    cells = {name: [format_cell(row, name) for row in rows] for name in names}
    shared = {name: column[0] for name, column in cells.items() if len(set(column)) == 1}
    shown = [name for name in names if name not in shared or (name in always and shared[name])]
    lines = [list(line) for line in zip(*(cells[name] for name in shown), strict=True)]
    common = {heading_of(name): cell for name, cell in shared.items() if cell and name not in always}
    return Table([heading_of(name) for name in shown], lines, common)


def full_table(rows: Sequence[Row], columns: Sequence[str] = ()) -> Table:
    """Make a table of columns (by default all) whether or not rows differ in them."""
    names = columns or list(dict.fromkeys(name for row in rows for name in row))
    return make_table(rows, names, names)


def csv_table(rows: Sequence[Row]) -> str:
    """Return all columns as comma-separated values, with accuracies in [0, 1]."""
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def evaluation_table(rows: Sequence[Row]) -> Table:
    """Make a table of evaluated rows, with their stage if some were scored before the last one."""
    stage = ["stage"] if any(row.get("stage") != row.get("num_stages") for row in rows) else []
    rows = [{**row, "stage": None} if row["protocol"] == "all images" else row for row in rows]
    return make_table(rows, [*EVALUATION, *stage, *CONDITIONS], EVALUATION)


def stages_table(reports: Sequence[StageReport]) -> Table:
    """Make a table of stages."""
    return make_table([report.row() for report in reports], [*STAGE, "real_images", "val_networks"], STAGE)


def stage_line(report: StageReport, num_stages: int) -> str:
    """Describe a finished stage in one line."""
    rate = "" if report.learned_lr is None else f", learned lr {report.learned_lr:.4g}"
    return (
        f"Stage {report.stage}/{num_stages} done: {report.images} images, matching loss"
        f" {report.first_loss:.3f} -> {report.last_loss:.3f}{rate}, start-point accuracy"
        f" {format_cell(report.row(), 'val_accuracy')} % ({report.val_networks} networks)"
    )


def description_table(rows: Sequence[Row]) -> Table:
    """Make a table of the means in rows of `pdd_lightning.evaluation.describe.describe_stages`."""
    return full_table([{name: row[name] for name in ("row", "images", *STATISTICS)} for row in rows])


def continual_table(rows: Sequence[Row]) -> Table:
    """Make a table of rows of `pdd_lightning.evaluation.continual.learn_tasks`."""
    return full_table(rows, ("row", "protocol", "images", "part", "mean", "forgetting", "n", "seconds"))


def summarize_seeds(accuracies: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return mean and standard deviation of accuracies, one list of networks' accuracies per distillation seed.

    `mean` and `std` are over all networks; `seed_std` is over the means of the seeds.
    """
    mean, std = mean_and_std([value for values in accuracies for value in values])
    _, seed_std = mean_and_std([statistics.fmean(values) for values in accuracies])
    counts = {"seeds": len(accuracies), "networks": len(accuracies[0])}
    return {"mean": mean, "std": std, "seed_std": seed_std, **counts}


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation, which is None for a single value or if not all are finite."""
    defined = len(values) > 1 and all(map(math.isfinite, values))
    return statistics.fmean(values), statistics.stdev(values) if defined else None


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name, without `init_args`.

    Examples:
        >>> flatten({"model": {"class_path": "package.DM", "init_args": {"ipc": 1}}})
        {'model.class_path': 'package.DM', 'model.ipc': 1}
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = prefix + str(key).replace("init_args.", "")
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, prefix if key == "init_args" else f"{name}.")
        else:
            flat[name] = value
    return flat


def settings_as_text(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return nested settings as text by dotted name; in place of `model.class_path`, `model` has the class's name."""
    texts = {}
    for name, value in flatten(settings).items():
        parent, _, key = name.rpartition(".")
        if key == "class_path":
            texts[parent] = str(value).rpartition(".")[2]
        else:
            texts[name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return texts


def heading_of(name: str) -> str:
    """Return the heading of a column."""
    return HEADINGS.get(name, name.replace("_", " "))


def std_column(name: str) -> str:
    """Return the column with the standard deviation of another one."""
    return STD_COLUMNS.get(name, f"{name}_std")


def format_cell(row: Row, name: str) -> str:
    """Return the text of a row in a column; empty if the row has no value."""
    value, std = row.get(name), row.get(std_column(name))
    if value is None or value != value:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text}".strip() for key, text in settings_as_text(value).items())
    if isinstance(value, list):
        texts = [format_cell({"": item}, "") for item in value]
        return f"{len(texts)} x {texts[0]}" if len(texts) > 1 and len(set(texts)) == 1 else ", ".join(texts)
    is_accuracy = name in ACCURACIES or name.startswith(AFTER)
    if not is_accuracy and not isinstance(value, float):
        return PARTS.get(str(value), str(value)) if name == "part" else str(value)
    is_single = 1 in (row.get("n"), row.get("val_networks"))  # a single network has no spread
    numbers = [value] if std is None or is_single else [value, std]
    return " ± ".join(f"{100 * number:.1f}" if is_accuracy else _format_number(number) for number in numbers)


def _format_number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
