"""Methods in stages and in one stage, at the same number of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pdd_lightning.results.plots import draw_rows
from pdd_lightning.results.schema import DISTILLED
from pdd_lightning.studies.arms import Arm, Budget, Method, check_methods, stage_arms
from pdd_lightning.studies.grid import GridSettings, GridStudy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class BaseMethods(GridStudy):
    """Base methods in stages and in one stage, at the same number of images.

    Each method's recipe is distilled in the given numbers of stages, with the recipe's images per class in total.

    Args:
        methods: Recipes to compare.
        grid: What all such studies need to know.
        stages: Numbers of stages; real images are evaluated beside the first.
        budgets: The same iterations in `total`, in each stage (`per_stage`), or both, one after the other.

    Raises:
        ConfigError: There is no method.
    """

    def __init__(self, methods: list[Method], grid: GridSettings, stages: list[int], budgets: list[Budget]) -> None:
        super().__init__(grid)
        check_methods(methods)
        self.methods = methods
        self.stages = stages
        self.budgets = budgets

    def arms(self) -> list[Arm]:
        """Each method in each number of stages."""
        return [arm for method in self.methods for arm in stage_arms(method, self.stages, self.budgets)]

    def plot(self, figure: Figure, rows: Sequence[dict[str, Any]]) -> None:
        """A mark per method and arm."""
        draw_rows(figure, rows, "method", _series)


def _series(row: Mapping[str, Any]) -> str:
    """What the legend calls a row."""
    if row["row"] != DISTILLED:
        return f"{row['row']}, {row['protocol']}"
    stages = "1 stage" if row["stages"] == 1 else f"{row['stages']} stages"
    return f"{stages} x {row['ipc']}, {row['protocol']},\niterations {row['budget']}"
