"""Tasks of continual learning, and the memories of their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pdd_lightning import distributed
from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.subset import ClassSubset
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import DataError
from pdd_lightning.evaluation.subject import Subject, network_and_augmentation, print_note_on_source
from pdd_lightning.typing import NetworkFactory


@dataclass(frozen=True)
class LearningTask(Subject):
    """Classes that are learned together, with the set that was distilled from their images alone.

    All tasks have the model space and augmentation of the first one, since other spaces were fitted to later images.

    Attributes:
        first: Label of its first class among those of all tasks; the others follow.
    """

    first: int = 0

    @property
    def seen(self) -> int:
        """Return the number of classes of this task and the earlier ones."""
        return self.first + self.real.num_classes


def stored_tasks(
    paths: Sequence[str | Path],
    real: RealDataModule,
    factory: NetworkFactory | None = None,
    trust: bool = False,
    **others: Any,
) -> list[LearningTask]:
    """Make a task of the classes of each distilled set.

    Args:
        paths: Sets, each distilled from the images of its own classes alone, in the order of learning.
        real: Real images of all classes, which are loaded.
        factory: Makes the networks; by default the kind of network that the first set was distilled with.
        trust: Import the class of the set's network from any package.
        others: Other attributes of the tasks.

    Raises:
        DataError: There are fewer than two sets, they share a class, have images of another shape than the real ones,
            or differ in their stages; or the first does not name its network.
        DamagedFileError: A file is truncated or altered.
        ConfigError: A set has a class that the real images lack.
    """
    if len(paths) < 2:
        raise DataError(f"learning one task after another needs two distilled sets or more, got {len(paths)}")
    sets = [DistilledDataset(path, stored=True) for path in paths]
    with distributed.first_before_others():
        real.prepare_data()
    real.setup()
    factory, augment = network_and_augmentation(paths[0], sets[0], real, factory, trust)
    pixels = sets[0].pixels
    tasks: list[LearningTask] = []
    seen: dict[str, str | Path] = {}
    for path, memory in zip(paths, sets, strict=True):
        _check(path, memory, sets[0], real, seen)
        subset = ClassSubset(real, list(memory.class_names))
        subset.setup()
        print_note_on_source(path, memory, subset)
        synthetic = replace(memory.synthetic, images=pixels.encode(memory.pixels.decode(memory.images)))
        tasks.append(LearningTask(synthetic, subset, pixels, factory, augment, **others, first=len(seen)))
        seen |= dict.fromkeys(memory.class_names, path)
    return tasks


def join_memories(memories: Sequence[SyntheticSet], tasks: Sequence[LearningTask]) -> SyntheticSet:
    """Join the memories of the first tasks to one decoded set.

    Its stage s consists of stage s of all of them; its learning rate is the geometric mean of theirs. Their labels are
    counted within their task.
    """
    decoded = [memory.decoded(tasks[0].pixels) for memory in memories]
    soft = any(memory.labels.ndim == 2 for memory in decoded)
    labels = [
        _global_labels(memory.labels, task, tasks[-1].seen, soft) for memory, task in zip(decoded, tasks, strict=False)
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
    if repeated := [name for name in memory.class_names if name in seen]:
        raise DataError(
            f"class {repeated[0]!r} is in {seen[repeated[0]]} and in {path}: distill each task from classes of its own,"
            " see configs/data/digits_task.yaml"
        )


def _global_labels(labels: Tensor, task: LearningTask, num_classes: int, soft: bool) -> Tensor:
    """Return labels counted within a task as labels among those of all tasks."""
    if not soft:
        return labels + task.first
    probabilities = labels if labels.ndim == 2 else F.one_hot(labels, task.real.num_classes).float()
    return F.pad(probabilities, (task.first, num_classes - task.seen))


def _geometric_mean(rates: Sequence[float | None]) -> float | None:
    known = torch.tensor([rate for rate in rates if rate is not None], dtype=torch.float64)
    return float(known.log().mean().exp()) if len(known) else None
