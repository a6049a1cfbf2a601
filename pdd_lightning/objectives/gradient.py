"""Distance between the gradients that two sets of images give a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.linalg import vector_norm

from pdd_lightning.errors import ConfigError

Metric: TypeAlias = Literal["ours", "mse", "cos"]
"""Name of a distance between gradients, see `gradient_distance`."""

_EPS = 1e-6


def gradient_distance(synthetic: Sequence[Tensor], real: Sequence[Tensor], metric: Metric = "ours") -> Tensor:
    """Return the distance between two gradients, a scalar; differentiable in both.

    - `ours`: 1 - cosine of each output channel's weights, summed over channels and layers. A row is an output
      channel: convolutions are out x (in * h * w), linear layers out x in. Tensors of one dimension (biases,
      norms) do not count.
    - `mse`: sum of squared differences over everything.
    - `cos`: 1 - cosine of the two gradients, each as one vector.

    Args:
        synthetic: Gradient on the synthetic images, one tensor per parameter.
        real: Gradient on the real images, in the same order and of the same shapes.
        metric: One of the above.

    Raises:
        ConfigError: Unknown metric.

    Reference:
        Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021, equation 10 (`ours`).

    Example:
        >>> import torch
        >>> gradient_distance([torch.eye(2)], [torch.tensor([[2.0, 0.0], [0.0, -1.0]])]).round(decimals=3)
        tensor(2.)
    """
    check_metric(metric)
    return _METRICS[metric](synthetic, real)


def check_metric(metric: str) -> None:
    """Refuses an unknown metric.

    Raises:
        ConfigError: It is not one of `Metric`.
    """
    if metric not in _METRICS:
        raise ConfigError(f"unknown metric {metric!r}: choose one of {', '.join(get_args(Metric))}")


def _layer_wise(synthetic: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    pairs = [(s.flatten(1), r.flatten(1)) for s, r in zip(synthetic, real, strict=True) if s.dim() > 1]
    return torch.stack([(1 - _cosine(s, r)).sum() for s, r in pairs]).sum()


def _squared(synthetic: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    return torch.stack([(s - r).square().sum() for s, r in zip(synthetic, real, strict=True)]).sum()


def _whole(synthetic: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    vectors = [torch.cat([part.flatten() for part in parts]) for parts in (synthetic, real)]
    return 1 - _cosine(vectors[0], vectors[1])


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine along the last dimension; 0 where a vector is zero, with gradient 0."""
    lengths = vector_norm(first, dim=-1) * vector_norm(second, dim=-1)
    cosine: Tensor = (first * second).sum(-1) / (lengths + _EPS)
    return cosine


_METRICS: dict[str, Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]] = {
    "ours": _layer_wise,
    "mse": _squared,
    "cos": _whole,
}
