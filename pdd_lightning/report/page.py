"""The page itself."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pdd_lightning import __version__
from pdd_lightning.report import charts, compare
from pdd_lightning.report.figures import EvaluationRow
from pdd_lightning.report.folders import Folders
from pdd_lightning.report.runs import Run
from pdd_lightning.report.values import differing, flatten

MISSING = "—"
PARTS = {"val": "validation", "test": "test"}
PROTOCOLS = {
    "progressive": "the unions U_1, U_2, .. U_P in turn, for the same number of epochs each",
    "union": "the last union U_P alone, for as many optimiser steps as progressive training takes",
    "sequential": "the stages' own sets S_1, S_2, .. S_P in turn, for as many optimiser steps as progressive training",
    "all images": "all real training images at once",
}
ROW_FACTS = {
    "stage": "stages",
    "epochs": "epochs",
    "learning_rates": "learning rates",
    "init": "inits",
    "network": "network",
    "augment": "augmentation",
    "training": "training",
    "scored": "scored images",
    "seed": "seed",
}
"""What evaluation rows may say of themselves beside the figures, and what it is called."""
MANY_CLASSES = 20


def render_page(folders: Folders) -> str:
    """The whole page as HTML that needs nothing else: styles, script and pictures are inside it."""
    environment = Environment(
        loader=PackageLoader("pdd_lightning.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "figure": figure, "part": part_name}
    environment.globals |= {"compare": compare, "charts": charts, "fact": fact, "stages_of": stages_of}
    return environment.get_template("page.html").render(
        version=__version__, folders=folders, many_classes=MANY_CLASSES, **_comparison(folders), **_contents(folders)
    )


def figure(value: float | None, digits: int = 0) -> str:
    """A number with thousands marked; a dash where there is none."""
    return MISSING if value is None else f"{value:,.{digits}f}"


def percent(row: Any) -> str:
    """Mean and spread of a row, or of anything with `mean` and `std`, in per cent."""
    if row is None or row.mean is None:
        return MISSING
    return f"{100 * row.mean:.1f}" + ("" if row.std is None else f" ± {100 * row.std:.1f}")


def part_name(part: str) -> str:
    """The part of the data, in words."""
    return PARTS.get(part, part) or MISSING


def stages_of(run: Run) -> str:
    """Finished stages, and of how many if not all are."""
    finished = len(run.stages)
    return f"{finished} of {run.planned_stages:.0f}" if (run.planned_stages or 0) > finished else str(finished)


def fact(row: EvaluationRow, name: str) -> str:
    """What a row says of itself, as text."""
    return _text(row.entry.get(name))


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {text}".strip() for name, text in flatten(value).items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return MISSING if value is None else str(value)


def _comparison(folders: Folders) -> dict[str, Any]:
    """What compares the runs."""
    groups = compare.same_but_for_seed(folders.runs)
    lines = [line for run in folders.runs for line in compare.lines_of(run)]
    seed_lines = compare.seed_lines(folders.runs)
    return {
        "lines": lines,
        "row_names": compare.row_names(lines),
        "steps_are_stated": any(line.steps is not None for line in lines),
        "seed_lines": seed_lines,
        "seed_row_names": compare.row_names(seed_lines),
        "growths": charts.growths(groups),
        "differing": differing([run.settings for run in folders.runs]),
    }


def _contents(folders: Folders) -> dict[str, Any]:
    """What explains the figures, and how runs are shown."""
    rows = [row for run in folders.runs for row in run.rows]
    used = {row.protocol for row in rows}
    return {
        "protocols": {name: text for name, text in PROTOCOLS.items() if name in used},
        "row_facts": {run.name: _row_facts(run) for run in folders.runs},
        "class_rows": {run.name: _class_rows(run) for run in folders.runs},
    }


def _row_facts(run: Run) -> tuple[dict[str, str], dict[str, str]]:
    """Facts that all of the run's rows share, by what they are called; and headings of those in which they differ."""
    common, headings = {}, {}
    for name, text in ROW_FACTS.items():
        values = list(dict.fromkeys(fact(row, name) for row in run.rows))
        if len(values) > 1:
            headings[name] = text
        elif values != [MISSING]:
            common[text] = "".join(values)
    return common, headings


def _class_rows(run: Run) -> list[EvaluationRow]:
    """Rows whose accuracy per class is shown: of the whole set, on the test part if there are any."""
    rows = {id(row): row for line in compare.lines_of(run) for row in line.rows.values() if row.per_class}
    return [row for row in rows.values() if row.part == "test"] or list(rows.values())
