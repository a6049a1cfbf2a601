"""What the images of each stage are like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdd_lightning.results.plots import draw_methods
from pdd_lightning.results.tables import NUMBERS, mean_and_spread
from pdd_lightning.studies.arms import Arm, Method, check_methods, check_seeds, filled, fit_step, own_arm
from pdd_lightning.studies.base import Study, read_json
from pdd_lightning.studies.recipe import dotted, readable
from pdd_lightning.studies.step import Step, option_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class StageStatistics(Study):
    """How stages differ from each other and from real images.

    Args:
        methods: Recipes to describe.
        seeds: Distillation seeds; each also seeds the networks that judge the images.
        describe: Options of `pdd describe`.

    Raises:
        ConfigError: There is no method, no seed, or a seed twice.
    """

    def __init__(self, methods: list[Method], seeds: list[int], describe: dict[str, Any] | None = None) -> None:
        check_methods(methods)
        check_seeds(seeds)
        self.methods = methods
        self.seeds = seeds
        self.describe = dotted(describe or {})

    def notes(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """What the numbers are."""
        return [
            "Each number: mean over the images of a row and over the seeds ± standard deviation of the seeds' means.",
            "low, middle, high: shares of the power spectrum in these thirds of the frequencies, of sum 1; variation:"
            " total variation; accuracy and confidence (both from 0 to 1) and silhouette (from -1 to 1): in networks"
            " trained on real images, of the image's label; nearest real: distance to the nearest real training image"
            " of the class, root mean square per pixel in model space.",
            "Held-out real images are the validation part, on which no network was trained.",
        ]

    def steps(self, folder: Path) -> list[Step]:
        """Distils and describes each recipe, seed by seed."""
        pairs = [(own_arm(method), seed) for seed in self.seeds for method in self.methods]
        return [step for arm, seed in pairs for step in self._arm_steps(arm, seed, folder)]

    def rows(self, folder: Path) -> list[dict[str, Any]]:
        """One row per recipe and stage, and one per recipe for real images."""
        rows = []
        for arm in map(own_arm, self.methods):
            per_seed = [read_json(_run(arm, seed, folder) / "describe.json")["rows"] for seed in self.seeds]
            for same in zip(*per_seed, strict=True):
                kept = {name: same[0][name] for name in ("row", "stage", "images")}
                rows.append({"method": arm.labels["method"], **kept, **_over_seeds(same), "seeds": len(same)})
        return rows

    def plot(self, figure: Figure, rows: Sequence[dict[str, Any]]) -> None:
        """Each number against the stage."""
        draw_methods(figure, rows)

    def _arm_steps(self, arm: Arm, seed: int, folder: Path) -> list[Step]:
        name, run = f"{arm.run}/seed_{seed}", _run(arm, seed, folder)
        fit = fit_step(name, arm, seed, folder, arm.stages)
        options = {
            **self.describe,
            "seed": seed,
            "output": str(readable(run / "describe.json")),
            "figure": str(readable(run / "describe.png")),
        }
        path = str(readable(run / "distilled.safetensors"))
        words = ("describe", path, *filled(arm.recipe.data_words(), seed, folder), *option_words(options))
        return [fit, Step(f"{name}/describe", words, after=(fit.name,))]


def _run(arm: Arm, seed: int, folder: Path) -> Path:
    return folder / "runs" / arm.run / f"seed_{seed}"


def _over_seeds(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Mean of each number over seeds, and the spread."""
    numbers: dict[str, float | None] = {}
    for name in NUMBERS:
        numbers[name], numbers[f"{name}_std"] = mean_and_spread([row[name] for row in rows])
    return numbers
