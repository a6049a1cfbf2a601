"""Accuracy and forgetting of tasks that are learned one after another.

Not to be confused with the forgetting of single examples in one training, see `pdd_lightning.metrics.forgetting`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def average_accuracy(accuracies: Tensor) -> Tensor:
    """Mean accuracy over all tasks after the last one was learned, a scalar.

    Args:
        accuracies: `[T, T]`; row i, column j is the accuracy on task j after task i was learned.

    Raises:
        ValueError: The matrix is not square or is empty.

    Reference:
        Chaudhry et al., Riemannian Walk for Incremental Learning (ECCV 2018), section 3.
    """
    _check(accuracies, 1)
    return accuracies[-1].mean()


def average_forgetting(accuracies: Tensor) -> Tensor:
    """How much accuracy was lost, a scalar: the mean over earlier tasks of best former minus final accuracy.

    Negative where later tasks helped the earlier ones.

    Args:
        accuracies: See `average_accuracy`; NaN where nothing was measured, as usual for tasks not learned yet.

    Raises:
        ValueError: The matrix is not square, or there are fewer than two tasks.

    Reference:
        Chaudhry et al., Riemannian Walk for Incremental Learning (ECCV 2018), section 3.
    """
    _check(accuracies, 2)
    former = accuracies[:-1, :-1]
    best = torch.where(former.isnan(), -torch.inf, former).amax(0)
    return (best - accuracies[-1, :-1]).mean()


def _check(accuracies: Tensor, tasks: int) -> None:
    if accuracies.dim() != 2 or accuracies.shape[0] != accuracies.shape[1] or len(accuracies) < tasks:
        raise ValueError(f"accuracies must be [T, T] with T >= {tasks} tasks, got {list(accuracies.shape)}")
