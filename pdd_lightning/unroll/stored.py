"""The unrolled loop with the graph of all steps kept for the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from pdd_lightning.typing import Params
from pdd_lightning.unroll.problem import InnerProblem, descend, start_from


def unroll_stored(problem: InnerProblem, params: Params, inputs: tuple[Tensor, ...], lr: Tensor, steps: int) -> Params:
    """Return the parameters after `steps` of gradient descent; memory grows with the steps. See `unroll`."""
    track = is_tracked(inputs, lr)
    params = start_from(params)
    for step in range(steps):
        params = descend(params, problem.gradient(step, params, inputs, create_graph=track), lr)
        if not track:
            params = start_from(params)
    return params if track else {name: parameter.detach() for name, parameter in params.items()}


def is_tracked(inputs: tuple[Tensor, ...], lr: Tensor) -> bool:
    """Return whether anyone will ask for gradients of the result."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (lr, *inputs))
