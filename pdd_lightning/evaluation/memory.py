"""Memories for learning tasks one after another: what is kept of each task's images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.pixels import PixelSpace
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.subset import ClassSubset
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import DataError


class LearningTask(NamedTuple):
    """Classes that are learned together; with their memory, which only their own images have made.

    Attributes:
        real: The real images of its classes, set up.
        distilled: The set distilled from them, as stored, in the model space that all tasks share.
        first: Label of its first class among those of all tasks; the others follow.
    """

    real: ClassSubset
    distilled: SyntheticSet
    first: int


class LearningTasks(NamedTuple):
    """Tasks in the order in which they are learned.

    Attributes:
        tasks: The tasks.
        pixels: The model space: that of the first task, since those of others were fitted to later images.
        num_classes: Classes of all tasks together.
    """

    tasks: list[LearningTask]
    pixels: PixelSpace
    num_classes: int


def tasks_of(paths: Sequence[str | Path], distilled: Sequence[DistilledDataset], real: RealDataModule) -> LearningTasks:
    """Makes a task of the classes of each distilled set.

    Args:
        paths: Where the sets came from, for messages.
        distilled: Sets, each distilled from the images of its own classes alone, as stored, in the order of learning.
        real: Real images of all classes, set up.

    Raises:
        DataError: There are fewer than two sets, they share a class, have images of another shape than the real ones,
            or differ in their stages.
        ConfigError: A set has a class that the real images lack.
    """
    if len(distilled) < 2:
        raise DataError(f"learning one task after another needs two distilled sets or more, got {len(distilled)}")
    pixels = distilled[0].pixels
    tasks: list[LearningTask] = []
    seen: dict[str, str | Path] = {}
    for path, memory in zip(paths, distilled, strict=True):
        _check(path, memory, distilled[0], real, seen)
        part = ClassSubset(real, list(memory.class_names))
        part.setup()
        images = pixels.encode(memory.pixels.decode(memory.images))
        tasks.append(LearningTask(part, replace(memory.synthetic, images=images), len(seen)))
        seen |= dict.fromkeys(memory.class_names, path)
    return LearningTasks(tasks, pixels, len(seen))


def joined(kept: Sequence[SyntheticSet], tasks: LearningTasks) -> SyntheticSet:
    """The memories of the first tasks as one set of images to train on.

    Stage s of it is stage s of all of them; its learning rate is the geometric mean of theirs.

    Args:
        kept: Memory of task 1, 2, .., with labels counted within the task, as stored.
        tasks: All tasks.
    """
    decoded = [memory.decoded(tasks.pixels) for memory in kept]
    soft = any(memory.labels.ndim == 2 for memory in decoded)
    labels = [
        _among_all(memory.labels, task, tasks.num_classes, soft)
        for memory, task in zip(decoded, tasks.tasks, strict=False)
    ]
    rates = [_geometric_mean(stage) for stage in zip(*(memory.learning_rates for memory in decoded), strict=True)]
    images, stages = (torch.cat([getattr(memory, name) for memory in decoded]) for name in ("images", "stages"))
    return SyntheticSet(images, torch.cat(labels), stages, tuple(rates))


def _check(
    path: str | Path,
    memory: DistilledDataset,
    first: DistilledDataset,
    real: RealDataModule,
    seen: dict[str, str | Path],
) -> None:
    shape = tuple(memory.images.shape[1:])
    if shape != real.image_shape:
        raise DataError(f"{path} does not belong to {real.name}: its images are {shape}, the data's {real.image_shape}")
    if memory.num_stages != first.num_stages:
        raise DataError(f"{path} has {memory.num_stages} stages, the first set {first.num_stages}: give equal ones")
    if twice := [name for name in memory.class_names if name in seen]:
        raise DataError(
            f"class {twice[0]!r} is in {seen[twice[0]]} and in {path}: distil each task from classes of its own,"
            " see configs/data/digits_task.yaml"
        )


def _among_all(labels: Tensor, task: LearningTask, num_classes: int, soft: bool) -> Tensor:
    """Labels counted within a task as labels among those of all tasks."""
    if not soft:
        return labels + task.first
    own = task.real.num_classes
    probabilities = labels if labels.ndim == 2 else F.one_hot(labels, own).float()
    return F.pad(probabilities, (task.first, num_classes - task.first - own))


def _geometric_mean(rates: Sequence[float | None]) -> float | None:
    known = torch.tensor([rate for rate in rates if rate is not None], dtype=torch.float64)
    return float(known.log().mean().exp()) if len(known) else None
