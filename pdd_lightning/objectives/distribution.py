"""Distance between the mean features of two sets of images."""

from __future__ import annotations

from torch import Tensor


def distribution_distance(synthetic: Tensor, real: Tensor) -> Tensor:
    """Return sum_c || mean features of class c, synthetic - real ||^2, a scalar; differentiable in both.

    Args:
        synthetic: Mean features of each class's synthetic images `[classes, F]`.
        real: Mean features of each class's real images `[classes, F]`.

    Reference:
        Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023, equation 6.

    Example:
        >>> import torch
        >>> distribution_distance(torch.zeros(2, 3), torch.ones(2, 3))
        tensor(6.)
    """
    return (synthetic - real).square().sum()
