"""How accuracy grows with the size of the distilled set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation import EvaluationSettings
from pdd_lightning.results.plots import add_legend, draw_rows
from pdd_lightning.results.schema import FULL
from pdd_lightning.studies.arms import Arm, Method, staged_arm
from pdd_lightning.studies.grid import GridSettings, GridStudy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GOAL = 0.9
"""The fraction of the full real set's accuracy whose crossing is marked."""


class LargerSets(GridStudy):
    """Accuracy against images per class, as a fraction of what all real images give.

    Each phase of an evaluation takes the recipe's epochs, so that networks train longer on larger sets.

    Args:
        method: The recipe.
        grid: What all such studies need to know; `full_data_epochs` must be set, here or in the recipe.
        sizes: Pairs of stages and images per class and stage, such as [[5, 1], [5, 2], [10, 2]].

    Raises:
        ConfigError: No size, or the full real set is not evaluated.
    """

    def __init__(self, method: Method, grid: GridSettings, sizes: list[tuple[int, int]]) -> None:
        super().__init__(grid)
        self.method = method
        self.sizes = sizes
        if not sizes or not self.evaluation(self.arms()[0]).get("full_data_epochs"):
            raise ConfigError("larger sets are compared with the full real set: give sizes, and full_data_epochs > 0")

    def arms(self) -> list[Arm]:
        """One per size; the full real set is evaluated once."""
        arms = [staged_arm(self.method, stages, ipc) for stages, ipc in self.sizes]
        # Each stage has the recipe's iterations: there are no budgets to tell apart.
        first, *others = [replace(arm, labels={"method": arm.labels["method"]}) for arm in arms]
        return [first, *(replace(arm, evaluate={"full_data_epochs": 0}) for arm in others)]

    def epochs(self, arm: Arm) -> int:
        """The recipe's."""
        return int(self.evaluation(arm).get("epochs", EvaluationSettings().epochs))

    def rows(self, folder: Path) -> list[dict[str, Any]]:
        """Adds what fraction of the full set's accuracy and of its images each row has."""
        rows = super().rows(folder)
        full = next(row for row in rows if row["row"] == FULL)
        return [
            {
                **row,
                "per_class": row["images"] // self.grid.num_classes,
                "of_images": f"{100 * row['images'] / full['images']:.1f} %",
                "of_accuracy": f"{100 * row['mean'] / full['mean']:.1f} %",
            }
            for row in rows
        ]

    def notes(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """Says where the goal is reached."""
        full = next(row for row in rows if row["row"] == FULL)
        said = []
        for (name, protocol), line in _lines(rows).items():
            size = crossing([(row["per_class"], row["mean"]) for row in line], GOAL * full["mean"])
            where = f"at about {size:.1f} images per class" if size else "not within these sizes"
            said.append(f"{GOAL:.0%} of the full set's accuracy, {name} ({protocol}): {where}.")
        return [*super().notes(rows), *said]

    def plot(self, figure: Figure, rows: Sequence[dict[str, Any]]) -> None:
        """A line per training set and protocol, and the full set's accuracy and the goal."""
        axes = draw_rows(figure, rows, "per_class", references=[FULL], log=True)
        goal = GOAL * next(row["mean"] for row in rows if row["row"] == FULL)
        for line in _lines(rows).values():
            if size := crossing([(row["per_class"], row["mean"]) for row in line], goal):
                axes.annotate(f"{size:.0f}", (size, 100 * goal), (0, -14), textcoords="offset points", ha="center")
                axes.plot([size], [100 * goal], marker="|", markersize=14, color="black")
        axes.axhline(100 * goal, color="0.4", linestyle=":", label=f"{GOAL:.0%} of {FULL}")
        add_legend(axes)


def crossing(points: Sequence[tuple[float, float]], goal: float) -> float | None:
    """Where a line through `(size, accuracy)` points first reaches a goal, sizes taken logarithmically.

    Returns:
        The size, or None where no point reaches the goal.
    """
    ordered = sorted(points)
    if ordered[0][1] >= goal:
        return ordered[0][0]
    for (size, below), (next_size, above) in pairwise(ordered):
        if above >= goal:
            share = (goal - below) / (above - below)
            return math.exp(math.log(size) + share * (math.log(next_size) - math.log(size)))
    return None


def _lines(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rows of sets of growing size by training set and protocol."""
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["images"]):
        if row["row"] != FULL:
            lines.setdefault((row["row"], row["protocol"]), []).append(row)
    return lines
