"""The HTML page that shows and compares runs and studies."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from pdd_lightning import __version__
from pdd_lightning.results.folders import SEED, Folder, Folders, Picture, Run, Study, encode_picture, first_items
from pdd_lightning.results.plots import draw_rows, render_figure
from pdd_lightning.results.schema import DISTILLED, FULL, RANDOM, EvaluatedRow
from pdd_lightning.results.tables import (
    Table,
    evaluation_table,
    format_cell,
    full_table,
    make_table,
    mean_and_std,
    stages_table,
)
from pdd_lightning.stored import one_line

MAX_LINES, MAX_COLUMNS, MAX_CHARACTERS = 1_000, 60, 1_000
"""Limits of a table, and of each text on the page."""
MAX_NOTES = 50
MAX_PLOTTED_DATASETS, MAX_PLOTTED_LINES = 12, 24
IGNORED_SETTINGS = (SEED, "stages.experts.folder")
"""Settings that may differ between runs whose results are averaged."""
TRAINING_COLUMNS = {"steps", "epochs", "training", "augment", "align_corners", "init", "network", "scored"}
"""Columns in which the rows of such runs must agree."""


class RunScores(NamedTuple):
    """Rows of a run of one part and protocol (empty if it was not evaluated), by what networks were trained on."""

    run: Run
    part: str
    protocol: str
    rows: dict[str, EvaluatedRow]


def check_tables(folder: Folder) -> None:
    """Make the tables of a folder, so that an error appears before the page is rendered."""
    if isinstance(folder, Study):
        study_table(folder)
    elif isinstance(folder, Run):
        _ = comparison([folder]), compare_settings([folder]), accuracy_by_class(folder), run_table(folder)


def render_page(folders: Folders) -> str:
    """Render the page as HTML with styles, script and pictures inside it."""
    settings, shared_settings = compare_settings(folders.runs)
    plot_notes: list[str] = []
    environment = Environment(
        loader=PackageLoader("pdd_lightning.results"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shorten,
    )
    return environment.get_template("page.html").render(
        version=__version__,
        folders=folders,
        comparison=comparison(folders.runs),
        over_seeds=over_seeds(folders.runs),
        plots=start_point_plots(folders.runs, plot_notes),
        plot_notes=plot_notes,
        settings=settings,
        shared_settings=shared_settings,
        stages_table=stages_table,
        run_table=run_table,
        accuracy_by_class=accuracy_by_class,
        study_table=study_table,
        limited=limited,
        max_lines=MAX_LINES,
        max_notes=MAX_NOTES,
    )


def limited(table: Table) -> tuple[Table, str]:
    """Return the first lines and columns of a table, and a sentence about what was left out."""
    sizes = (("lines", len(table.lines), MAX_LINES), ("columns", len(table.headings), MAX_COLUMNS))
    parts = [f"{name} 1 to {limit} of {size}" for name, size, limit in sizes if size > limit]
    lines = [line[:MAX_COLUMNS] for line in table.lines[:MAX_LINES]]
    note = f"Shown: {' and '.join(parts)}." if parts else ""
    return Table(table.headings[:MAX_COLUMNS], lines, table.common), note


def run_table(run: Run) -> Table:
    """Return the evaluated rows of a run."""
    return evaluation_table([row.model_dump() for row in run.summary.evaluation])


def study_table(study: Study) -> Table:
    """Return the rows of a study, with as many columns as are shown and the spreads of these."""
    names = list(dict.fromkeys(name for row in study.result.rows for name in row))[: 2 * MAX_COLUMNS]
    return make_table([{name: row[name] for name in names if name in row} for row in study.result.rows])


def scores_of(run: Run) -> list[RunScores]:
    """Return rows by part and protocol; of a set that was evaluated at every stage, those of the last union."""
    rows = sorted(run.summary.evaluation, key=lambda row: row.images or 0)
    staged = [row for row in run.summary.evaluation if row.row != FULL] or rows
    scores = []
    for part, protocol in dict.fromkeys((row.part, row.protocol) for row in staged):
        # Training on all real images has no protocol, and is shown beside each.
        matching = [row for row in rows if row.part == part and (row.protocol == protocol or row.row == FULL)]
        scores.append(RunScores(run, part, protocol, {row.row: row for row in matching}))
    return scores or [RunScores(run, "", "", {})]


def comparison(runs: Sequence[Run]) -> Table:
    """Return a table with a line per run, part and protocol."""
    scores = [score for run in runs for score in scores_of(run)]
    names = _trained_on(scores)
    rows = []
    for score in scores:
        run, stages = score.run, score.run.summary.stages
        columns = {name: row.model_dump(include={"mean", "std", "n"}) for name, row in score.rows.items()}
        rows.append(
            {"run": run.name, "part": score.part or None, "protocol": score.protocol or "not evaluated"}
            | _accuracy_columns(columns, names)
            | _run_columns(score)
            | {
                "seed": run.settings.get(SEED),
                "distil_seconds": sum(sum(stage.seconds.values()) for stage in stages) if stages else None,
                "peak_memory_mb": max((stage.peak_memory_mb for stage in stages), default=None),
                "notes": "; ".join(run.notes) or None,
            }
        )
    return full_table(rows)


def over_seeds(runs: Sequence[Run]) -> Table:
    """Return a table with a line for runs that differ in their seeds only; of each seed, the first run counts."""
    groups: dict[Hashable, dict[str, RunScores]] = {}
    for score in (score for run in runs for score in scores_of(run) if score.part):
        distilled = score.rows.get(DISTILLED)
        training = json.dumps(distilled and distilled.model_dump(include=TRAINING_COLUMNS), sort_keys=True)
        key = (_key_without_seed(score.run), score.part, score.protocol, training)
        groups.setdefault(key, {}).setdefault(score.run.settings.get(SEED, ""), score)
    repeated = [group for group in groups.values() if len(group) > 1]
    names = _trained_on([score for group in repeated for score in group.values()])
    rows = []
    for group in repeated:
        first, *others = scores = list(group.values())
        # Only what all runs were evaluated on can be averaged.
        common = [name for name in first.rows if all(name in score.rows for score in others)]
        means = {name: mean_and_std([score.rows[name].mean for score in scores]) for name in common}
        columns = {name: {"mean": mean, "std": std} for name, (mean, std) in means.items()}
        rows.append(
            {"runs": ", ".join(score.run.name for score in scores), "seeds": ", ".join(group)}
            | {"part": first.part, "protocol": first.protocol}
            | _accuracy_columns(columns, names)
            | _run_columns(first)
        )
    return full_table(rows)


def start_point_plots(runs: Sequence[Run], notes: list[str]) -> list[Picture]:
    """Plot start-point accuracy over stages and over images for each dataset, and note what was left out.

    Runs that differ in their seeds only are one line.
    """
    datasets: dict[str, dict[Hashable, list[Run]]] = {}
    for run in (run for run in runs if run.summary.stages):
        datasets.setdefault(_dataset(run), {}).setdefault(_key_without_seed(run), []).append(run)
    pictures = []
    for dataset, groups in first_items(list(datasets.items()), MAX_PLOTTED_DATASETS, "datasets", notes):
        shown = first_items(list(groups.values()), MAX_PLOTTED_LINES, f"lines for {dataset}", notes)
        rows = [row for group in shown for row in _start_point_rows(group)]
        # Where all runs have as many images after a stage, one plot would show what the other does.
        equal = len({(row["stage"], row["images"]) for row in rows}) == len({row["stage"] for row in rows})
        for x in ("images",) if equal else ("stage", "images"):
            try:
                png = render_figure(partial(draw_rows, rows=rows, x=x, series=["row"]))
                pictures.append(encode_picture(f"{dataset}, start-point accuracy by {x}", png))
            except Exception as error:  # of any type: the rest of the page must be shown
                notes.append(f"{dataset}: start-point accuracy by {x} cannot be drawn: {one_line(error)}")
    return pictures


def compare_settings(runs: Sequence[Run]) -> tuple[Table, dict[str, str]]:
    """Return a table of the settings in which runs differ, and the settings that they share."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    differing = [name for name in names if len({run.settings.get(name) for run in runs}) > 1]
    lines = [[name, *(run.settings.get(name, "") for run in runs)] for name in differing]
    shared = {name: runs[0].settings[name] for name in names if name not in differing}
    shared = {name: text for name, text in shared.items() if text != "null"}
    return Table(["setting", *(run.name for run in runs)], lines, {}), shared


def accuracy_by_class(run: Run) -> tuple[str, str, Table]:
    """Return the part that was scored (the test part, if it was), the number of classes, and accuracies in %."""
    rows = list({id(row): row for score in scores_of(run) for row in score.rows.values() if row.per_class}.values())
    rows = ([row for row in rows if row.part == "test"] or rows)[:MAX_COLUMNS]
    notes: list[str] = []
    names = list(dict.fromkeys(name for row in rows for name in row.per_class))
    lines = [
        {"class": name} | {f"{row.row}, {row.protocol}": 100 * row.per_class.get(name, math.nan) for row in rows}
        for name in first_items(names, MAX_LINES, "classes", notes)
    ]
    return rows[0].part if rows else "", "".join(notes) or f"{len(names)} classes", full_table(lines)


def _shorten(value: Any) -> Any:
    """Cut off long texts, but not markup."""
    if type(value) is str and len(value) > MAX_CHARACTERS:
        return f"{value[:MAX_CHARACTERS]} .."
    return value


def _trained_on(scores: Sequence[RunScores]) -> list[str]:
    """Return what networks were trained on in any of the scores, the usual sets first."""
    names = dict.fromkeys((DISTILLED, RANDOM, FULL, *(name for score in scores for name in score.rows)))
    return list(names)[:MAX_COLUMNS]


def _accuracy_columns(rows: dict[str, dict[str, Any]], names: Sequence[str]) -> dict[str, str]:
    return {f"{name} %": format_cell(rows.get(name, {}), "mean") for name in names}


def _run_columns(score: RunScores) -> dict[str, Any]:
    """Describe the run and how networks were trained on its set."""
    run, distilled = score.run, score.rows.get(DISTILLED)
    finished, planned = len(run.summary.stages), run.count("stages.num_stages") or 0
    iterations = run.count("stages.iterations")
    return {
        "n": distilled and distilled.n,
        "steps": distilled and distilled.steps,
        "dataset": _dataset(run),
        "method": run.settings.get("model"),
        "network": run.settings.get("model.network"),
        "stages": f"{finished} of {planned}" if planned > finished else str(finished),
        "ipc": run.settings.get("model.ipc"),
        "iterations_per_stage": run.settings.get("stages.iterations", ""),
        "iterations": None if iterations is None else iterations * finished,
    }


def _dataset(run: Run) -> str:
    return run.summary.dataset.get("name", "not stated")


def _key_without_seed(run: Run) -> Hashable:
    """Return a key that is equal for runs that differ in their seeds only."""
    settings = {name: text for name, text in run.settings.items() if name not in IGNORED_SETTINGS}
    return json.dumps([run.summary.dataset, settings, len(run.summary.stages)], sort_keys=True)


def _start_point_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row per stage: mean and spread over runs, or over the networks of a single run."""
    names = ", ".join(run.name for run in runs)
    row = {"row": names if len(names) <= 60 else f"{names[:60]} ..", "part": "val"}
    rows = []
    for reports in zip(*(run.summary.stages[:MAX_LINES] for run in runs), strict=True):
        mean, std = mean_and_std([report.val_accuracy for report in reports])
        std = reports[0].val_std if std is None else std
        rows.append({**row, "stage": reports[0].stage, "images": reports[0].images, "mean": mean, "std": std})
    return rows
