"""Runs side by side: a line per run, part and protocol, and lines over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pdd_lightning.report.figures import EvaluationRow, number
from pdd_lightning.report.runs import Run
from pdd_lightning.report.values import SEED, without_seed

DISTILLED, RANDOM, FULL = "distilled", "random real", "full real"
CONDITIONS = ("epochs", "training", "augment", "align_corners", "init", "network", "scored")
"""What evaluation rows may say of how networks were trained and scored."""


@dataclass(frozen=True)
class Line:
    """A run as it scored on one part by one protocol; both are empty if it was not evaluated.

    Attributes:
        run: The run.
        part: The real images that networks were scored on.
        protocol: How networks were trained on staged sets.
        rows: Evaluation rows by what networks were trained on.
    """

    run: Run
    part: str
    protocol: str
    rows: dict[str, EvaluationRow]

    @property
    def distilled(self) -> EvaluationRow | None:
        """The row of the distilled set."""
        return self.rows.get(DISTILLED)

    @property
    def steps(self) -> float | None:
        """Optimiser steps of each network trained on the distilled set."""
        return self.distilled.steps if self.distilled else None

    @property
    def networks(self) -> float | None:
        """Networks trained on the distilled set."""
        return self.distilled.networks if self.distilled else None

    @property
    def conditions(self) -> tuple[str, ...]:
        """What must be equal for two lines to be averaged."""
        stated = self.distilled.entry if self.distilled else {}
        told = json.dumps([stated.get(name) for name in CONDITIONS], sort_keys=True, default=str)
        return (self.part, self.protocol, str(self.steps), told)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over runs, in [0, 1]."""

    mean: float
    std: float


@dataclass(frozen=True)
class SeedLine:
    """Runs that differ only by seed, on one part by one protocol.

    Attributes:
        lines: The runs' own lines.
        rows: Mean and spread of the runs' means, by what networks were trained on.
    """

    lines: list[Line]
    rows: dict[str, Spread]

    @property
    def seeds(self) -> list[str]:
        """The seeds, in order."""
        return sorted({seed_of(line.run) for line in self.lines}, key=lambda seed: (len(seed), seed))


def seed_of(run: Run) -> str:
    """The run's seed as text."""
    return run.settings.get(SEED, "")


def iterations(run: Run) -> tuple[float | None, float | None]:
    """Iterations of a stage and of all finished stages, where the configuration is there."""
    per_stage = setting(run, "stages.iterations")
    return per_stage, None if per_stage is None else per_stage * len(run.stages)


def setting(run: Run, name: str) -> float | None:
    """A setting that is a number."""
    try:
        return number(json.loads(run.settings.get(name, "null")))
    except ValueError:
        return None


def seconds(run: Run) -> float | None:
    """Time of the distillation with its experts and transitions."""
    parts = [part for stage in run.stages for part in stage.seconds.values()]
    return sum(parts) if parts else None


def memory(run: Run) -> float | None:
    """Highest memory use in MB."""
    return max((stage.memory for stage in run.stages if stage.memory is not None), default=None)


def lines_of(run: Run) -> list[Line]:
    """One line per part and protocol; where a set was scored at every stage, the largest union counts."""
    rows = sorted(run.rows, key=lambda row: row.images or 0)
    staged = [row for row in run.rows if row.name != FULL] or run.rows
    lines = []
    for part, protocol in dict.fromkeys((row.part, row.protocol) for row in staged):
        # Training on all real images knows no protocol: it stands beside each.
        fitting = [row for row in rows if row.part == part and (row.protocol == protocol or row.name == FULL)]
        lines.append(Line(run, part, protocol, {row.name: row for row in fitting}))
    return lines or [Line(run, "", "", {})]


def row_names(lines: Sequence[Line | SeedLine]) -> list[str]:
    """What networks of any line were trained on: the distilled set first, then the usual baselines."""
    names = dict.fromkeys(name for line in lines for name in line.rows)
    usual = [name for name in (RANDOM, FULL) if name in names]
    return [DISTILLED, *usual, *(name for name in names if name not in (DISTILLED, RANDOM, FULL))]


def same_but_for_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs grouped by dataset and all settings but the seed, in order."""
    groups: dict[object, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.dataset, run.fingerprint, without_seed(run.settings), len(run.stages)), []).append(run)
    return list(groups.values())


def seed_lines(runs: Sequence[Run]) -> list[SeedLine]:
    """A line for each group of runs with at least two seeds, part, and protocol; of a seed the first run counts."""
    found = []
    for group in same_but_for_seed(runs):
        by_conditions: dict[tuple[str, ...], dict[str, Line]] = {}
        for line in (line for run in group for line in lines_of(run) if line.part):
            by_conditions.setdefault(line.conditions, {}).setdefault(seed_of(line.run), line)
        found += [_seed_line(list(lines.values())) for lines in by_conditions.values()]
    return [line for line in found if len(line.lines) > 1]


def _seed_line(lines: list[Line]) -> SeedLine:
    means: dict[str, list[float]] = {}
    for row in (row for line in lines for row in line.rows.values()):
        if row.mean is not None:
            means.setdefault(row.name, []).append(row.mean)
    # Every row shows what all runs have, so that the columns compare.
    complete = {name: values for name, values in means.items() if len(values) == len(lines)}
    return SeedLine(lines, {name: _spread(values) for name, values in complete.items()})


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
