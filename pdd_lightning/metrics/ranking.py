"""DD-Ranking's scores: how much of a set's accuracy is due to its images rather than to labels and augmentation.

All accuracies are in [0, 1]. The authors' code puts percent into the same exponential, which is then no longer in
[0, 1], so that its numbers cannot be compared with these.

Reference:
    Li et al., DD-Ranking: Rethinking the Evaluation of Dataset Distillation (2025, arXiv 2505.13300).
"""

from __future__ import annotations

import math

from pdd_lightning.errors import ConfigError


def label_robust_score(
    full_hard: float, distilled_hard: float, distilled_any: float, random_any: float, weight: float = 0.5
) -> float:
    """How good a set is whatever its labels: (e^a - e^-1) / (e - e^-1), a = w * IOR - (1 - w) * HLR.

    The improvement over random is IOR = distilled_any - random_any, the hard label recovery (what is still missing)
    HLR = full_hard - distilled_hard.

    Args:
        full_hard: Accuracy with the full real set and its labels.
        distilled_hard: Accuracy with the distilled images and hard labels.
        distilled_any: Accuracy with the distilled set as it is meant to be used.
        random_any: Accuracy with as many random real images, used in the same way.
        weight: w, in [0, 1].

    Returns:
        The score in [0, 1]; 0.269 where as much is gained over random images as is missing to the full set.

    Raises:
        ConfigError: An argument is not in [0, 1].
    """
    _check(full_hard, distilled_hard, distilled_any, random_any, weight)
    improvement = distilled_any - random_any
    missing = full_hard - distilled_hard
    return _normalised(weight * improvement - (1 - weight) * missing)


def augmentation_robust_score(
    distilled_augmented: float,
    random_augmented: float,
    distilled_plain: float,
    random_plain: float,
    weight: float = 0.5,
) -> float:
    """How good a set is whatever the augmentation: (e^b - e^-1) / (e - e^-1).

    b = w * (distilled_augmented - random_augmented) + (1 - w) * (distilled_plain - random_plain).

    Args:
        distilled_augmented: Accuracy with the distilled set and augmentation.
        random_augmented: Accuracy with as many random real images and augmentation.
        distilled_plain: Accuracy with the distilled set without augmentation.
        random_plain: Accuracy with random real images without augmentation.
        weight: w, in [0, 1].

    Returns:
        The score in [0, 1]; 0.269 for a set that is no better than random images.

    Raises:
        ConfigError: An argument is not in [0, 1].
    """
    _check(distilled_augmented, random_augmented, distilled_plain, random_plain, weight)
    augmented = distilled_augmented - random_augmented
    plain = distilled_plain - random_plain
    return _normalised(weight * augmented + (1 - weight) * plain)


def _normalised(value: float) -> float:
    """[-1, 1] to [0, 1]."""
    return (math.exp(value) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


def _check(*fractions: float) -> None:
    for fraction in fractions:
        if not 0 <= fraction <= 1:
            raise ConfigError(f"accuracies and weights must be fractions in [0, 1], not percent, got {fraction}")
