"""The order in which files without stages keep the images of several stages."""

from __future__ import annotations

import torch
from torch import Tensor

from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.errors import ConfigError, DataError


def stages_of(where: object, labels: Tensor, num_classes: int, num_stages: int | None, ipc: int | None) -> Tensor:
    """Return the stage of each image `[N]`, counted from 1, as the order of the images says.

    Within each class, images come in the order of their stages, as many in every stage. That holds for sets that are
    kept stage by stage (MTT) as well as for those that are kept class by class (IDC). Soft labels name no class; such
    sets are kept stage by stage.

    Args:
        where: The file, for messages.
        labels: `[N]` classes, or `[N, classes]` probabilities.
        num_classes: Number of classes.
        num_stages: Number of stages; None: what `ipc` says, or one.
        ipc: Images per class and stage.

    Raises:
        DataError: The images cannot be divided among so many stages.
        ConfigError: The two numbers contradict each other.
    """
    soft = labels.dim() == 2
    groups = torch.zeros(len(labels), dtype=torch.int64) if soft else labels
    counts = groups.bincount()
    stages = num_stages or 1
    if ipc is not None:
        stages = max(1, int(counts.max()) // (ipc * num_classes if soft else ipc))
        if num_stages not in (None, stages):
            raise ConfigError(f"ipc {ipc} means {stages} stages of {where}: leave out num_stages {num_stages}")
    _check_counts(where, counts, stages, None if ipc is None else stages * ipc * (num_classes if soft else 1))
    order = torch.argsort(groups, stable=True)
    rank = torch.empty_like(groups)
    rank[order] = torch.arange(len(groups)) - (counts.cumsum(0) - counts)[groups[order]]
    return rank // (counts // stages)[groups] + 1


def hard_labels(labels: Tensor) -> Tensor:
    """Return classes `[N]` as they are, and of soft labels `[N, classes]` the most probable class."""
    return labels if labels.dim() == 1 else labels.argmax(1)


def stages_can_be_told(labels: Tensor, stages: Tensor) -> bool:
    """Return whether `stages_of` would find the stages `[N]` of images that are kept in their order."""
    groups = torch.zeros_like(stages) if labels.dim() == 2 else labels
    kinds = int(groups.max()) + 1
    counts = (groups + kinds * (stages - 1)).bincount(minlength=kinds * int(stages.max())).view(-1, kinds)
    return bool((counts == counts[0]).all())


def class_by_class(dataset: DistilledDataset) -> tuple[Tensor, Tensor]:
    """Return images in model space and classes, sorted by class, within a class by stage."""
    labels = hard_labels(dataset.labels)
    order = torch.argsort(labels * (dataset.num_stages + 1) + dataset.stages, stable=True)
    return dataset.images[order], labels[order]


def _check_counts(where: object, counts: Tensor, stages: int, expected: int | None) -> None:
    """Refuse counts of images per class that do not fit, classes without images aside."""
    for count in counts[counts > 0].tolist():
        if count % stages or expected not in (None, count):
            total = "" if expected is None else f" of {expected // stages} images each"
            raise DataError(f"{where}: {count} images of a kind do not fit {stages} stages{total}: correct the numbers")
