"""What a run, a stage, an evaluated row and a study are, in memory and in their JSON files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from pdd_lightning.files import atomic_write_json
from pdd_lightning.stored import MAX_CLASSES, MAX_STAGES, Count, Json, Name, Rate, Seconds, Share, Stored

DISTILLED, RANDOM, FULL = "distilled", "random real", "full real"
"""Names of the rows that every evaluation may have: what the networks were trained on."""
ACCURACIES = ("mean", "std", "seed_std", "forgetting", "val_accuracy")
"""Columns that hold accuracies in [0, 1], differences of them, or their spread."""
AFTER = "after_"
"""How columns begin that hold the accuracy after so many tasks."""


def _row(row: Json) -> Json:
    """Refuses columns that are shown as numbers, and are none."""
    for name, value in row.items():
        accuracy = name in ACCURACIES or name.startswith(AFTER)
        if value is None or not (accuracy or name.endswith("_std")):
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or (accuracy and not -1 <= float(value) <= 1 and value == value):
            raise ValueError(f"{name}: expected {'an accuracy from 0 to 1' if accuracy else 'a number'}")
    return row


Row = Annotated[Json, AfterValidator(_row)]
"""A row of any table, by name of the column."""


class StageReport(Stored):
    """Figures of one finished stage.

    Attributes:
        stage: Number of the stage, from 1.
        images: Images in the union after the stage.
        learned_lr: Learning rate learned in the stage, if any.
        lr_img: Learning rate of the images at the end of the stage.
        first_loss: Mean matching loss over the first twentieth of the iterations.
        last_loss: Mean matching loss over the last twentieth of the iterations.
        val_accuracy: Start-point accuracy: of the networks trained through all sets so far, from which the next stage
            starts, on the validation part; mean over the networks, in [0, 1].
        val_std: Standard deviation of that accuracy over the networks.
        val_networks: Number of networks.
        seconds: Time by part, summed over the networks: `experts` (training those that the stage matched on real
            images, and in the first stage networks for forgetting scores alone), `distil` (with renewing the pool of
            networks, where that is done), and `transition` (training on the union after the stage).
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
        """The report as a row of a table."""
        return {**self.model_dump(), **{f"{part}_seconds": time for part, time in self.seconds.items()}}


class EvaluatedRow(Stored, extra="allow"):
    """Networks that were trained on the same images in the same way, and scored.

    Further entries say how they were trained and scored, see `pdd_lightning.evaluation.plan.PlannedRow.about`.

    Attributes:
        row: Name of what they were trained on.
        part: The real images that they were scored on.
        protocol: How networks are trained on a set in stages.
        stage: The stage after which they were scored, of `num_stages`.
        images: Number of training images, as they are stored.
        steps: Optimiser steps of each network.
        mean: Mean accuracy in [0, 1].
        std: Its sample standard deviation over the networks; 0 for a single one.
        n: Number of networks.
        accuracies: Accuracy of each network.
        per_class: Mean accuracy on each class.
        seconds: Time, summed over the networks.
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
    def fit(self) -> EvaluatedRow:
        """Refuses numbers that are none, and another number of accuracies than of networks."""
        _row(self.model_extra or {})
        if self.n is not None and self.accuracies and self.n != len(self.accuracies):
            raise ValueError(f"n: {len(self.accuracies)} accuracies are not those of {self.n} networks")
        return self


class StepRow(Stored):
    """A row of `pdd evaluate` that a study summarises, with the entries that it needs."""

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


def _in_order(reports: list[StageReport]) -> list[StageReport]:
    if [report.stage for report in reports] != list(range(1, len(reports) + 1)):
        raise ValueError("stages must be 1, 2, .. in order")
    return reports


class RunSummary(Stored):
    """What `summary.json` says of a run.

    Attributes:
        package_version: Version of this package that wrote it.
        dataset: `name` of the real images, and `fingerprint`, a hash of their content.
        seed: Seed of the run.
        settings: Settings of the method.
        stages: Reports of the finished stages.
        evaluation: Evaluated rows.
    """

    package_version: Name | None = None
    dataset: dict[Name, Name] = Field(default={})
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    settings: Json = Field(default={})
    stages: Annotated[list[StageReport], AfterValidator(_in_order)] = Field(default=[])
    evaluation: list[EvaluatedRow] = Field(default=[])


class StudyStep(Stored):
    """One step of a study: its command line, and the time that it took in seconds."""

    name: str = ""
    command: str
    seconds: Seconds | None = None


class StudyResult(Stored, allow_inf_nan=True):
    """What `study.json` says of a study, in whose table numbers may be missing (NaN).

    Attributes:
        study: Name of its kind.
        title: What it shows.
        notes: Sentences that a reader of the table must know.
        package_version: Version of this package that wrote it.
        rows: Rows of its table, by name of the column.
        steps: What was run.
    """

    study: Name | None = None
    title: str = ""
    notes: list[str] = Field(default=[])
    package_version: Name | None = None
    rows: list[Row] = Field(default=[])
    steps: list[StudyStep] = Field(default=[])


def write_stored(path: Path, stored: Stored) -> None:
    """Writes a JSON file, whole or not at all."""
    atomic_write_json(path, stored.model_dump())
