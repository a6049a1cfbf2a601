"""The number of stages at the same number of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pdd_lightning.studies.arms import AS_RECIPE, Arm, Budget, Method, stage_arms
from pdd_lightning.studies.grid import GridSettings, GridStudy
from pdd_lightning.studies.plots import DISTILLED, accuracy_axes, add_legend, draw_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class StageCount(GridStudy):
    """Number of stages at the same number of images.

    Args:
        method: The recipe; its images per class in total are divided into stages.
        grid: What all such studies need to know.
        stages: Numbers of stages, divisors of the images per class; real images are evaluated beside the first.
        budgets: The same iterations in `total`, in each stage (`per_stage`), or both, one after the other.
    """

    def __init__(self, method: Method, grid: GridSettings, stages: list[int], budgets: list[Budget]) -> None:
        super().__init__(grid)
        self.method = method
        self.stages = stages
        self.budgets = budgets

    def arms(self) -> list[Arm]:
        """Each number of stages with each budget."""
        return stage_arms(self.method, self.stages, self.budgets)

    def plot(self, figure: Figure, rows: Sequence[dict[str, Any]]) -> None:
        """A line over the numbers of stages for each budget and protocol; the recipe's own run is part of each."""
        axes = accuracy_axes(figure, rows)
        distilled = [row for row in rows if row["row"] == DISTILLED]
        kinds = dict.fromkeys((budget, row["protocol"]) for budget in self._names for row in distilled)
        for number, (budget, protocol) in enumerate(kinds):
            same = [row for row in distilled if row["protocol"] == protocol]
            line = [row for row in same if row["budget"] in (budget, AS_RECIPE)]
            line.sort(key=lambda row: row["stages"])
            places = [row["stages"] * 1.03**number for row in line]  # beside each other where lines meet
            draw_line(axes, places, line, f"iterations: {budget}, {protocol}", number)
        for row in rows:
            if row["row"] == "random real":
                axes.axhline(100 * row["mean"], color="0.5", linestyle="--", label=f"random real, {row['protocol']}")
        axes.set_xscale("log")
        axes.set_xticks(self.stages, [str(count) for count in self.stages], minor=False)
        axes.minorticks_off()
        axes.set_xlabel("stages")
        add_legend(axes)

    @property
    def _names(self) -> list[str]:
        return [f"same {budget.replace('_', ' ')}" for budget in self.budgets]
