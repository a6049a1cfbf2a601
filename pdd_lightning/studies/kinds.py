"""The kinds of studies: of accuracy, of the statistics of stages, and of continual learning."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation import EvaluationSettings
from pdd_lightning.results.plots import add_legend, draw_continual, draw_methods, draw_rows
from pdd_lightning.results.schema import AFTER, DISTILLED, FULL, ContinualRow, RunSummary, StatisticsRow, StepRow
from pdd_lightning.results.tables import PARTS, STATISTICS, flatten, mean_and_std, summarize_seeds
from pdd_lightning.stored import MAX_CLASSES, damaged_error, one_line, read_stored
from pdd_lightning.studies.arms import OWN_STAGES, Run, budget_label, fit_step
from pdd_lightning.studies.definition import Row, Study
from pdd_lightning.studies.engine import Step
from pdd_lightning.studies.recipe import override, read_yaml

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class AccuracyStudy(Study):
    """The accuracy of networks that are trained on the distilled sets of arms.

    The evaluation has the settings of the recipe. Real images are evaluated beside the first arm of a method, and again
    if an arm is evaluated otherwise; random ones also if an arm has another number of images.

    Attributes:
        num_classes: Classes of the data.
        evaluate: Options of `pdd evaluate` in place of the recipe's `evaluation`.
        part: Real images to score on. As a study selects nothing, `test` is legitimate if no setting is chosen by its
            results.
        match_steps: Whether the networks of all arms take as many optimizer steps as those of the recipe's own stages,
            up to rounding to whole epochs; else each phase of an evaluation takes the recipe's epochs.
        columns: Further columns: real images that a stage used, seconds of distillation saved relative to the first
            arm, images per class, and images and accuracy as fractions of those of the full real set.
        goal: A fraction of the full real set's accuracy; the size at which arms reach it is stated and drawn.
        x: Column to draw accuracy against.
        series: Legend of distilled sets; names of columns in braces stand for their values.
        references: Names of rows (what networks were trained on) to draw as horizontal lines.
        log: Whether the x axis is logarithmic.
    """

    num_classes: int = Field(ge=2, le=MAX_CLASSES)
    evaluate: Row = Field(default_factory=dict)
    part: Literal["val", "test"] = "val"
    match_steps: bool = True
    columns: tuple[Literal["real_images", "seconds_saved", "per_class", "of_images", "of_accuracy"], ...] = ()
    goal: float | None = None
    x: str = "method"
    series: str = "{row}, {protocol}"
    references: tuple[str, ...] = ()
    log: bool = False

    command = "evaluate"
    row_model = StepRow
    explanations = (
        "Accuracy: mean ± standard deviation over all networks, in %; the standard deviation of the seeds' means"
        " says how much distillation itself varies.",
        "Networks start from initializations that no expert used. Random real images are drawn anew for each.",
        "Distillation seconds: experts, iterations and transitions together, mean ± standard deviation over the"
        " seeds. Evaluation seconds: of all networks together, mean over the seeds.",
    )

    def check(self) -> None:
        """Also check that the full real set is evaluated if it is compared with, and that the legend can be written."""
        super().check()
        compares = self.goal is not None or {"of_images", "of_accuracy"} & set(self.columns)
        if compares and not all(self._evaluation(run).get("full_data_epochs") for run in self.runs):
            raise ConfigError("sets are compared with the full real set: give full_data_epochs > 0")
        try:
            self._legend({"row": DISTILLED})
        except (ValueError, LookupError, AttributeError) as error:
            raise ConfigError(f"series must name columns in braces ({error}), got {self.series!r}") from error

    def options(self, run: Run) -> Row:
        """Return the settings of the evaluation, with real images unless an earlier run has them."""
        evaluation = self._evaluation(run)
        if self.match_steps:
            evaluation["epochs"] = self._epochs(run, evaluation)
        earlier = self.runs[: self.runs.index(run)]
        alike = [other for other in earlier if (other.recipe, other.arm.evaluate) == (run.recipe, run.arm.evaluate)]
        if alike:
            evaluation["full_data_epochs"] = 0
        if any(other.stages * other.ipc == run.stages * run.ipc for other in alike):
            evaluation["baselines"] = []
        return {**evaluation, **flatten(run.arm.evaluate), "part": self.part}

    def row(self, run: Run, seed_rows: Sequence[Row], folder: Path) -> Row:
        """Return accuracies of all networks, and the cost of distilled sets."""
        first = seed_rows[0]
        name, stage = first["row"], first["stage"]
        return {
            **run.labels,
            **({} if name == FULL else {"stages": run.stages, "ipc": run.ipc}),
            "row": name if stage == first["num_stages"] else f"{name}, after stage {stage}",
            "images": first["images"],
            **summarize_seeds([row["accuracies"] for row in seed_rows]),
            **{column: first[column] for column in ("part", "protocol", "steps")},
            "seconds": statistics.fmean(row["seconds"] for row in seed_rows),
            **(self._cost(run, folder) if name.startswith(DISTILLED) else {}),
        }

    def rows(self, folder: Path) -> list[Row]:
        """Also add the columns that compare rows."""
        rows = super().rows(folder)
        first_seconds = next(row["distil_seconds"] for row in rows if "distil_seconds" in row)
        for row in rows:
            values: Row = {"per_class": row["images"] // self.num_classes}
            for full in (other for other in rows if other["row"] == FULL):
                values["of_images"] = f"{100 * row['images'] / full['images']:.1f} %"
                values["of_accuracy"] = f"{100 * row['mean'] / full['mean']:.1f} %"
            if "distil_seconds" in row:
                values["seconds_saved"] = first_seconds - row["distil_seconds"]
            row |= {name: values[name] for name in self.columns if name in values}
        return rows

    def remarks(self, rows: Sequence[Row]) -> list[str]:
        """Also state the options of the arms, and where the goal is reached."""
        changes = {name: arm.fit for name, arm in self.arms.items() if arm.fit}
        reached = {
            name: f"at about {size:.1f} images per class" if size else "not within these sizes"
            for name, size in self._sizes_at_goal(rows).items()
        }
        return [
            *super().remarks(rows),
            f"Distillation seeds: {', '.join(map(str, self.seeds))}.",
            *(f"{self.column or 'arm'} {name}: {json.dumps(fit)}." for name, fit in changes.items()),
            *(f"{self.goal:.0%} of the full set's accuracy, {name}: {size}." for name, size in reached.items()),
        ]

    def plot(self, figure: Figure, rows: Sequence[Row]) -> None:
        """Draw accuracy against the column `x`, and the goal."""
        drawn = list(rows)
        if self.x == "stages" and self.budgets:  # the recipe's own run belongs to the line of each budget
            labels = [budget_label(budget) for budget in self.budgets]
            drawn = [
                {**row, "budget": label} for row in rows for label in labels if row["budget"] in (label, OWN_STAGES)
            ]
        axes = draw_rows(figure, drawn, self.x, self._legend, self.references, self.log)
        if self.goal is not None:
            accuracy = 100 * self.goal * _full_accuracy(rows)
            axes.axhline(accuracy, color="0.4", linestyle=":", label=f"{self.goal:.0%} of it")
            add_legend(axes)
            for size in filter(None, self._sizes_at_goal(rows).values()):
                axes.annotate(f"{size:.0f}", (size, accuracy), (0, -14), textcoords="offset points", ha="center")

    def _evaluation(self, run: Run) -> Row:
        return override(run.recipe.section("evaluation"), flatten(self.evaluate))

    def _epochs(self, run: Run, evaluation: Row) -> int:
        """Return epochs of each phase with which a run takes as many steps as the recipe's own stages."""
        settings = {**vars(EvaluationSettings()), **evaluation}
        epochs, batch = (run.recipe.count(name, settings[name]) for name in ("epochs", "batch_size"))

        def steps(stages: int, ipc: int) -> int:
            images = ipc * self.num_classes * run.recipe.images_per_stored_image
            return sum(-(-stage * images // batch) for stage in range(1, stages + 1))

        own_steps = steps(run.recipe.count("stages.num_stages"), run.recipe.count("model.ipc"))
        return max(1, round(epochs * own_steps / steps(run.stages, run.ipc)))

    def _cost(self, run: Run, folder: Path) -> Row:
        """Return iterations, and means and standard deviations over seeds of seconds and real images."""
        paths = [sorted((folder / "runs" / run.name / f"seed_{seed}").rglob("summary.json")) for seed in self.seeds]
        seeds = [[stage for path in found for stage in read_stored(RunSummary, path).stages] for found in paths]
        columns = {
            "real_images": [statistics.fmean(stage.real_images or math.nan for stage in stages) for stages in seeds],
            "distil_seconds": [sum(sum(stage.seconds.values()) for stage in stages) for stages in seeds],
        }
        row: Row = {"iterations": run.stages * run.iterations, "iterations_per_stage": run.iterations}
        for name, values in columns.items():
            if name in ("distil_seconds", *self.columns):
                row[name], row[f"{name}_std"] = mean_and_std(values)
        return row

    def _legend(self, row: Any) -> str:
        template = self.series if row["row"].startswith(DISTILLED) else "{row}, {protocol}"
        return template.format_map(defaultdict(str, row))

    def _sizes_at_goal(self, rows: Sequence[Row]) -> dict[str, float | None]:
        """Return the images per class at which training sets reach the goal, by name and protocol."""
        if self.goal is None:
            return {}
        points = defaultdict[str, list[tuple[float, float]]](list)
        for row in rows:
            if row["row"] != FULL:
                points[f"{row['row']} ({row['protocol']})"].append((row["images"] / self.num_classes, row["mean"]))
        return {name: size_at(line, self.goal * _full_accuracy(rows)) for name, line in points.items()}


def _full_accuracy(rows: Sequence[Row]) -> float:
    return float(next(row["mean"] for row in rows if row["row"] == FULL))


def size_at(points: Sequence[tuple[float, float]], accuracy: float) -> float | None:
    """Return the size at which `(size, accuracy)` points, joined on a logarithmic axis, first reach an accuracy."""
    ordered = sorted(points)
    reached = [index for index, (_, value) in enumerate(ordered) if value >= accuracy]
    if not reached or reached[0] == 0:
        return ordered[0][0] if reached else None
    (size, below), (next_size, above) = ordered[reached[0] - 1 : reached[0] + 1]
    return float(size * (next_size / size) ** ((accuracy - below) / (above - below)))


class StageStatistics(Study):
    """Statistics of the images of stages and of real images.

    Attributes:
        describe: Options of `pdd describe`.
    """

    describe: Row = Field(default_factory=dict)

    command = "describe"
    row_model = StatisticsRow
    explanations = (
        "Each number: mean over the images of a row and over the seeds ± standard deviation of the seeds' means.",
        "low, middle, high: shares of the power spectrum in these thirds of the frequencies, of sum 1; variation:"
        " total variation; accuracy and confidence (both from 0 to 1) and silhouette (from -1 to 1): in networks"
        " trained on real images, of the image's label; nearest real: distance to the nearest real training image"
        " of the class, root mean square per pixel in model space.",
        "Held-out real images are the validation part, on which no network was trained.",
    )

    def options(self, run: Run) -> Row:
        """Return options of `pdd describe`."""
        return flatten(self.describe)

    def row(self, run: Run, seed_rows: Sequence[Row], folder: Path) -> Row:
        """Return the mean of each statistic over seeds, and its standard deviation."""
        if missing := [name for name in STATISTICS for row in seed_rows if name not in row]:
            raise damaged_error(folder / "runs" / run.name, f"{run.result}.json lacks {missing[0]}")
        columns = {name: seed_rows[0][name] for name in ("row", "stage", "images")}
        summary = {**run.labels, **columns, "seeds": len(seed_rows)}
        for name in STATISTICS:
            summary[name], summary[f"{name}_std"] = mean_and_std([row[name] for row in seed_rows])
        return summary

    def plot(self, figure: Figure, rows: Sequence[Row]) -> None:
        """Draw each statistic against the stage."""
        draw_methods(figure, [{**row, "method": ", ".join(row[name] for name in self.runs[0].labels)} for row in rows])


class ContinualLearning(Study):
    """Distilled images as memory for classes that arrive task by task.

    Each arm is distilled once per task, from the images of the task's classes alone. Other memories are evaluated
    beside the first arm.

    Attributes:
        tasks: Number of tasks.
        continual: Options of `pdd continual`.
        part: Real images to score on.
    """

    tasks: int = Field(ge=2, le=MAX_CLASSES)
    continual: Row = Field(default_factory=dict)
    part: Literal["val", "test"] = "val"

    command = "continual"
    row_model = ContinualRow
    explanations = (
        "Accuracy: on all classes after the last task; mean ± standard deviation over all networks, in %. Each seed"
        " has an order of the classes and distilled sets of its own.",
        "after N: the mean of that accuracy after N tasks, on the classes so far.",
        "Forgetting: mean over earlier tasks of the best former accuracy minus the final one, in %.",
        "gdumb: a fresh network after each task, trained on the memory alone. replay: one network, trained on each"
        " task's real images and, as often, on the memory of the earlier tasks.",
        "The memory of a task is made from its own images only; images: in the memory of all tasks.",
    )

    def check(self) -> None:
        """Also check that all memories have the same size."""
        super().check()
        sizes = {run.name: run.stages * run.ipc for run in self.runs}
        if len(set(sizes.values())) > 1:
            raise ConfigError(f"memories of different size do not compare: images per class are {sizes}")

    def steps_of(self, run: Run, seed: int, folder: Path) -> list[Step]:
        """Return the steps that distill the sets of all tasks, and learn the tasks with them."""
        names = [f"{run.name}/seed_{seed}/task_{task}" for task in range(1, self.tasks + 1)]
        real = {f"data.real.real{name.removeprefix('data')}": value for name, value in run.recipe.data().items()}
        data = {"data.real": "pdd_lightning.data.ClassTask", **real, "data.real.tasks": self.tasks}
        fits = [
            fit_step(run, name, seed, folder, {**data, "data.real.task": task, "data.real.order_seed": seed})
            for task, name in enumerate(names, 1)
        ]
        return [*fits, self.evaluate_step(run, seed, folder, names, fits)]

    def options(self, run: Run) -> Row:
        """Return options of `pdd continual`."""
        memories = {} if run == self.runs[0] else {"memories": [DISTILLED]}
        return {**flatten(self.continual), **memories, "part": self.part}

    def row(self, run: Run, seed_rows: Sequence[Row], folder: Path) -> Row:
        """Summarize a memory and protocol over seeds."""
        first = seed_rows[0]
        if len({len(row["average_accuracy"]) for row in seed_rows}) > 1:
            raise damaged_error(folder / "runs" / run.name, f"{run.result}.json differ in their number of tasks")
        averages = zip(*(row["average_accuracy"] for row in seed_rows), strict=True)
        return {
            **(run.labels if first["row"] == DISTILLED else dict.fromkeys(run.labels)),
            "memory": first["row"],
            **{name: first[name] for name in ("protocol", "images", "part")},
            **summarize_seeds([row["accuracies"] for row in seed_rows]),
            "forgetting": statistics.fmean(row["forgetting"] for row in seed_rows),
            **{f"{AFTER}{task}": statistics.fmean(values) for task, values in enumerate(averages, 1)},
            "seconds": statistics.fmean(row["seconds"] for row in seed_rows),
        }

    def rows(self, folder: Path) -> list[Row]:
        """Also sort rows by protocol."""
        return sorted(super().rows(folder), key=lambda row: str(row["protocol"]))

    def plot(self, figure: Figure, rows: Sequence[Row]) -> None:
        """Draw accuracy after each task."""
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
    """Read a study; its entry `command` selects the kind, by default `evaluate`.

    Raises:
        ConfigError: It cannot be read, or an entry is wrong.
    """
    content = read_yaml(path)
    command = content.pop("command", AccuracyStudy.command)
    if not isinstance(command, str) or command not in KINDS:
        raise ConfigError(f"{path}: command must be one of {', '.join(KINDS)}, got {command!r}")
    try:
        return KINDS[command].model_validate(content)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, details['loc']))}: {details['msg']}" for details in error.errors()]
        raise ConfigError(f"{path} is no study: {one_line('; '.join(wrong))}") from error
