"""The unrolled loop in memory that does not grow with the steps, with the exact gradient.

Only the parameters theta_t are kept. With g_t(theta, X) the gradient of step t, theta_{t+1} = theta_t - lr
* g_t, and lambda_N the gradient of the outer loss with respect to theta_N, the backward pass goes t = N-1,
  .., 0:

    d/dlr   += -g_t . lambda_{t+1}
    d/dX    += d/dX [g_t . (-lr * lambda_{t+1})]
    lambda_t = lambda_{t+1} + d/dtheta [g_t . (-lr * lambda_{t+1})]

and holds the graph of one step at a time. The price is to compute g_t twice. The derivatives of the
product are taken by a second reverse pass: forward mode was slower by a sixth, and does not support every
loss.
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
        ctx: Any,
        problem: InnerProblem,
        params: Params,
        steps: int,
        lr: Tensor,
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        """Takes the steps, and keeps the parameters before each."""
        replay = Replay(next(iter(params.values())).device)
        passed: list[Tensor] = []
        constants = tuple(tensor.detach() for tensor in inputs)
        for step in range(steps):
            passed.extend(params.values())
            with replay.record():
                gradient = problem.gradient(step, start_from(params), constants, create_graph=False)
            params = descend(params, gradient, lr)
        ctx.problem, ctx.replay, ctx.names, ctx.steps = problem, replay, tuple(params), steps
        ctx.save_for_backward(lr, *inputs, *passed)
        return tuple(params.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangent: Tensor) -> tuple[Tensor | None, ...]:
        """Goes back step by step, with the graph of one at a time."""
        wanted = ctx.needs_input_grad[4:]
        lr, *saved = ctx.saved_tensors
        inputs = tuple(t.detach().requires_grad_(w) for t, w in zip(saved, wanted, strict=False))
        learned = tuple(tensor for tensor in inputs if tensor.requires_grad)
        sums = [torch.zeros_like(tensor) for tensor in (lr, *learned)]
        for step in reversed(range(ctx.steps)):
            first = len(inputs) + step * len(ctx.names)
            params = start_from(dict(zip(ctx.names, saved[first:], strict=False)))
            targets = (*learned, *params.values()) if step else learned
            with ctx.replay.again(step):
                gradient = ctx.problem.gradient(step, params, inputs, create_graph=bool(targets))
            sums[0] -= _dot(gradient, cotangent)
            parts = _pull_back(gradient, tuple(-lr * weight for weight in cotangent), targets)
            for total, part in zip(sums[1:], parts, strict=False):
                total.add_(part)
            cotangent = tuple(c + p for c, p in zip(cotangent, parts[len(learned) :], strict=False))
        results = iter(sums[1:])
        return None, None, None, sums[0], *(next(results) if want else None for want in wanted)


def _dot(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> Tensor:
    """Return the inner product of two sets of parameters, a scalar."""
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()


def _pull_back(
    gradient: tuple[Tensor, ...], weights: tuple[Tensor, ...], targets: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Return the derivatives by the targets of the inner product of a step's gradient and weights."""
    if not targets:
        return ()
    with torch.enable_grad():
        product = _dot(gradient, weights)
    return torch.autograd.grad(product, targets, materialize_grads=True)


class Replay:
    """Remember autocast and the state of the global random numbers (CPU and CUDA) at each step.

    The backward pass runs outside the caller's autocast region, and a network may hold dropout: without
    this, the second computation would differ from the first and the gradient would silently be wrong.

    Args:
        device: Device that the steps run on.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = [device] if device.type == "cuda" else []
        # Without autocast's cache: it would keep a copy of the parameters of every step until the region
        # ends.
        self._autocast = torch.autocast(
            device.type,
            dtype=torch.get_autocast_dtype(device.type),
            enabled=torch.is_autocast_enabled(device.type),
            cache_enabled=False,
        )
        self._states: list[list[Tensor]] = []

    @contextmanager
    def record(self) -> Iterator[None]:
        """Run the next step, remembering what it starts from."""
        self._states.append([torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._cuda)])
        with self._autocast:
            yield

    @contextmanager
    def again(self, step: int) -> Iterator[None]:
        """Run a recorded step again; the global random numbers are afterwards as before."""
        with torch.random.fork_rng(self._cuda), self._autocast:
            state, *states = self._states[step]
            torch.set_rng_state(state)
            for device, cuda_state in zip(self._cuda, states, strict=True):
                torch.cuda.set_rng_state(cuda_state, device)
            yield
