"""The page that shows and compares runs and studies."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from pdd_lightning import __version__
from pdd_lightning.results.folders import SEED, Folders, Picture, Run, picture_of
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


def render_page(folders: Folders) -> str:
    """The whole page as HTML that needs nothing else: styles, script and pictures are inside it."""
    environment = Environment(
        loader=PackageLoader("pdd_lightning.results"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    settings, shared = compared_settings(folders.runs)
    return environment.get_template("page.html").render(
        version=__version__,
        folders=folders,
        comparison=comparison(folders.runs),
        over_seeds=over_seeds(folders.runs),
        growth=growth(folders.runs),
        settings=settings,
        shared=shared,
        stages_of=lambda run: stages_table(run.summary.stages),
        evaluation_of=lambda run: evaluation_table([row.model_dump() for row in run.summary.evaluation]),
        classes_of=accuracy_by_class,
        table_of=table_of,
    )


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
    return lines or [Line(run, "", "", {})]


def comparison(runs: Sequence[Run]) -> Table:
    """A line per run, part and protocol."""
    lines = [line for run in runs for line in lines_of(run)]
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
        rows.append(head | _accuracies(accuracies, lines) | _facts(line) | costs)
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
    rows = []
    for seeds, lines in ((", ".join(group), list(group.values())) for group in several):
        # Every row shows what all runs have, so that the columns compare.
        names = [name for name in lines[0].rows if all(name in line.rows for line in lines)]
        spreads = {name: mean_and_spread([line.rows[name].mean for line in lines]) for name in names}
        accuracies = {name: {"mean": mean, "std": std} for name, (mean, std) in spreads.items()}
        head = {"runs": ", ".join(line.run.name for line in lines), "seeds": seeds}
        place = {"part": lines[0].part, "protocol": lines[0].protocol}
        every = [line for group in several for line in group.values()]
        rows.append(head | place | _accuracies(accuracies, every) | _facts(lines[0]))
    return whole_table(rows)


def growth(runs: Sequence[Run]) -> list[Picture]:
    """Start-point accuracy over stages and over images, dataset by dataset; runs that differ by seed are one line."""
    groups: dict[str, dict[Hashable, list[Run]]] = {}
    for run in (run for run in runs if run.summary.stages):
        groups.setdefault(_dataset(run), {}).setdefault(_but_for_seed(run), []).append(run)
    pictures = []
    for dataset, own in groups.items():
        rows = [row for group in own.values() for row in _growth_rows(group)]
        for x in ("stage", "images"):
            png = figure_png(partial(draw_rows, rows=rows, x=x, series=["row"]))
            pictures.append(picture_of(f"{dataset}, start-point accuracy by {x}", png))
    return pictures


def compared_settings(runs: Sequence[Run]) -> tuple[Table, dict[str, str]]:
    """A line for each setting that is not the same in all runs; and those that are the same."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    differing = [name for name in names if len({run.settings.get(name) for run in runs}) > 1]
    lines = [[name, *(run.settings.get(name, "") for run in runs)] for name in differing]
    shared = {name: runs[0].settings[name] for name in names if name not in differing}
    stated = {name: text for name, text in shared.items() if text != "null"}
    return Table(["setting", *(run.name for run in runs)], lines, {}), stated


def accuracy_by_class(run: Run) -> tuple[str, Table]:
    """The part that networks were scored on (the test part, if it was), and a line per class in per cent."""
    rows = list({id(row): row for line in lines_of(run) for row in line.rows.values() if row.per_class}.values())
    rows = [row for row in rows if row.part == "test"] or rows
    lines = [
        {"class": name} | {f"{row.row}, {row.protocol}": 100 * row.per_class.get(name, math.nan) for row in rows}
        for name in dict.fromkeys(name for row in rows for name in row.per_class)
    ]
    return rows[0].part if rows else "", whole_table(lines)


def _accuracies(accuracies: dict[str, dict[str, Any]], lines: Sequence[Line]) -> dict[str, str]:
    """A column for each thing that networks of any line were trained on: the usual ones first."""
    names = dict.fromkeys((DISTILLED, RANDOM, FULL, *(name for line in lines for name in line.rows)))
    return {f"{name} %": cell_of(accuracies.get(name, {}), "mean") for name in names}


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
    for same in zip(*(run.summary.stages for run in runs), strict=True):
        mean, std = mean_and_spread([report.val_accuracy for report in same])
        about = {"row": ", ".join(run.name for run in runs), "part": "val"}
        spread = same[0].val_std if std is None else std
        rows.append({**about, "stage": same[0].stage, "images": same[0].images, "mean": mean, "std": spread})
    return rows
