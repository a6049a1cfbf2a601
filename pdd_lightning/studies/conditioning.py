"""Stages that know of each other against stages that do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdd_lightning.results.plots import draw_rows
from pdd_lightning.results.schema import DISTILLED
from pdd_lightning.studies.arms import NO_BASELINES, Arm, Method, fit_step, own_arm
from pdd_lightning.studies.grid import GridSettings, GridStudy
from pdd_lightning.studies.recipe import readable
from pdd_lightning.studies.step import Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEDS_APART = 1000
"""Distance of the seeds of an arm's independent sets; the first has the arm's own, so that its stage 1 is the same."""


class Conditioning(GridStudy):
    """Stages that are distilled one upon another, and stages distilled independently.

    Both arms have the recipe's stages, images, and iterations. With conditioning, each stage continues where networks
    trained on the earlier ones stand. Without, each is a single-stage set of its own seed, and the sets are joined;
    with trajectory matching each therefore has experts of its own. The difference is what progression does, beyond
    more images.

    Args:
        method: The recipe.
        grid: What all such studies need to know.
    """

    def __init__(self, method: Method, grid: GridSettings) -> None:
        super().__init__(grid)
        self.method = method

    def arms(self) -> list[Arm]:
        """With conditioning and without."""
        arm = own_arm(self.method)
        on = replace(arm, run=f"{arm.run}/on", labels={**arm.labels, "conditioning": "on"})
        off = replace(arm, run=f"{arm.run}/off", labels={**on.labels, "conditioning": "off"}, evaluate=NO_BASELINES)
        return [on, off]

    def distil_steps(self, arm: Arm, seed: int, folder: Path) -> list[Step]:
        """One run of all stages, or a run for each and their union."""
        if arm.labels["conditioning"] == "on":
            return super().distil_steps(arm, seed, folder)
        run = self.run_folder(arm, seed, folder)
        name = f"{arm.run}/seed_{seed}"
        fits = [
            fit_step(f"{name}/set_{stage + 1}", arm, seed + SEEDS_APART * stage, folder, stages=1)
            for stage in range(arm.stages)
        ]
        sets = [str(readable(run / f"set_{stage + 1}" / "distilled.safetensors")) for stage in range(arm.stages)]
        words = ("join", *sets, "--output", str(readable(run / "distilled.safetensors")))
        return [*fits, Step(f"{name}/join", words, after=tuple(fit.name for fit in fits))]

    def plot(self, figure: Figure, rows: Sequence[dict[str, Any]]) -> None:
        """A mark per protocol and arm."""
        draw_rows(
            figure,
            rows,
            "protocol",
            lambda row: f"conditioning {row['conditioning']}" if row["row"] == DISTILLED else row["row"],
        )
