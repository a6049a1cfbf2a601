"""Distance between the ends of two training trajectories."""

from __future__ import annotations

from torch import Tensor


def trajectory_distance(student: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """Return ||student - target||^2 / ||start - target||^2, a scalar; differentiable in `student`.

    1 means that the student is as far from the expert's later parameters as where both began, 0 that it is
    there.

    Args:
        student: Parameters of the student after its steps `[P]`.
        start: Parameters of the expert where the student started `[P]`.
        target: Parameters of the expert some epochs later `[P]`.

    Returns:
        The distance. If the expert did not move (`start` equals `target`) it is infinite or not a number:
        drawing such a segment is an error that the caller can name, for it knows the expert and the epoch.

    Reference:
        Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022, equation 2.

    Example:
        >>> import torch
        >>> start, target = torch.zeros(2), torch.ones(2)
        >>> trajectory_distance(torch.tensor([1.0, 0.0]), start, target)
        tensor(0.5000)
    """
    return (student - target).square().sum() / (start - target).square().sum()
