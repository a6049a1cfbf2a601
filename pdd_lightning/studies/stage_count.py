"""The number of stages at the same number of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pdd_lightning.results.plots import draw_rows
from pdd_lightning.results.schema import DISTILLED, RANDOM
from pdd_lightning.studies.arms import AS_RECIPE, Arm, Budget, Method, stage_arms
from pdd_lightning.studies.grid import GridSettings, GridStudy

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
        lines = [
            {**row, "line": f"iterations: {budget}, {row['protocol']}"}
            for budget in self._names
            for row in rows
            if row["row"] == DISTILLED and row["budget"] in (budget, AS_RECIPE)
        ]
        random = [{**row, "line": f"{RANDOM}, {row['protocol']}"} for row in rows if row["row"] == RANDOM]
        draw_rows(figure, [*lines, *random], "stages", ["line"], references=[RANDOM], log=True)

    @property
    def _names(self) -> list[str]:
        return [f"same {budget.replace('_', ' ')}" for budget in self.budgets]
