"""Distilled images as memory for classes that come task by task."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pdd_lightning.errors import ConfigError
from pdd_lightning.results.plots import draw_continual
from pdd_lightning.results.tables import AFTER, over_seeds
from pdd_lightning.studies.arms import Arm, Method, check_methods, check_seeds, filled, fit_step, own_arm
from pdd_lightning.studies.base import Study, read_json
from pdd_lightning.studies.recipe import Recipe, dotted, readable
from pdd_lightning.studies.step import Step, option_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DISTILLED = "distilled"


class ContinualLearning(Study):
    """Distilled images as memory for classes that come task by task.

    Each recipe is distilled once per task, from the images of the task's classes alone. Memories that are no distilled
    images are learned with beside the first recipe.

    Args:
        methods: Recipes of the memory; all with the same number of images per class.
        tasks: Number of tasks.
        seeds: Seeds of distillation, of the order of the classes, and of the networks.
        continual: Options of `pdd continual`.
        part: Real images to score on.

    Raises:
        ConfigError: There are fewer than two tasks, no method, no seed, a seed twice, or methods differ in their
            number of images.
    """

    def __init__(
        self,
        methods: list[Method],
        tasks: int,
        seeds: list[int],
        continual: dict[str, Any] | None = None,
        part: Literal["val", "test"] = "val",
    ) -> None:
        check_methods(methods)
        check_seeds(seeds)
        if tasks < 2:
            raise ConfigError(f"learning one task after another needs two tasks or more, got {tasks}")
        self.methods = methods
        self.tasks = tasks
        self.seeds = seeds
        self.continual = dotted(continual or {})
        self.part = part
        sizes = {arm.labels["method"]: arm.stages * arm.ipc for arm in map(own_arm, methods)}
        if len(set(sizes.values())) > 1:
            raise ConfigError(f"memories of different size do not compare: images per class are {sizes}")

    def notes(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """What the numbers are."""
        return [
            "Accuracy: on all classes after the last task; mean ± standard deviation over all networks, in %. Each seed"
            " has an order of the classes and distilled sets of its own.",
            "after N: the mean of that accuracy after N tasks, on the classes so far.",
            "Forgetting: mean over earlier tasks of the best former accuracy less the final one, in %.",
            "gdumb: a fresh network after each task, trained on the memory alone. replay: one network, trained on each"
            " task's real images and, as often, on the memory of the earlier tasks.",
            "The memory of a task is made of its own images alone; images: in the memory of all tasks.",
        ]

    def steps(self, folder: Path) -> list[Step]:
        """Distils the sets of all tasks, and learns the tasks with them."""
        return [
            step
            for seed in self.seeds
            for number, method in enumerate(self.methods)
            for step in self._arm_steps(own_arm(method), seed, folder, {} if number == 0 else {"memories": [DISTILLED]})
        ]

    def rows(self, folder: Path) -> list[dict[str, Any]]:
        """One row per memory and protocol."""
        rows = []
        for arm in map(own_arm, self.methods):
            per_seed = [read_json(_results(arm, seed, folder))["rows"] for seed in self.seeds]
            for same in zip(*per_seed, strict=True):
                rows.append({"method": arm.labels["method"] if same[0]["row"] == DISTILLED else None, **_row(same)})
        return sorted(rows, key=lambda row: row["protocol"])

    def plot(self, figure: Figure, rows: Sequence[dict[str, Any]]) -> None:
        """Accuracy as tasks arrive."""
        after = [name for name in rows[0] if name.startswith(AFTER)]
        drawn = [
            {
                **row,
                "row": f"{row['memory']}, {row['method']}" if row["method"] else row["memory"],
                "average_accuracy": [row[name] for name in after],
            }
            for row in rows
        ]
        part = {"val": "validation"}.get(self.part, self.part)
        draw_continual(figure, drawn, f"{self.tasks} tasks; {part} part; bars: standard deviation over networks")

    def _arm_steps(self, arm: Arm, seed: int, folder: Path, options: dict[str, Any]) -> list[Step]:
        name = f"{arm.run}/seed_{seed}"
        data_words = filled(arm.recipe.data_words(), seed, folder)
        fits = [
            fit_step(f"{name}/task_{task}", self._task_arm(arm, task, seed), seed, folder, arm.stages)
            for task in range(1, self.tasks + 1)
        ]
        sets = [str(readable(folder / "runs" / Path(fit.name).parent / "distilled.safetensors")) for fit in fits]
        own = {"part": self.part, "seed": seed, "output": str(readable(_results(arm, seed, folder)))}
        words = ("continual", *sets, *data_words, *option_words({**self.continual, **options, **own}))
        return [*fits, Step(f"{name}/continual", words, after=tuple(fit.name for fit in fits))]

    def _task_arm(self, arm: Arm, task: int, seed: int) -> Arm:
        """An arm whose data are those of one task."""
        whole = arm.recipe.section("data.real")
        kind = whole.pop("class_path", arm.recipe.settings.get("data.real"))
        data = {
            "data.real": "pdd_lightning.data.ClassTask",
            "data.real.real": kind,
            **{f"data.real.real.{name}": value for name, value in whole.items()},
            "data.real.tasks": self.tasks,
            "data.real.task": task,
            "data.real.order_seed": seed,
        }
        changes = {name: value for name, value in arm.recipe.changes.items() if not name.startswith("data.real")}
        return replace(arm, recipe=Recipe(arm.recipe.path, changes), options={**arm.options, **data})


def _results(arm: Arm, seed: int, folder: Path) -> Path:
    return folder / "runs" / arm.run / f"seed_{seed}" / "continual.json"


def _row(same: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One memory and protocol over all seeds."""
    averages = zip(*(one["average_accuracy"] for one in same), strict=True)
    return {
        "memory": same[0]["row"],
        "protocol": same[0]["protocol"],
        "images": same[0]["images"],
        **over_seeds([one["accuracies"] for one in same]),
        "forgetting": statistics.fmean(one["forgetting"] for one in same),
        **{f"{AFTER}{task}": statistics.fmean(values) for task, values in enumerate(averages, 1)},
        "part": same[0]["part"],
        "seconds": statistics.fmean(one["seconds"] for one in same),
    }
