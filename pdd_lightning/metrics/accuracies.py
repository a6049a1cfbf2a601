"""Metrics computed from accuracies in [0, 1]: of continual learning, and DD-Ranking's scores of distilled sets.

DD-Ranking's scores measure how much of a set's accuracy is due to its images rather than to labels and augmentation.
The authors' code applies the same exponential to percentages, so that its scores are not in [0, 1] and cannot be
compared with these.

Reference:
    Li et al., DD-Ranking: Rethinking the Evaluation of Dataset Distillation (2025, arXiv 2505.13300).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pdd_lightning.errors import ConfigError


def average_accuracy(accuracies: Tensor) -> Tensor:
    """Return the mean accuracy over all tasks after the last one was learned, a scalar.

    Args:
        accuracies: `[T, T]`; row i, column j is the accuracy on task j after task i was learned.

    Raises:
        ValueError: The matrix is not square or is empty.

    Reference:
        Chaudhry et al., Riemannian Walk for Incremental Learning (ECCV 2018), section 3.
    """
    _check_square(accuracies, 1)
    return accuracies[-1].mean()


def average_forgetting(accuracies: Tensor) -> Tensor:
    """Return the mean over all tasks but the last of best earlier minus final accuracy, a scalar.

    It is negative if later tasks improved the earlier ones.

    Args:
        accuracies: See `average_accuracy`; NaN if it was not measured.

    Raises:
        ValueError: The matrix is not square, or there are fewer than two tasks.

    Reference:
        Chaudhry et al., Riemannian Walk for Incremental Learning (ECCV 2018), section 3.
    """
    _check_square(accuracies, 2)
    former = accuracies[:-1, :-1]
    best = torch.where(former.isnan(), -torch.inf, former).amax(0)
    return (best - accuracies[-1, :-1]).mean()


def _check_square(accuracies: Tensor, tasks: int) -> None:
    if accuracies.dim() != 2 or accuracies.shape[0] != accuracies.shape[1] or len(accuracies) < tasks:
        raise ValueError(f"accuracies must be [T, T] with T >= {tasks} tasks, got {list(accuracies.shape)}")


def label_robust_score(
    full_hard: float, distilled_hard: float, distilled_any: float, random_any: float, weight: float = 0.5
) -> float:
    """Return the label-robust score (e^a - e^-1) / (e - e^-1), a = w * IOR - (1 - w) * HLR.

    The improvement over random is IOR = distilled_any - random_any, the hard label recovery (the gap to the full set)
    HLR = full_hard - distilled_hard.

    Args:
        full_hard: Accuracy with the full real set and its labels.
        distilled_hard: Accuracy with the distilled images and hard labels.
        distilled_any: Accuracy with the distilled set as intended.
        random_any: Accuracy with equally many random real images, used in the same way.
        weight: w, in [0, 1].

    Returns:
        The score in [0, 1]; 0.269 if the gain over random images equals the gap to the full set.

    Raises:
        ConfigError: An argument is not in [0, 1].
    """
    _check_fractions(full_hard, distilled_hard, distilled_any, random_any, weight)
    improvement, gap = distilled_any - random_any, full_hard - distilled_hard
    return _normalize(weight * improvement - (1 - weight) * gap)


def augmentation_robust_score(
    distilled_augmented: float,
    random_augmented: float,
    distilled_plain: float,
    random_plain: float,
    weight: float = 0.5,
) -> float:
    """Return the augmentation-robust score (e^b - e^-1) / (e - e^-1).

    b = w * (distilled_augmented - random_augmented) + (1 - w) * (distilled_plain - random_plain).

    Args:
        distilled_augmented: Accuracy with the distilled set and augmentation.
        random_augmented: Accuracy with equally many random real images and augmentation.
        distilled_plain: Accuracy with the distilled set without augmentation.
        random_plain: Accuracy with random real images without augmentation.
        weight: w, in [0, 1].

    Returns:
        The score in [0, 1]; 0.269 for a set that is no better than random images.

    Raises:
        ConfigError: An argument is not in [0, 1].
    """
    _check_fractions(distilled_augmented, random_augmented, distilled_plain, random_plain, weight)
    augmented, plain = distilled_augmented - random_augmented, distilled_plain - random_plain
    return _normalize(weight * augmented + (1 - weight) * plain)


def _normalize(value: float) -> float:
    """Map [-1, 1] to [0, 1]."""
    return (math.exp(value) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


def _check_fractions(*fractions: float) -> None:
    for fraction in fractions:
        if not 0 <= fraction <= 1:
            raise ConfigError(f"accuracies and weights must be fractions in [0, 1], not percent, got {fraction}")
