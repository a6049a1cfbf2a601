"""Distance between gradients over convolution kernels alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

KernelMetric: TypeAlias = Literal["mse", "l1"]


def kernel_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor], metric: KernelMetric = "mse") -> Tensor:
    """Return the distance between two gradients, summed over all entries of convolution kernels; a scalar.

    Tensors of other than four dimensions (biases, norm layers, the classifier) are passed over. Differentiable in
    both gradients.

    Args:
        real: Gradients of a network's parameters on real images, one tensor per parameter.
        synthetic: The same on synthetic images.
        metric: `mse` sums the squared differences (32-pixel images), `l1` the absolute ones (larger images).

    Reference:
        Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022, section 5
        and appendix C.

    Example:
        >>> real, synthetic = [torch.ones(1, 1, 2, 2), torch.ones(3)], [torch.zeros(1, 1, 2, 2), torch.zeros(3)]
        >>> kernel_distance(real, synthetic)
        tensor(4.)
    """
    differences = [(a - b).flatten() for a, b in zip(real, synthetic, strict=True) if a.dim() == 4]
    flat = torch.cat(differences)
    return flat.square().sum() if metric == "mse" else flat.abs().sum()
