"""The page that shows and compares runs and studies."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from pdd_lightning import __version__
from pdd_lightning.results.folders import SEED, Folder, Folders, Picture, Run, Study, picture_of, reason_of
from pdd_lightning.results.plots import draw_rows, figure_png
from pdd_lightning.results.schema import DISTILLED, FULL, RANDOM, EvaluatedRow
from pdd_lightning.results.tables import (
    Table,
    cell_of,
    evaluation_table,
    mean_and_spread,
    stages_table,
    table_of,
    whole_table,
)

MOST_LINES, MOST_COLUMNS = 1_000, 60
"""Lines and columns of a table."""
MOST_LINES_OF_A_RUN = 20
"""Its lines in the comparison of runs."""
MOST_CHARACTERS = 1_000
"""Characters of a cell, a heading, a note, a command."""
MOST_NOTES = 50
MOST_PLOTS, MOST_PLOTTED = 12, 24
"""Datasets that are plotted, and lines of a plot."""
NOT_COMPARED = (SEED, "stages.experts.folder")
"""Settings in which runs may differ whose results are averaged."""
TRAINING = {"steps", "epochs", "training", "augment", "align_corners", "init", "network", "scored"}
"""What their rows must have in common."""


class Line(NamedTuple):
    """A run as it scored on one part by one protocol (both empty if it was not), by what networks were trained on."""

    run: Run
    part: str
    protocol: str
    rows: dict[str, EvaluatedRow]


def showable(folders: Folders) -> Folders:
    """The same folders, but for those of which something cannot be laid out: they are among the broken ones."""
    runs, broken = list[Run](), list(folders.broken)
    for run in folders.runs:
        try:
            _ = comparison([run]), compared_settings([run]), accuracy_by_class(run), _evaluation_of(run)
            runs.append(run)
        except Exception as error:  # of whatever type: it must not cost the other folders their place
            broken.append(Folder(run.name, run.path, [f"it cannot be shown: {reason_of(error)}"]))
    studies = list[Study]()
    for study in folders.studies:
        try:
            _ = _rows_of(study)
            studies.append(study)
        except Exception as error:
            broken.append(Folder(study.name, study.path, [f"it cannot be shown: {reason_of(error)}"]))
    return Folders(runs, studies, broken)


def render_page(folders: Folders) -> str:
    """The whole page as HTML that needs nothing else: styles, script and pictures are inside it."""
    settings, shared = compared_settings(folders.runs)
    not_plotted: list[str] = []
    return (
        _environment()
        .get_template("page.html")
        .render(
            version=__version__,
            folders=folders,
            comparison=comparison(folders.runs),
            over_seeds=over_seeds(folders.runs),
            growth=growth(folders.runs, not_plotted),
            not_plotted=not_plotted,
            settings=settings,
            shared=shared,
            stages_of=lambda run: stages_table(run.summary.stages[:MOST_LINES]),
            evaluation_of=_evaluation_of,
            classes_of=accuracy_by_class,
            rows_of=_rows_of,
            bounded=bounded,
            most_lines=MOST_LINES,
            most_notes=MOST_NOTES,
        )
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("pdd_lightning.results"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clipped,
    )


def bounded(table: Table, lines: int | None = None) -> tuple[Table, str]:
    """A table without what is too much of it, and a sentence that says what was left out.

    Args:
        table: The table.
        lines: How many lines it would have had.
    """
    shown = Table(
        table.headings[:MOST_COLUMNS], [line[:MOST_COLUMNS] for line in table.lines[:MOST_LINES]], table.common
    )
    parts = [
        f"{name} 1 to {most} of {count}"
        for name, most, count in (
            ("lines", MOST_LINES, lines or len(table.lines)),
            ("columns", MOST_COLUMNS, len(table.headings)),
        )
        if count > most
    ]
    return shown, f"Shown: {' and '.join(parts)}." if parts else ""


def _clipped(value: Any) -> Any:
    """What is written of a value: not all of a very long text, unless it was made here."""
    if type(value) is str and len(value) > MOST_CHARACTERS:
        return f"{value[:MOST_CHARACTERS]} .."
    return value


def _evaluation_of(run: Run) -> Table:
    return evaluation_table([row.model_dump() for row in run.summary.evaluation])


def _rows_of(study: Study) -> Table:
    """A study's table, of as many columns as are shown."""
    names = list(dict.fromkeys(name for row in study.result.rows for name in row))[: 2 * MOST_COLUMNS]
    return table_of([{name: row[name] for name in names if name in row} for row in study.result.rows])


def lines_of(run: Run) -> list[Line]:
    """One line per part and protocol; where a set was scored at every stage, the largest union counts."""
    evaluated = run.summary.evaluation
    rows = sorted(evaluated, key=lambda row: row.images or 0)
    staged = [row for row in evaluated if row.row != FULL] or evaluated
    lines = []
    for part, protocol in dict.fromkeys((row.part, row.protocol) for row in staged):
        # Training on all real images knows no protocol: it stands beside each.
        fitting = [row for row in rows if row.part == part and (row.protocol == protocol or row.row == FULL)]
        lines.append(Line(run, part, protocol, {row.row: row for row in fitting}))
    return lines[:MOST_LINES_OF_A_RUN] or [Line(run, "", "", {})]


def comparison(runs: Sequence[Run]) -> Table:
    """A line per run, part and protocol."""
    lines = [line for run in runs for line in lines_of(run)]
    columns = _columns(lines)
    rows = []
    for line in lines:
        run, stages = line.run, line.run.summary.stages
        costs = {
            "seed": run.settings.get(SEED),
            "distil_seconds": sum(sum(stage.seconds.values()) for stage in stages) if stages else None,
            "peak_memory_mb": max((stage.peak_memory_mb for stage in stages), default=None),
            "notes": "; ".join(run.notes) or None,
        }
        head = {"run": run.name, "part": line.part or None, "protocol": line.protocol or "not evaluated"}
        accuracies = {name: row.model_dump(include={"mean", "std", "n"}) for name, row in line.rows.items()}
        rows.append(head | _accuracies(accuracies, columns) | _facts(line) | costs)
    return whole_table(rows)


def over_seeds(runs: Sequence[Run]) -> Table:
    """A line for runs that differ only by seed, two seeds at least; of a seed the first run counts."""
    groups: dict[Hashable, dict[str, Line]] = {}
    for line in (line for run in runs for line in lines_of(run) if line.part):
        distilled = line.rows.get(DISTILLED)
        trained = json.dumps(distilled and distilled.model_dump(include=TRAINING), sort_keys=True)
        key = (_but_for_seed(line.run), line.part, line.protocol, trained)
        groups.setdefault(key, {}).setdefault(line.run.settings.get(SEED, ""), line)
    several = [group for group in groups.values() if len(group) > 1]
    columns = _columns([line for group in several for line in group.values()])
    rows = []
    for seeds, lines in ((", ".join(group), list(group.values())) for group in several):
        # Every row shows what all runs have, so that the columns compare.
        names = [name for name in lines[0].rows if all(name in line.rows for line in lines)]
        spreads = {name: mean_and_spread([line.rows[name].mean for line in lines]) for name in names}
        accuracies = {name: {"mean": mean, "std": std} for name, (mean, std) in spreads.items()}
        head = {"runs": ", ".join(line.run.name for line in lines), "seeds": seeds}
        place = {"part": lines[0].part, "protocol": lines[0].protocol}
        rows.append(head | place | _accuracies(accuracies, columns) | _facts(lines[0]))
    return whole_table(rows)


def growth(runs: Sequence[Run], notes: list[str]) -> list[Picture]:
    """Start-point accuracy over stages and over images, dataset by dataset; runs that differ by seed are one line.

    Args:
        runs: The runs.
        notes: Is told what was left out.
    """
    groups: dict[str, dict[Hashable, list[Run]]] = {}
    for run in (run for run in runs if run.summary.stages):
        groups.setdefault(_dataset(run), {}).setdefault(_but_for_seed(run), []).append(run)
    if len(groups) > MOST_PLOTS:
        notes.append(f"{MOST_PLOTS} of {len(groups)} datasets are plotted")
    pictures = []
    for dataset, own in list(groups.items())[:MOST_PLOTS]:
        if len(own) > MOST_PLOTTED:
            notes.append(f"{dataset}: {MOST_PLOTTED} of {len(own)} lines are plotted")
        rows = [row for group in list(own.values())[:MOST_PLOTTED] for row in _growth_rows(group)]
        for x in ("stage", "images"):
            try:
                png = figure_png(partial(draw_rows, rows=rows, x=x, series=["row"]))
                pictures.append(picture_of(f"{dataset}, start-point accuracy by {x}", png))
            except Exception as error:  # what cannot be drawn must not cost the others their place
                notes.append(f"{dataset}: start-point accuracy by {x} cannot be drawn: {reason_of(error)}")
    return pictures


def compared_settings(runs: Sequence[Run]) -> tuple[Table, dict[str, str]]:
    """A line for each setting that is not the same in all runs; and those that are the same."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    differing = [name for name in names if len({run.settings.get(name) for run in runs}) > 1]
    lines = [[name, *(run.settings.get(name, "") for run in runs)] for name in differing]
    shared = {name: runs[0].settings[name] for name in names if name not in differing}
    stated = {name: text for name, text in shared.items() if text != "null"}
    return Table(["setting", *(run.name for run in runs)], lines, {}), stated


def accuracy_by_class(run: Run) -> tuple[str, Table, int]:
    """The part that networks were scored on (the test part, if it was), a line per class in per cent, and all classes.

    Of very many classes and rows, the table has the first ones.
    """
    rows = list({id(row): row for line in lines_of(run) for row in line.rows.values() if row.per_class}.values())
    rows = ([row for row in rows if row.part == "test"] or rows)[:MOST_COLUMNS]
    names = list(dict.fromkeys(name for row in rows for name in row.per_class))
    lines = [
        {"class": name} | {f"{row.row}, {row.protocol}": 100 * row.per_class.get(name, math.nan) for row in rows}
        for name in names[:MOST_LINES]
    ]
    return rows[0].part if rows else "", whole_table(lines), len(names)


def _columns(lines: Sequence[Line]) -> list[str]:
    """What networks of any line were trained on: the usual things first."""
    names = dict.fromkeys((DISTILLED, RANDOM, FULL, *(name for line in lines for name in line.rows)))
    return list(names)[:MOST_COLUMNS]


def _accuracies(accuracies: dict[str, dict[str, Any]], columns: Sequence[str]) -> dict[str, str]:
    """A column for each thing that networks were trained on."""
    return {f"{name} %": cell_of(accuracies.get(name, {}), "mean") for name in columns}


def _facts(line: Line) -> dict[str, Any]:
    """What a run is and how networks were trained on its set."""
    run, distilled = line.run, line.rows.get(DISTILLED)
    finished, planned = len(run.summary.stages), run.settings.get("stages.num_stages", "")
    iterations = run.settings.get("stages.iterations", "")
    return {
        "n": distilled and distilled.n,
        "steps": distilled and distilled.steps,
        "dataset": _dataset(run),
        "method": run.settings.get("model"),
        "network": run.settings.get("model.network"),
        "stages": f"{finished} of {planned}" if planned.isdecimal() and int(planned) > finished else str(finished),
        "ipc": run.settings.get("model.ipc"),
        "iterations_per_stage": iterations,
        "iterations": int(iterations) * finished if iterations.isdecimal() else None,
    }


def _dataset(run: Run) -> str:
    return run.summary.dataset.get("name", "not stated")


def _but_for_seed(run: Run) -> Hashable:
    """What runs have in common that differ only by seed."""
    settings = {name: text for name, text in run.settings.items() if name not in NOT_COMPARED}
    return json.dumps([run.summary.dataset, settings, len(run.summary.stages)], sort_keys=True)


def _growth_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Stages of runs that differ only by seed: mean and spread over the runs, or of a single one over its networks."""
    rows = []
    for same in zip(*(run.summary.stages[:MOST_LINES] for run in runs), strict=True):
        mean, std = mean_and_spread([report.val_accuracy for report in same])
        names = ", ".join(run.name for run in runs)
        about = {"row": names if len(names) <= 60 else f"{names[:60]} ..", "part": "val"}
        spread = same[0].val_std if std is None else std
        rows.append({**about, "stage": same[0].stage, "images": same[0].images, "mean": mean, "std": spread})
    return rows
