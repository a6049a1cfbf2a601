"""What a run, a stage, an evaluated row and a study are, in memory and in their JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pdd_lightning.errors import DamagedFileError
from pdd_lightning.files import atomic_write_json

DISTILLED, RANDOM, FULL = "distilled", "random real", "full real"
"""Names of the rows that every evaluation may have: what the networks were trained on."""


class Stored(BaseModel):
    """Something that is kept in a JSON file. Unknown entries are passed over: other versions write other ones."""

    model_config = ConfigDict(strict=True, frozen=True)


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

    stage: int
    images: int
    learned_lr: float | None = None
    lr_img: float
    first_loss: float
    last_loss: float
    val_accuracy: float
    val_std: float
    val_networks: int
    seconds: dict[str, float]
    peak_memory_mb: float
    real_images: int | None = None

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

    row: str
    part: str
    protocol: str = "not stated"
    stage: int | None = None
    num_stages: int | None = None
    images: int | None = None
    steps: int | None = None
    mean: float
    std: float | None = None
    n: int | None = None
    accuracies: list[float] = []
    per_class: dict[str, float] = {}
    seconds: float | None = None


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

    package_version: str | None = None
    dataset: dict[str, str] = {}
    seed: int | None = None
    settings: dict[str, Any] = {}
    stages: list[StageReport] = []
    evaluation: list[EvaluatedRow] = []


class StudyStep(Stored):
    """One step of a study: its command line, and the time that it took in seconds."""

    name: str = ""
    command: str
    seconds: float | None = None


class StudyResult(Stored):
    """What `study.json` says of a study.

    Attributes:
        study: Name of its kind.
        title: What it shows.
        notes: Sentences that a reader of the table must know.
        package_version: Version of this package that wrote it.
        rows: Rows of its table, by name of the column.
        steps: What was run.
    """

    study: str | None = None
    title: str = ""
    notes: list[str] = []
    package_version: str | None = None
    rows: list[dict[str, Any]] = []
    steps: list[StudyStep] = []


Kind = TypeVar("Kind", bound=Stored)


def read_stored(kind: type[Kind], path: Path) -> Kind:
    """Reads and checks a JSON file.

    Raises:
        DamagedFileError: It cannot be read, is no JSON, or an entry is not what it must be.
    """
    try:
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise DamagedFileError(f"{path.name} is damaged: {where}: {first['msg']}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path.name} is damaged: {error}") from error


def write_stored(path: Path, stored: Stored) -> None:
    """Writes a JSON file, whole or not at all."""
    atomic_write_json(path, stored.model_dump())
