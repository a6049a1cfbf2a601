"""Distances that the methods minimize: of gradients, of features, and of trajectories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.linalg import vector_norm

from pdd_lightning.errors import ConfigError

Metric: TypeAlias = Literal["ours", "mse", "cos"]
"""Name of a distance between gradients, see `gradient_distance`."""

KernelMetric: TypeAlias = Literal["mse", "l1"]

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
        ConfigError: The metric is unknown.

    Reference:
        Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021, equation 10 (`ours`).
    """
    check_metric(metric)
    return _METRICS[metric](synthetic, real)


def check_metric(metric: str) -> None:
    """Raise `ConfigError` for an unknown metric."""
    if metric not in _METRICS:
        raise ConfigError(f"unknown metric {metric!r}: choose one of {', '.join(get_args(Metric))}")


def _layer_wise(synthetic: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    pairs = [(s.flatten(1), r.flatten(1)) for s, r in zip(synthetic, real, strict=True) if s.dim() > 1]
    return torch.stack([(1 - _cosine(s, r)).sum() for s, r in pairs]).sum()


def _squared(synthetic: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    return torch.stack([(s - r).square().sum() for s, r in zip(synthetic, real, strict=True)]).sum()


def _joint(synthetic: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    vectors = [torch.cat([part.flatten() for part in parts]) for parts in (synthetic, real)]
    return 1 - _cosine(vectors[0], vectors[1])


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine along the last dimension; 0 with gradient 0 for zero vectors."""
    lengths = vector_norm(first, dim=-1) * vector_norm(second, dim=-1)
    cosine: Tensor = (first * second).sum(-1) / (lengths + _EPS)
    return cosine


_METRICS: dict[str, Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]] = {
    "ours": _layer_wise,
    "mse": _squared,
    "cos": _joint,
}


def kernel_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor], metric: KernelMetric = "mse") -> Tensor:
    """Return the distance between two gradients, summed over all entries of convolution kernels; a scalar.

    Only tensors of four dimensions count (not biases, norms, and the classifier). Differentiable in both gradients.

    Args:
        real: Gradients of a network's parameters on real images, one tensor per parameter.
        synthetic: The same on synthetic images.
        metric: `mse` sums the squared differences (32-pixel images), `l1` the absolute ones (larger images).

    Reference:
        Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022, section 5
        and appendix C.
    """
    differences = [(a - b).flatten() for a, b in zip(real, synthetic, strict=True) if a.dim() == 4]
    flat = torch.cat(differences)
    return flat.square().sum() if metric == "mse" else flat.abs().sum()


def distribution_distance(synthetic: Tensor, real: Tensor) -> Tensor:
    """Return sum_c || mean features of class c, synthetic - real ||^2, a scalar; differentiable in both.

    Args:
        synthetic: Mean features of each class's synthetic images `[classes, F]`.
        real: Mean features of each class's real images `[classes, F]`.

    Reference:
        Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023, equation 6.
    """
    return (synthetic - real).square().sum()


def characteristic_distance(
    synthetic: Tensor, real: Tensor, frequencies: Tensor, alpha: float = 0.5, beta: float = 0.5
) -> Tensor:
    """Return the distance between the characteristic functions of two sets of features, a scalar.

    With Phi(t) the mean of exp(i t . x) over a set, the distance is the mean over the frequencies t of

        sqrt(alpha (|Phi_s| - |Phi_r|)^2 + beta 2 |Phi_s| |Phi_r| (1 - cos(arg Phi_s - arg Phi_r)))

    which for alpha = beta = 1 is |Phi_s(t) - Phi_r(t)|. Differentiable in all three, even if both functions are equal
    or zero.

    Args:
        synthetic: Features `[n, F]`, n >= 1.
        real: Features `[m, F]`, m >= 1.
        frequencies: `[K, F]`.
        alpha: Weight of the difference in amplitude.
        beta: Weight of the difference in phase.

    Reference:
        Wang et al., Dataset Distillation with Neural Characteristic Function: A Minmax Perspective (CVPR 2025).
    """
    with torch.autocast(frequencies.device.type, enabled=False):  # phases need full precision
        angles = [features @ frequencies.T for features in (synthetic, real)]
    (cos, sin), (real_cos, real_sin) = [(angle.cos().mean(0), angle.sin().mean(0)) for angle in angles]
    amplitude, real_amplitude = (
        (x.square() + y.square() + _EPS**2).sqrt() for x, y in ((cos, sin), (real_cos, real_sin))
    )
    phase = 2 * (amplitude * real_amplitude - cos * real_cos - sin * real_sin)
    return (alpha * (amplitude - real_amplitude).square() + beta * phase + _EPS**2).clamp(min=_EPS**2).sqrt().mean()


def trajectory_distance(student: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """Return ||student - target||^2 / ||start - target||^2, a scalar; differentiable in `student`.

    The distance is 1 if the student is as far from the target as the start, and 0 at the target.

    Args:
        student: Parameters of the student after its steps `[P]`.
        start: Parameters of the expert from which the student started `[P]`.
        target: Parameters of the expert some epochs later `[P]`.

    Returns:
        The distance; infinite or NaN if `start` equals `target`.

    Reference:
        Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022, equation 2.
    """
    return (student - target).square().sum() / (start - target).square().sum()
