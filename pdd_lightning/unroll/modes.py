"""The unrolled loop in interchangeable modes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from pdd_lightning.errors import ConfigError
from pdd_lightning.typing import Params
from pdd_lightning.unroll.constant import unroll_constant
from pdd_lightning.unroll.problem import InnerProblem, descend, is_tracked, start_from

Mode: TypeAlias = Literal["stored", "constant", "higher"]
"""How the unrolled loop is differentiated; see `unroll`."""

MAX_MEMORY_SHARE = 0.5
"""Share of a device's memory up to which `auto` stores the graph of all steps."""


def unroll(
    problem: InnerProblem,
    params: Params,
    inputs: tuple[Tensor, ...],
    lr: Tensor,
    steps: int,
    mode: Mode = "stored",
) -> Params:
    """Train from `params`, and return parameters that are differentiable in the inputs and the learning rate.

    The result can be differentiated once, by an ordinary `.backward()`; `params` are constants. The gradients are
    exact, and the same in all modes:

    * `stored` keeps the graph of every step: fastest, with memory proportional to the number of steps;
    * `constant` keeps the parameters of every step, and repeats each step in the backward pass: memory for the graph
      of a single step, in 1.3 to 1.5 times the time;
    * `higher` keeps the graph of every step by the `higher` library.

    Args:
        problem: The network, the batch of each step, and the loss.
        params: Initial parameters, named and ordered as in `problem.network.named_parameters()`.
        inputs: Arguments of `problem.batch` after the step: images, and soft labels if these are learned.
        lr: Learning rate, a scalar tensor.
        steps: Number of steps, at least one.
        mode: `stored`, `constant` or `higher`.

    Raises:
        ConfigError: The mode is unknown, `steps` is below 1, `lr` is not a scalar, or the names of the parameters are
            not those of the network.

    Reference:
        Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022, algorithm 1.
    """
    _check(problem, params, lr, steps)
    if mode == "higher":
        return _unroll_higher(problem, params, inputs, lr, steps)
    if mode not in ("stored", "constant"):
        raise ConfigError(f"unknown mode {mode!r} of the unrolled loop; choose stored, constant or higher")
    if mode == "constant" and is_tracked(inputs, lr):
        return unroll_constant(problem, params, inputs, lr, steps)
    return _unroll_stored(problem, params, inputs, lr, steps)


def choose_mode(
    problem: InnerProblem, params: Params, inputs: tuple[Tensor, ...], steps: int, memory: int | None
) -> tuple[Mode, str]:
    """Choose `stored` if the graph of all steps takes at most half of the memory, else `constant`; see `unroll`.

    The size of the graph is measured on the first step. The rule uses the total rather than the free memory, so that a
    continued run makes the same choice.

    Returns the mode, and the reason as a sentence for the log. `memory` is in bytes, None if unknown.
    """
    devices = [tensor.device for tensor in inputs[:1] if tensor.device.type == "cuda"]
    with torch.random.fork_rng(devices):  # dropout in this step must not change later random numbers
        size = steps * graph_size(lambda: problem.gradient(0, start_from(params), inputs, create_graph=True))
    mode: Mode = "stored" if memory is None or size <= MAX_MEMORY_SHARE * memory else "constant"
    has = "an unknown amount" if memory is None else f"{memory / 2**30:.1f} GiB"
    graph = f"the graph of {steps} student steps takes {size / 2**20:,.0f} MiB"
    return mode, f"{graph}, the device has {has}: mode {mode!r}"


def graph_size(build: Callable[[], object]) -> int:
    """Return the number of bytes that are stored for a backward pass, each block of memory counted once."""
    blocks: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        blocks[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would create a reference cycle with its graph

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        graph = build()
    del graph
    return sum(blocks.values())


def _unroll_stored(problem: InnerProblem, params: Params, inputs: tuple[Tensor, ...], lr: Tensor, steps: int) -> Params:
    """Return the parameters after `steps` of gradient descent; see `unroll`."""
    track = is_tracked(inputs, lr)
    params = start_from(params)
    for step in range(steps):
        params = descend(params, problem.gradient(step, params, inputs, create_graph=track), lr)
        if not track:
            params = start_from(params)
    return params if track else {name: parameter.detach() for name, parameter in params.items()}


def _unroll_higher(problem: InnerProblem, params: Params, inputs: tuple[Tensor, ...], lr: Tensor, steps: int) -> Params:
    """Return the parameters after `steps` of gradient descent; see `unroll`.

    Reference:
        Grefenstette et al., "Generalized Inner Loop Meta-Learning", 2019.
    """
    import higher

    track = is_tracked(inputs, lr)
    network = copy.deepcopy(problem.network)
    network.load_state_dict(params, strict=False)
    parameters = [parameter for _, parameter in network.named_parameters()]
    student = higher.monkeypatch(network, track_higher_grads=track)
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    override = {"lr": [lr]}
    stepper = higher.get_diff_optim(optimizer, parameters, fmodel=student, override=override, track_higher_grads=track)
    for step in range(steps):
        with torch.enable_grad():
            images, labels = problem.batch(step, *inputs)
            loss = F.cross_entropy(student(images), labels)
        stepper.step(loss)
    final = zip(params, student.parameters(), strict=True)
    return {name: parameter if track else parameter.detach() for name, parameter in final}


def _check(problem: InnerProblem, params: Params, lr: Tensor, steps: int) -> None:
    """Raise `ConfigError` for invalid arguments."""
    if steps < 1:
        raise ConfigError(f"the number of student steps must be >= 1, got {steps}")
    if lr.ndim != 0:
        raise ConfigError(f"the learning rate must be a scalar tensor, got one of shape {tuple(lr.shape)}")
    names = [name for name, _ in problem.network.named_parameters()]
    if names != list(params):
        raise ConfigError(f"parameters {list(params)} are not those of the network: {names}")
