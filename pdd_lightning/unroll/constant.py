"""The unrolled loop with memory for the graph of a single step, and the exact gradient.

Only the parameters theta_t are stored. With g_t(theta, X) the gradient of step t, theta_{t+1} = theta_t - lr
* g_t, and lambda_N the gradient of the outer loss with respect to theta_N, the backward pass goes t = N-1,
  .., 0:

    d/dlr   += -g_t . lambda_{t+1}
    d/dX    += d/dX [g_t . (-lr * lambda_{t+1})]
    lambda_t = lambda_{t+1} + d/dtheta [g_t . (-lr * lambda_{t+1})]

with the graph of one step at a time, at the cost of computing g_t twice. The derivatives of the product are
computed by a second reverse pass: forward mode was slower by a sixth, and does not support every loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pdd_lightning.typing import Params
from pdd_lightning.unroll.problem import InnerProblem, descend, start_from


def unroll_constant(
    problem: InnerProblem, params: Params, inputs: tuple[Tensor, ...], lr: Tensor, steps: int
) -> Params:
    """Return the parameters after `steps` of gradient descent; memory for one step. See `unroll`."""
    final = _ConstantMemory.apply(problem, params, steps, lr, *inputs)
    return dict(zip(params, final, strict=True))


class _ConstantMemory(torch.autograd.Function):
    """Final parameters as a function of the learning rate and the inputs."""

    @staticmethod
    def forward(
        ctx: Any, problem: InnerProblem, params: Params, steps: int, lr: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        """Take the steps, and save the parameters before each."""
        replay = Replay(next(iter(params.values())).device)
        trajectory: list[Tensor] = []
        constants = tuple(tensor.detach() for tensor in inputs)
        for step in range(steps):
            trajectory.extend(params.values())
            with replay.record():
                gradient = problem.gradient(step, start_from(params), constants, create_graph=False)
            params = descend(params, gradient, lr)
        ctx.problem, ctx.replay, ctx.names, ctx.steps = problem, replay, tuple(params), steps
        ctx.save_for_backward(lr, *inputs, *trajectory)
        return tuple(params.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangent: Tensor) -> tuple[Tensor | None, ...]:
        """Differentiate step by step, with the graph of one step at a time."""
        needed = ctx.needs_input_grad[4:]
        lr, *saved = ctx.saved_tensors
        inputs = tuple(tensor.detach().requires_grad_(need) for tensor, need in zip(saved, needed, strict=False))
        learned = tuple(tensor for tensor in inputs if tensor.requires_grad)
        sums = [torch.zeros_like(tensor) for tensor in (lr, *learned)]
        for step in reversed(range(ctx.steps)):
            first = len(inputs) + step * len(ctx.names)
            params = start_from(dict(zip(ctx.names, saved[first:], strict=False)))
            targets = (*learned, *params.values()) if step else learned
            with ctx.replay.repeat(step):
                gradient = ctx.problem.gradient(step, params, inputs, create_graph=bool(targets))
            sums[0] -= _dot(gradient, cotangent)
            parts = _pull_back(gradient, tuple(-lr * weight for weight in cotangent), targets)
            for total, part in zip(sums[1:], parts, strict=False):
                total.add_(part)
            cotangent = tuple(c + p for c, p in zip(cotangent, parts[len(learned) :], strict=False))
        results = iter(sums[1:])
        return None, None, None, sums[0], *(next(results) if need else None for need in needed)


def _dot(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> Tensor:
    """Return the inner product of two sets of parameters, a scalar."""
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()


def _pull_back(
    gradient: tuple[Tensor, ...], weights: tuple[Tensor, ...], targets: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Return the derivatives of the inner product of a step's gradient and weights with respect to the targets."""
    if not targets:
        return ()
    with torch.enable_grad():
        product = _dot(gradient, weights)
    return torch.autograd.grad(product, targets, materialize_grads=True)


class Replay:
    """Record autocast and the state of the global random number generators (CPU and CUDA) at each step.

    The backward pass runs outside the caller's autocast region, and a network may contain dropout: without this, the
    repeated computation would differ from the first one, and the gradient would be wrong.

    Args:
        device: Device of the steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = [device] if device.type == "cuda" else []
        # Autocast's cache would keep a copy of the parameters of every step until the region ends.
        self._autocast = torch.autocast(
            device.type,
            dtype=torch.get_autocast_dtype(device.type),
            enabled=torch.is_autocast_enabled(device.type),
            cache_enabled=False,
        )
        self._states: list[list[Tensor]] = []

    @contextmanager
    def record(self) -> Iterator[None]:
        """Record the state and run the next step."""
        self._states.append([torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._cuda)])
        with self._autocast:
            yield

    @contextmanager
    def repeat(self, step: int) -> Iterator[None]:
        """Run a recorded step again, without effect on the global random number generators."""
        with torch.random.fork_rng(self._cuda), self._autocast:
            state, *states = self._states[step]
            torch.set_rng_state(state)
            for device, cuda_state in zip(self._cuda, states, strict=True):
                torch.cuda.set_rng_state(cuda_state, device)
            yield
