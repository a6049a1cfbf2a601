"""One call for the unrolled loop, in interchangeable modes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pdd_lightning.errors import ConfigError
from pdd_lightning.typing import Params
from pdd_lightning.unroll.constant import unroll_constant
from pdd_lightning.unroll.problem import InnerProblem, descend, is_tracked, start_from

Mode: TypeAlias = Literal["stored", "constant", "higher"]
"""How the unrolled loop is differentiated; see `unroll`."""

SHARE = 0.5
"""Share of a device's memory that the graph of all steps may take before `auto` chooses constant memory."""


def unroll(
    problem: InnerProblem,
    params: Params,
    inputs: tuple[Tensor, ...],
    lr: Tensor,
    steps: int,
    mode: Mode = "stored",
) -> Params:
    """Train from `params`; the resulting parameters are differentiable in the inputs and the learning rate.

    One ordinary `.backward()` of any function of the result gives exact gradients to those of `inputs` and
    `lr` that require them, and to nothing else: the start is a constant. The result can be differentiated
    once. The modes give the same numbers:

    * `stored` keeps the graph of every step: fastest, with memory in proportion to the steps;
    * `constant` keeps the parameters of every step, and computes each step again in the backward pass:
      memory for the graph of one step, whatever their number, for 1.3 to 1.5 times the time;
    * `higher` keeps the graph too, by the `higher` library.

    Args:
        problem: The network, the batch of each step, and the loss.
        params: Parameters to start from, named and ordered as in `problem.network.named_parameters()`.
        inputs: What `problem.batch` takes besides the step: images, and soft labels where these are learned.
        lr: Learning rate, a scalar tensor.
        steps: Number of steps, at least one.
        mode: `stored`, `constant` or `higher`.

    Raises:
        ConfigError: If the mode is unknown, `steps` is below 1, `lr` is not a scalar, or the names of the
            parameters are not the network's.

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
    """Choose between `stored` and `constant`: the first if the graph of all steps takes half of the memory at most.

    The size of the graph is measured on the first step. The rule looks at the memory that the device has, not at what
    is free, so that a run that is continued chooses alike.

    Args:
        problem: As `unroll` takes it.
        params: As `unroll` takes it.
        inputs: As `unroll` takes it.
        steps: Number of steps.
        memory: Bytes that the device has; None if unknown, which is taken for enough.

    Returns:
        The mode, and the reason as a sentence for the log.
    """
    devices = [tensor.device for tensor in inputs[:1] if tensor.device.type == "cuda"]
    with torch.random.fork_rng(devices):  # dropout in this step must not change what is drawn later
        size = steps * graph_size(lambda: problem.gradient(0, start_from(params), inputs, create_graph=True))
    mode: Mode = "stored" if memory is None or size <= SHARE * memory else "constant"
    has = "an unknown amount" if memory is None else f"{memory / 2**30:.1f} GiB"
    return (
        mode,
        f"the graph of {steps} student steps takes {size / 2**20:,.0f} MiB, the device has {has}: mode {mode!r}",
    )


def graph_size(build: Callable[[], object]) -> int:
    """Return the bytes of what is stored for a backward pass, each block of memory once."""
    blocks: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        blocks[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would be its own graph's part, and never be freed

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        graph = build()
    del graph
    return sum(blocks.values())


def _unroll_stored(problem: InnerProblem, params: Params, inputs: tuple[Tensor, ...], lr: Tensor, steps: int) -> Params:
    """Return the parameters after `steps` of gradient descent; memory grows with the steps. See `unroll`."""
    track = is_tracked(inputs, lr)
    params = start_from(params)
    for step in range(steps):
        params = descend(params, problem.gradient(step, params, inputs, create_graph=track), lr)
        if not track:
            params = start_from(params)
    return params if track else {name: parameter.detach() for name, parameter in params.items()}


def _unroll_higher(problem: InnerProblem, params: Params, inputs: tuple[Tensor, ...], lr: Tensor, steps: int) -> Params:
    """Return the parameters after `steps` of gradient descent; memory grows with the steps. See `unroll`.

    Reference:
        Grefenstette et al., "Generalized Inner Loop Meta-Learning", 2019.
    """
    import higher  # here, because only this mode needs it

    track = is_tracked(inputs, lr)
    network = _with_params(problem.network, params)
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


def _with_params(network: nn.Module, params: Params) -> nn.Module:
    """Return a copy of the network, buffers included, that holds the parameters."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(params[name])
    return network


def _check(problem: InnerProblem, params: Params, lr: Tensor, steps: int) -> None:
    """Raise `ConfigError` for arguments that no mode can work with."""
    if steps < 1:
        raise ConfigError(f"the number of student steps must be >= 1, got {steps}")
    if lr.ndim != 0:
        raise ConfigError(f"the learning rate must be a scalar tensor, got one of shape {tuple(lr.shape)}")
    names = [name for name, _ in problem.network.named_parameters()]
    if names != list(params):
        raise ConfigError(f"parameters {list(params)} are not those of the network: {names}")
