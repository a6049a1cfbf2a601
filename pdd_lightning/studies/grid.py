"""Studies that distil and evaluate every combination of some arms and seeds."""

from __future__ import annotations

import statistics
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation import EvaluationSettings
from pdd_lightning.results.schema import DISTILLED, FULL
from pdd_lightning.results.tables import mean_and_spread, over_seeds
from pdd_lightning.studies.arms import Arm, Scoring, check_seeds, filled, fit_step
from pdd_lightning.studies.base import Study, read_json
from pdd_lightning.studies.recipe import dotted, overridden, readable
from pdd_lightning.studies.step import Step, option_words


@dataclass(frozen=True)
class GridSettings:
    """What all studies of distilled sets need to know.

    Attributes:
        num_classes: Classes of the data, for the number of optimiser steps.
        seeds: Distillation seeds; each also seeds the evaluation of its sets.
        evaluate: Options of `pdd evaluate` in place of the recipe's `evaluation`.
        part: Real images to score on. A study selects nothing, so that `test` is legitimate where no setting is
            chosen by its outcome.

    Raises:
        ConfigError: No seed, or a seed twice.
    """

    num_classes: int
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    evaluate: dict[str, Any] = field(default_factory=dict)
    part: Literal["val", "test"] = "val"

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        if self.num_classes < 2:
            raise ConfigError(f"num_classes must be >= 2, got {self.num_classes}")


class GridStudy(Study):
    """Distils each arm with each seed, and evaluates each set.

    Evaluation takes the settings of the recipe. Each arm's networks train for as many optimiser steps as those of the
    recipe's own stages do, up to rounding to whole epochs; the table states the number.

    Args:
        grid: What all such studies need to know.
    """

    def __init__(self, grid: GridSettings) -> None:
        self.grid = grid

    @abstractmethod
    def arms(self) -> list[Arm]:
        """What is compared."""

    def scorings(self) -> list[Scoring]:
        """How each set is evaluated."""
        return [Scoring()]

    def notes(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """What the numbers are."""
        return [
            "Accuracy: mean ± standard deviation over all networks, in %; the standard deviation of the seeds' means"
            f" says how much distillation itself varies. Distillation seeds: {', '.join(map(str, self.grid.seeds))}.",
            "Networks start from initialisations that no expert used. Random real images are drawn anew for each.",
            "Distillation seconds: experts, iterations and transitions together, mean ± standard deviation over the"
            " seeds. Evaluation seconds: of all networks together, mean over the seeds.",
        ]

    def steps(self, folder: Path) -> list[Step]:
        """Distils and evaluates each arm with each seed; arm by arm, so that seeds rarely wait for shared experts."""
        return [step for arm in self.arms() for seed in self.grid.seeds for step in self._arm_steps(arm, seed, folder)]

    def distil_steps(self, arm: Arm, seed: int, folder: Path) -> list[Step]:
        """Makes the distilled set of an arm; the last step leaves it in the run folder."""
        return [fit_step(f"{arm.run}/seed_{seed}", arm, seed, folder, arm.stages)]

    def rows(self, folder: Path) -> list[dict[str, Any]]:
        """One row per arm, way of evaluation, training set and protocol, over all seeds."""
        return [row for arm in self.arms() for scoring in self.scorings() for row in self._rows(arm, scoring, folder)]

    def epochs(self, arm: Arm) -> int:
        """Epochs of each evaluation phase, such that all arms take as many steps as the recipe's own stages."""
        settings = {**vars(EvaluationSettings()), **self.evaluation(arm)}
        epochs, batch = int(settings["epochs"]), int(settings["batch_size"])
        own = _steps_per_epoch(arm.recipe["stages.num_stages"], self._images(arm, arm.recipe["model.ipc"]), batch)
        return max(1, round(epochs * own / _steps_per_epoch(arm.stages, self._images(arm, arm.ipc), batch)))

    def _images(self, arm: Arm, ipc: int) -> int:
        """Training images of a stage."""
        return ipc * self.grid.num_classes * arm.recipe.images_per_stored_image

    def evaluation(self, arm: Arm) -> dict[str, Any]:
        """Settings of an arm's evaluation, by name: the recipe's with the study's in place."""
        return overridden(arm.recipe.section("evaluation"), dotted(self.grid.evaluate))

    def _arm_steps(self, arm: Arm, seed: int, folder: Path) -> list[Step]:
        steps = self.distil_steps(arm, seed, folder)
        return steps + [self._evaluate_step(arm, scoring, seed, folder, steps[-1]) for scoring in self.scorings()]

    def _evaluate_step(self, arm: Arm, scoring: Scoring, seed: int, folder: Path, made: Step) -> Step:
        options = {
            **self.evaluation(arm),
            "epochs": self.epochs(arm),
            **arm.evaluate,
            **scoring.options,
            "part": self.grid.part,
            "seed": seed,
            "output": str(readable(self._results(arm, scoring, seed, folder))),
        }
        path = str(readable(self.run_folder(arm, seed, folder) / "distilled.safetensors"))
        words = ("evaluate", path, *filled(arm.recipe.data_words(), seed, folder), *option_words(options))
        return Step(f"{arm.run}/seed_{seed}/{scoring.name}", words, after=(made.name,))

    def run_folder(self, arm: Arm, seed: int, folder: Path) -> Path:
        """Where an arm's distilled set lies."""
        return folder / "runs" / arm.run / f"seed_{seed}"

    def _results(self, arm: Arm, scoring: Scoring, seed: int, folder: Path) -> Path:
        return self.run_folder(arm, seed, folder) / f"{scoring.name}.json"

    def _rows(self, arm: Arm, scoring: Scoring, folder: Path) -> list[dict[str, Any]]:
        per_seed = [read_json(self._results(arm, scoring, seed, folder))["rows"] for seed in self.grid.seeds]
        figures = [self.figures(self._summaries(arm, seed, folder)) for seed in self.grid.seeds]
        iterations = {"iterations": arm.stages * arm.iterations, "iterations_per_stage": arm.iterations}
        rows = []
        for same in zip(*per_seed, strict=True):
            row = {**arm.labels, **scoring.labels, "stages": arm.stages, "ipc": arm.ipc, **_summary(same)}
            if row["row"] == FULL:
                del row["stages"], row["ipc"]
            rows.append(row | iterations | _means(figures) if row["row"].startswith(DISTILLED) else row)
        return rows

    def figures(self, summaries: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Numbers of a distillation from the summaries of its runs, for columns of their means over seeds."""
        stages = [stage for summary in summaries for stage in summary["stages"]]
        return {"distil_seconds": sum(sum(stage["seconds"].values()) for stage in stages)}

    def _summaries(self, arm: Arm, seed: int, folder: Path) -> list[dict[str, Any]]:
        return [read_json(path) for path in sorted(self.run_folder(arm, seed, folder).rglob("summary.json"))]


def _summary(same: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of each seed's evaluation, the same in all, as a row over seeds."""
    stage, last = same[0].get("stage"), same[0].get("num_stages")
    return {
        "row": same[0]["row"] if stage == last else f"{same[0]['row']}, after stage {stage}",
        "images": same[0]["images"],
        **over_seeds([one["accuracies"] for one in same]),
        "part": same[0]["part"],
        "protocol": same[0]["protocol"],
        "steps": same[0].get("steps"),
        "seconds": statistics.fmean(one["seconds"] for one in same),
    }


def _steps_per_epoch(stages: int, images: int, batch_size: int) -> int:
    """Steps of one epoch on each of the unions of 1 to `stages` sets of `images`."""
    return sum(-(-stage * images // batch_size) for stage in range(1, stages + 1))


def _means(figures: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Mean of each number over the seeds, and the spread."""
    means: dict[str, float | None] = {}
    for name in figures[0]:
        means[name], means[f"{name}_std"] = mean_and_spread([one[name] for one in figures])
    return means
