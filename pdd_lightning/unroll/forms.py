"""One call for the unrolled loop, in interchangeable forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pdd_lightning.errors import ConfigError
from pdd_lightning.typing import Params
from pdd_lightning.unroll.constant import unroll_constant
from pdd_lightning.unroll.higher_form import InnerOptimizer, unroll_higher
from pdd_lightning.unroll.problem import InnerProblem, start_from
from pdd_lightning.unroll.stored import unroll_stored

Form: TypeAlias = Literal["stored", "constant", "higher"]
"""How the unrolled loop is differentiated; see `unroll`."""

SHARE = 0.5
"""Share of a device's memory that the graph of all steps may take before `auto` chooses constant memory."""

_SGD_FORMS = {"stored": unroll_stored, "constant": unroll_constant}


def unroll(
    problem: InnerProblem,
    params: Params,
    inputs: tuple[Tensor, ...],
    lr: Tensor,
    steps: int,
    form: Form = "stored",
    optimizer: InnerOptimizer | None = None,
) -> Params:
    """Train from `params`; the resulting parameters are differentiable in the inputs and the learning rate.

    One ordinary `.backward()` of any function of the result gives exact gradients to those of `inputs` and
    `lr` that require them, and to nothing else: the start is a constant. The result can be differentiated
    once. The forms give the same numbers:

    * `stored` keeps the graph of every step: fastest, with memory in proportion to the steps;
    * `constant` keeps the parameters of every step, and computes each step again in the backward pass:
      memory for the graph of one step, whatever their number, for 1.3 to 1.5 times the time;
    * `higher` keeps the graph too, by the `higher` library, and accepts its other optimizers.

    Args:
        problem: The network, the batch of each step, and the loss.
        params: Parameters to start from, named and ordered as in `problem.network.named_parameters()`.
        inputs: What `problem.batch` takes besides the step: images, and soft labels where these are learned.
        lr: Learning rate, a scalar tensor.
        steps: Number of steps, at least one.
        form: `stored`, `constant` or `higher`.
        optimizer: Builds the inner optimizer from the parameters; by default plain gradient descent. Only
            for `higher`.

    Raises:
        ConfigError: If the form is unknown, an optimizer is given to another form than `higher`, `higher`
            does not support it, `steps` is below 1, `lr` is not a scalar, or the names of the parameters
            are not the network's.

    Reference:
        Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022, algorithm 1.
    """
    _check(problem, params, lr, steps)
    if form == "higher":
        return unroll_higher(problem, params, inputs, lr, steps, optimizer)
    if form not in _SGD_FORMS:
        raise ConfigError(f"unknown form {form!r} of the unrolled loop; choose stored, constant or higher")
    if optimizer is not None:
        raise ConfigError(f"form {form!r} of the unrolled loop is plain SGD only; use form 'higher' with an optimizer")
    return _SGD_FORMS[form](problem, params, inputs, lr, steps)


def choose_form(
    problem: InnerProblem, params: Params, inputs: tuple[Tensor, ...], steps: int, memory: int | None
) -> tuple[Form, str]:
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
        The form, and the reason as a sentence for the log.
    """
    devices = [tensor.device for tensor in inputs[:1] if tensor.device.type == "cuda"]
    with torch.random.fork_rng(devices):  # dropout in this step must not change what is drawn later
        size = steps * graph_size(lambda: problem.gradient(0, start_from(params), inputs, create_graph=True))
    form: Form = "stored" if memory is None or size <= SHARE * memory else "constant"
    has = "an unknown amount" if memory is None else f"{memory / 2**30:.1f} GiB"
    return (
        form,
        f"the graph of {steps} student steps takes {size / 2**20:,.0f} MiB, the device has {has}: form {form!r}",
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


def _check(problem: InnerProblem, params: Params, lr: Tensor, steps: int) -> None:
    """Raise `ConfigError` for arguments that no form can work with."""
    if steps < 1:
        raise ConfigError(f"the number of student steps must be >= 1, got {steps}")
    if lr.ndim != 0:
        raise ConfigError(f"the learning rate must be a scalar tensor, got one of shape {tuple(lr.shape)}")
    names = [name for name, _ in problem.network.named_parameters()]
    if names != list(params):
        raise ConfigError(f"parameters {list(params)} are not those of the network: {names}")
