"""Accuracy against time where easy real examples are discarded."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdd_lightning.results.plots import draw_rows
from pdd_lightning.results.schema import DISTILLED
from pdd_lightning.studies.arms import NO_BASELINES, Arm, Method, own_arm
from pdd_lightning.studies.grid import GridSettings, GridStudy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Discarding(GridStudy):
    """Accuracy against time for schedules that discard easy examples.

    Args:
        method: The recipe.
        grid: What all such studies need to know.
        schedules: Fractions of the real examples to keep, one per stage, by the name that the table gives them. A run
            that keeps everything is always among the runs.
    """

    def __init__(self, method: Method, grid: GridSettings, schedules: dict[str, list[float]]) -> None:
        super().__init__(grid)
        self.method = method
        self.schedules = schedules

    def arms(self) -> list[Arm]:
        """One per schedule."""
        arm = own_arm(self.method)
        first = replace(arm, run=f"{arm.run}/all", labels={**arm.labels, "schedule": "all"})
        others = [
            replace(
                arm,
                run=f"{arm.run}/{name}",
                labels={**arm.labels, "schedule": name},
                options={**arm.options, "stages.discard.keep": keep},
                evaluate=NO_BASELINES,
            )
            for name, keep in self.schedules.items()
        ]
        return [first, *others]

    def rows(self, folder: Path) -> list[dict[str, Any]]:
        """Adds the seconds that a schedule saved."""
        rows = super().rows(folder)
        whole = next(row["distil_seconds"] for row in rows if "distil_seconds" in row)
        for row in rows:
            if "distil_seconds" in row:
                row["seconds_saved"] = whole - row["distil_seconds"]
        return rows

    def figures(self, summaries: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Adds the real examples that a stage used, on average over the stages."""
        used = [stage["real_images"] for summary in summaries for stage in summary["stages"]]
        return {"real_images": statistics.fmean(used), **super().figures(summaries)}

    def notes(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """Says what the seconds are."""
        return [
            *super().notes(rows),
            "Seconds are wall-clock time: compare them only if nothing else ran (`--jobs 1`). Saved: to the run that"
            " keeps everything, beside which alone there are random real images.",
            "Schedules, shares of the real examples kept in each stage: "
            + "; ".join(f"{name}: {', '.join(f'{one:g}' for one in keep)}" for name, keep in self.schedules.items())
            + ".",
        ]

    def plot(self, figure: Figure, rows: Sequence[dict[str, Any]]) -> None:
        """A mark per schedule and protocol, over the seconds of distillation."""
        distilled = [row for row in rows if row["row"] == DISTILLED]
        axes = draw_rows(figure, distilled, "distil_seconds", ["schedule", "protocol"])
        axes.set_xlim(0, 1.08 * max(row["distil_seconds"] for row in distilled))
