"""Models of runs, stages, evaluated rows and studies, in memory and in JSON files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from pdd_lightning.files import atomic_write_json
from pdd_lightning.stored import MAX_CLASSES, MAX_STAGES, Count, Json, Name, Rate, Seconds, Share, Stored

DISTILLED, RANDOM, FULL = "distilled", "random real", "full real"
"""Names of rows: what the networks were trained on."""
ACCURACIES = ("mean", "std", "seed_std", "forgetting", "val_accuracy")
"""Columns that hold accuracies in [0, 1], their differences or standard deviations."""
AFTER = "after_"
"""Prefix of columns that hold the accuracy after a number of tasks."""


def _check_numbers(row: Json) -> Json:
    """Refuse a row with anything but numbers in the columns that are shown as numbers."""
    for name, value in row.items():
        accuracy = name in ACCURACIES or name.startswith(AFTER)
        if value is None or not (accuracy or name.endswith("_std")):
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or (accuracy and not -1 <= float(value) <= 1 and value == value):
            raise ValueError(f"{name}: expected {'an accuracy from 0 to 1' if accuracy else 'a number'}")
    return row


Row = Annotated[Json, AfterValidator(_check_numbers)]
"""A row of any table, by column."""


class StageReport(Stored):
    """Results of a finished stage.

    Attributes:
        images: Images in the union after the stage.
        learned_lr: Learning rate learned in the stage, if any.
        lr_img: Learning rate of the images at the end of the stage.
        first_loss: Mean matching loss over the first twentieth of the iterations.
        last_loss: Mean matching loss over the last twentieth of the iterations.
        val_accuracy: Start-point accuracy: mean validation accuracy in [0, 1] of the networks from which the next stage
            starts, which were trained on all sets so far.
        val_std: Standard deviation of that accuracy over the networks.
        seconds: Time summed over the networks: `experts` (training experts, and in the first stage networks for
            forgetting scores), `distil` (including renewals of the pool of networks), and `transition` (training on
            the union after the stage).
        peak_memory_mb: Highest memory use so far, of the GPU or else of the process, in MB.
        real_images: Real training examples that the stage used; unknown in reports of earlier versions.
    """

    stage: Annotated[int, Field(ge=1, le=MAX_STAGES)]
    images: Count
    learned_lr: Rate | None = None
    lr_img: Annotated[float, Field(gt=0)]
    first_loss: float
    last_loss: float
    val_accuracy: Share
    val_std: Share
    val_networks: Count
    seconds: dict[Name, Seconds]
    peak_memory_mb: Annotated[float, Field(ge=0)]
    real_images: Count | None = None

    def row(self) -> dict[str, Any]:
        """Return the report as a row of a table."""
        return {**self.model_dump(), **{f"{part}_seconds": time for part, time in self.seconds.items()}}


class EvaluatedRow(Stored, extra="allow"):
    """Scores of networks that were trained on the same images in the same way.

    Further entries say how they were trained and scored, see `pdd_lightning.evaluation.plan.PlannedRow.about`.

    Attributes:
        row: What they were trained on.
        protocol: How networks are trained on a staged set.
        stage: The stage after which they were scored, of `num_stages`.
        images: Number of stored training images.
        steps: Optimizer steps of each network.
        mean: Mean accuracy in [0, 1].
        std: Sample standard deviation of the accuracy over the networks; 0 for a single one.
        n: Number of networks.
        seconds: Time summed over the networks.
    """

    __pydantic_extra__: Json = Field(init=False)
    row: Name
    part: Name
    protocol: Name = "not stated"
    stage: Count | None = None
    num_stages: Count | None = None
    images: Count | None = None
    steps: Count | None = None
    mean: Share
    std: Share | None = None
    n: Count | None = None
    accuracies: list[Share] = Field(default=[])
    per_class: dict[Name, Share] = Field(default={}, max_length=MAX_CLASSES)
    seconds: Seconds | None = None

    @model_validator(mode="after")
    def check(self) -> EvaluatedRow:
        """Refuse entries that are not numbers, and a number of accuracies other than that of networks."""
        _check_numbers(self.model_extra or {})
        if self.n is not None and self.accuracies and self.n != len(self.accuracies):
            raise ValueError(f"n: {len(self.accuracies)} accuracies are not those of {self.n} networks")
        return self


class StepRow(Stored):
    """The entries of a row of `pdd evaluate` that a study summarizes."""

    row: Name
    protocol: Name
    part: Name
    images: Count
    stage: Count | None = None
    num_stages: Count | None = None
    steps: Count | None = None
    accuracies: Annotated[list[Share], Field(min_length=1)]
    seconds: Seconds


class ContinualRow(StepRow):
    """A row of `pdd continual`."""

    forgetting: Annotated[float, Field(ge=-1, le=1)]
    average_accuracy: Annotated[list[Share], Field(min_length=2)]


class StatisticsRow(Stored, extra="allow", allow_inf_nan=True):
    """A row of `pdd describe`: statistics by name."""

    __pydantic_extra__: dict[str, float] = Field(init=False)
    row: Name
    stage: Count | None
    images: Count


def _check_order(reports: list[StageReport]) -> list[StageReport]:
    if [report.stage for report in reports] != list(range(1, len(reports) + 1)):
        raise ValueError("stages must be 1, 2, .. in order")
    return reports


class RunSummary(Stored):
    """The content of a run's `summary.json`.

    Attributes:
        dataset: `name` of the real images, and `fingerprint`, a hash of their content.
        settings: Settings of the method.
    """

    package_version: Name | None = None
    dataset: dict[Name, Name] = Field(default={})
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    settings: Json = Field(default={})
    stages: Annotated[list[StageReport], AfterValidator(_check_order)] = Field(default=[])
    evaluation: list[EvaluatedRow] = Field(default=[])


class StudyStep(Stored):
    """A step of a study: its command line, and the seconds that it took."""

    name: str = ""
    command: str
    seconds: Seconds | None = None


class StudyResult(Stored, allow_inf_nan=True):
    """The content of a study's `study.json`.

    Attributes:
        study: Name of its class.
        notes: Remarks below the table.
        rows: Rows of the table, in which numbers may be missing (NaN).
    """

    study: Name | None = None
    title: str = ""
    notes: list[str] = Field(default=[])
    package_version: Name | None = None
    rows: list[Row] = Field(default=[])
    steps: list[StudyStep] = Field(default=[])


def write_stored(path: Path, stored: Stored) -> None:
    """Write a JSON file atomically."""
    atomic_write_json(path, stored.model_dump())
