"""The kinds of studies: by accuracy, by what the images of stages are like, and by continual learning."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation import EvaluationSettings
from pdd_lightning.results.plots import add_legend, draw_continual, draw_methods, draw_rows
from pdd_lightning.results.schema import (
    AFTER,
    DISTILLED,
    FULL,
    ContinualRow,
    RunSummary,
    StatisticsRow,
    StepRow,
)
from pdd_lightning.results.tables import PARTS, STATISTICS, mean_and_spread, over_seeds
from pdd_lightning.stored import MAX_CLASSES, damaged_error, one_line, read_stored
from pdd_lightning.studies.arms import AS_RECIPE, Run, fit_step
from pdd_lightning.studies.definition import Row, Study
from pdd_lightning.studies.engine import Step
from pdd_lightning.studies.recipe import dotted, overridden, positive, read_yaml

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Column = Literal["real_images", "seconds_saved", "per_class", "of_images", "of_accuracy"]
"""Columns that a table has where a study asks for them."""


class AccuracyStudy(Study):
    """The accuracy of networks that are trained on the distilled sets of arms.

    Evaluation takes the settings of the recipe. Real images are evaluated beside the first arm with a method, and again
    where an arm is evaluated otherwise; random ones also where it has another number of images.

    Attributes:
        num_classes: Classes of the data.
        evaluate: Options of `pdd evaluate` in place of the recipe's `evaluation`.
        part: Real images to score on. A study selects nothing, so that `test` is legitimate where no setting is
            chosen by its outcome.
        match_steps: Whether each arm's networks train for as many optimiser steps as those of the recipe's own stages
            do, up to rounding to whole epochs; else each phase of an evaluation takes the recipe's epochs.
        columns: Further columns: the real images that a stage used, seconds of distillation saved to the first arm,
            images per class, and images and accuracy as fractions of those of the full real set.
        goal: A fraction of the full real set's accuracy: where arms of growing size reach it is said and drawn.
        x: Column to draw accuracy against.
        series: What the legend calls rows of distilled sets: names of columns in braces stand for their values.
        references: Names of rows (what networks were trained on) to draw as horizontal lines.
        log: Whether numbers stand on a logarithmic axis.
    """

    num_classes: int = Field(ge=2, le=MAX_CLASSES)
    evaluate: Row = Field(default_factory=dict)
    part: Literal["val", "test"] = "val"
    match_steps: bool = True
    columns: tuple[Column, ...] = ()
    goal: float | None = None
    x: str = "method"
    series: str = "{row}, {protocol}"
    references: tuple[str, ...] = ()
    log: bool = False

    command = "evaluate"
    kind = StepRow
    explanations = (
        "Accuracy: mean ± standard deviation over all networks, in %; the standard deviation of the seeds' means"
        " says how much distillation itself varies.",
        "Networks start from initialisations that no expert used. Random real images are drawn anew for each.",
        "Distillation seconds: experts, iterations and transitions together, mean ± standard deviation over the"
        " seeds. Evaluation seconds: of all networks together, mean over the seeds.",
    )

    def check(self) -> None:
        """Also refuses to compare with a full real set that is not evaluated, and a legend that cannot be written."""
        super().check()
        compares = self.goal is not None or {"of_images", "of_accuracy"} & set(self.columns)
        if compares and not all(self._evaluation(run).get("full_data_epochs") for run in self.runs):
            raise ConfigError("sets are compared with the full real set: give full_data_epochs > 0")
        try:
            self._series({"row": DISTILLED})
        except (ValueError, LookupError, AttributeError) as error:
            raise ConfigError(f"series must name columns in braces ({error}), got {self.series!r}") from error

    def options(self, run: Run) -> Row:
        """The recipe's settings with the study's in place, at equal steps, with real images where they are due."""
        evaluation = self._evaluation(run)
        if self.match_steps:
            evaluation["epochs"] = self._epochs(run, evaluation)
        earlier = self.runs[: self.runs.index(run)]
        alike = [one for one in earlier if (one.recipe, one.arm.evaluate) == (run.recipe, run.arm.evaluate)]
        if alike:
            evaluation["full_data_epochs"] = 0
        if any(one.stages * one.ipc == run.stages * run.ipc for one in alike):
            evaluation["baselines"] = []
        return {**evaluation, **dotted(run.arm.evaluate), "part": self.part}

    def row(self, run: Run, same: Sequence[Row], folder: Path) -> Row:
        """Accuracies of all networks, and for distilled sets what distilling them took."""
        first = same[0]
        name, stage = first["row"], first.get("stage")
        return {
            **run.labels,
            **({} if name == FULL else {"stages": run.stages, "ipc": run.ipc}),
            "row": name if stage == first.get("num_stages") else f"{name}, after stage {stage}",
            "images": first["images"],
            **over_seeds([one["accuracies"] for one in same]),
            "part": first["part"],
            "protocol": first["protocol"],
            "steps": first.get("steps"),
            "seconds": statistics.fmean(one["seconds"] for one in same),
            **(self._distillation(run, folder) if name.startswith(DISTILLED) else {}),
        }

    def rows(self, folder: Path) -> list[Row]:
        """Adds the columns that compare rows with others."""
        rows = super().rows(folder)
        whole = next(row["distil_seconds"] for row in rows if "distil_seconds" in row)
        for row in rows:
            values: Row = {"per_class": row["images"] // self.num_classes}
            for full in (one for one in rows if one["row"] == FULL):
                values["of_images"] = f"{100 * row['images'] / full['images']:.1f} %"
                values["of_accuracy"] = f"{100 * row['mean'] / full['mean']:.1f} %"
            if "distil_seconds" in row:
                values["seconds_saved"] = whole - row["distil_seconds"]
            row |= {name: values[name] for name in self.columns if name in values}
        return rows

    def remarks(self, rows: Sequence[Row]) -> list[str]:
        """Also says what arms change, and where the goal is reached."""
        changes = {name: arm.fit for name, arm in self.arms.items() if arm.fit}
        reached = {
            name: f"at about {size:.1f} images per class" if size else "not within these sizes"
            for name, size in self._crossings(rows).items()
        }
        return [
            *super().remarks(rows),
            f"Distillation seeds: {', '.join(map(str, self.seeds))}.",
            *(f"{self.column or 'arm'} {name}: {json.dumps(fit)}." for name, fit in changes.items()),
            *(f"{self.goal:.0%} of the full set's accuracy, {name}: {where}." for name, where in reached.items()),
        ]

    def plot(self, figure: Figure, rows: Sequence[Row]) -> None:
        """Accuracy against the column `x`, and the goal."""
        drawn = list(rows)
        if self.x == "stages" and self.budgets:  # the recipe's own run is part of the line of each budget
            names = [f"same {budget.replace('_', ' ')}" for budget in self.budgets]
            drawn = [{**row, "budget": name} for row in rows for name in names if row["budget"] in (name, AS_RECIPE)]
        axes = draw_rows(figure, drawn, self.x, self._series, self.references, self.log)
        if self.goal is not None:
            accuracy = 100 * self.goal * _full(rows)
            axes.axhline(accuracy, color="0.4", linestyle=":", label=f"{self.goal:.0%} of it")
            add_legend(axes)
            for size in filter(None, self._crossings(rows).values()):
                axes.annotate(f"{size:.0f}", (size, accuracy), (0, -14), textcoords="offset points", ha="center")

    def _evaluation(self, run: Run) -> Row:
        """The recipe's settings of the evaluation, by name, with the study's in place."""
        return overridden(run.recipe.section("evaluation"), dotted(self.evaluate))

    def _epochs(self, run: Run, evaluation: Row) -> int:
        """Epochs of each phase, such that all arms take as many steps as the recipe's own stages."""
        settings = {**vars(EvaluationSettings()), **evaluation}
        epochs, batch = (positive(run.recipe.path, name, settings[name]) for name in ("epochs", "batch_size"))

        def steps(stages: int, ipc: int) -> int:
            images = ipc * self.num_classes * run.recipe.images_per_stored_image
            return sum(-(-stage * images // batch) for stage in range(1, stages + 1))

        own = steps(run.recipe.number("stages.num_stages"), run.recipe.number("model.ipc"))
        return max(1, round(epochs * own / steps(run.stages, run.ipc)))

    def _distillation(self, run: Run, folder: Path) -> Row:
        """What the distillation took: means over seeds, and their spread."""
        runs = [sorted((folder / "runs" / run.name / f"seed_{seed}").rglob("summary.json")) for seed in self.seeds]
        stages = [[stage for path in paths for stage in read_stored(RunSummary, path).stages] for paths in runs]
        numbers = {
            "real_images": [statistics.fmean(stage.real_images or math.nan for stage in one) for one in stages],
            "distil_seconds": [sum(sum(stage.seconds.values()) for stage in one) for one in stages],
        }
        row: Row = {"iterations": run.stages * run.iterations, "iterations_per_stage": run.iterations}
        for name, values in numbers.items():
            if name in ("distil_seconds", *self.columns):
                row[name], row[f"{name}_std"] = mean_and_spread(values)
        return row

    def _series(self, row: Any) -> str:
        """What the legend calls a row."""
        template = self.series if row["row"].startswith(DISTILLED) else "{row}, {protocol}"
        return template.format_map(defaultdict(str, row))

    def _crossings(self, rows: Sequence[Row]) -> dict[str, float | None]:
        """Where training sets reach the goal, in images per class, by name and protocol."""
        if self.goal is None:
            return {}
        lines = defaultdict[str, list[tuple[float, float]]](list)
        for row in rows:
            if row["row"] != FULL:
                lines[f"{row['row']} ({row['protocol']})"].append((row["images"] / self.num_classes, row["mean"]))
        return {name: crossing(points, self.goal * _full(rows)) for name, points in lines.items()}


def _full(rows: Sequence[Row]) -> float:
    """The accuracy of the full real set."""
    return float(next(row["mean"] for row in rows if row["row"] == FULL))


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
            return float(size * (next_size / size) ** ((goal - below) / (above - below)))
    return None


class StageStatistics(Study):
    """How the images of stages differ from each other and from real images.

    Attributes:
        describe: Options of `pdd describe`.
    """

    describe: Row = Field(default_factory=dict)

    command = "describe"
    kind = StatisticsRow
    explanations = (
        "Each number: mean over the images of a row and over the seeds ± standard deviation of the seeds' means.",
        "low, middle, high: shares of the power spectrum in these thirds of the frequencies, of sum 1; variation:"
        " total variation; accuracy and confidence (both from 0 to 1) and silhouette (from -1 to 1): in networks"
        " trained on real images, of the image's label; nearest real: distance to the nearest real training image"
        " of the class, root mean square per pixel in model space.",
        "Held-out real images are the validation part, on which no network was trained.",
    )

    def options(self, run: Run) -> Row:
        """Options of `pdd describe`."""
        return dotted(self.describe)

    def row(self, run: Run, same: Sequence[Row], folder: Path) -> Row:
        """Mean of each number over seeds, and the spread."""
        if missing := [name for name in STATISTICS for one in same if name not in one]:
            raise damaged_error(folder / "runs" / run.name, f"{run.result}.json lacks {missing[0]}")
        row = {**run.labels, **{name: same[0][name] for name in ("row", "stage", "images")}, "seeds": len(same)}
        for name in STATISTICS:
            row[name], row[f"{name}_std"] = mean_and_spread([one[name] for one in same])
        return row

    def plot(self, figure: Figure, rows: Sequence[Row]) -> None:
        """Each number against the stage."""
        draw_methods(figure, [{**row, "method": ", ".join(row[name] for name in self.runs[0].labels)} for row in rows])


class ContinualLearning(Study):
    """Distilled images as memory for classes that come task by task.

    Each arm is distilled once per task, from the images of the task's classes alone. Memories that are no distilled
    images are learned with beside the first arm.

    Attributes:
        tasks: Number of tasks.
        continual: Options of `pdd continual`.
        part: Real images to score on.
    """

    tasks: int = Field(ge=2, le=MAX_CLASSES)
    continual: Row = Field(default_factory=dict)
    part: Literal["val", "test"] = "val"

    command = "continual"
    kind = ContinualRow
    explanations = (
        "Accuracy: on all classes after the last task; mean ± standard deviation over all networks, in %. Each seed"
        " has an order of the classes and distilled sets of its own.",
        "after N: the mean of that accuracy after N tasks, on the classes so far.",
        "Forgetting: mean over earlier tasks of the best former accuracy less the final one, in %.",
        "gdumb: a fresh network after each task, trained on the memory alone. replay: one network, trained on each"
        " task's real images and, as often, on the memory of the earlier tasks.",
        "The memory of a task is made of its own images alone; images: in the memory of all tasks.",
    )

    def check(self) -> None:
        """Also refuses memories of different size."""
        super().check()
        sizes = {run.name: run.stages * run.ipc for run in self.runs}
        if len(set(sizes.values())) > 1:
            raise ConfigError(f"memories of different size do not compare: images per class are {sizes}")

    def steps_of(self, run: Run, seed: int, folder: Path) -> list[Step]:
        """Distils the sets of all tasks, and learns the tasks with them."""
        names = [f"{run.name}/seed_{seed}/task_{task}" for task in range(1, self.tasks + 1)]
        real = {f"data.real.real{name.removeprefix('data')}": value for name, value in run.recipe.data().items()}
        tasks = {"data.real": "pdd_lightning.data.ClassTask", **real, "data.real.tasks": self.tasks}
        fits = [
            fit_step(run, name, seed, folder, {**tasks, "data.real.task": task, "data.real.order_seed": seed})
            for task, name in enumerate(names, 1)
        ]
        return [*fits, self.evaluate_step(run, seed, folder, names, fits)]

    def options(self, run: Run) -> Row:
        """Options of `pdd continual`."""
        memories = {} if run == self.runs[0] else {"memories": [DISTILLED]}
        return {**dotted(self.continual), **memories, "part": self.part}

    def row(self, run: Run, same: Sequence[Row], folder: Path) -> Row:
        """One memory and protocol over all seeds."""
        first = same[0]
        if len({len(one["average_accuracy"]) for one in same}) > 1:
            raise damaged_error(folder / "runs" / run.name, f"{run.result}.json differ in their number of tasks")
        averages = zip(*(one["average_accuracy"] for one in same), strict=True)
        return {
            **(run.labels if first["row"] == DISTILLED else dict.fromkeys(run.labels)),
            "memory": first["row"],
            **{name: first[name] for name in ("protocol", "images", "part")},
            **over_seeds([one["accuracies"] for one in same]),
            "forgetting": statistics.fmean(one["forgetting"] for one in same),
            **{f"{AFTER}{task}": statistics.fmean(values) for task, values in enumerate(averages, 1)},
            "seconds": statistics.fmean(one["seconds"] for one in same),
        }

    def rows(self, folder: Path) -> list[Row]:
        """Those of one protocol after those of the other."""
        return sorted(super().rows(folder), key=lambda row: str(row["protocol"]))

    def plot(self, figure: Figure, rows: Sequence[Row]) -> None:
        """Accuracy as tasks arrive."""
        names = ("memory", *self.runs[0].labels)
        drawn = [
            {
                **row,
                "row": ", ".join(row[name] for name in names if row[name]),
                "average_accuracy": [value for name, value in row.items() if name.startswith(AFTER)],
            }
            for row in rows
        ]
        draw_continual(figure, drawn, f"{self.tasks} tasks; {PARTS[self.part]}; bars: standard deviation over networks")


KINDS: dict[str, type[Study]] = {kind.command: kind for kind in (AccuracyStudy, StageStatistics, ContinualLearning)}


def read_study(path: Path) -> Study:
    """Reads a study; its entry `command` says which kind it is, by default `evaluate`.

    Raises:
        ConfigError: It cannot be read, or an entry is not what it must be.
    """
    content = read_yaml(path)
    command = content.pop("command", AccuracyStudy.command)
    if not isinstance(command, str) or command not in KINDS:
        raise ConfigError(f"{path}: command must be one of {', '.join(KINDS)}, got {command!r}")
    try:
        return KINDS[command].model_validate(content)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ConfigError(f"{path} is no study: {one_line('; '.join(wrong))}") from error
