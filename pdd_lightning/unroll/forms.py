"""One call for the unrolled loop, in interchangeable forms."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor

from pdd_lightning.errors import ConfigError
from pdd_lightning.typing import Params
from pdd_lightning.unroll.constant import unroll_constant
from pdd_lightning.unroll.higher_form import InnerOptimizer, unroll_higher
from pdd_lightning.unroll.problem import InnerProblem
from pdd_lightning.unroll.stored import unroll_stored

Form: TypeAlias = Literal["stored", "constant", "higher"]
"""How the unrolled loop is differentiated; see `unroll`."""

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


def _check(problem: InnerProblem, params: Params, lr: Tensor, steps: int) -> None:
    """Raise `ConfigError` for arguments that no form can work with."""
    if steps < 1:
        raise ConfigError(f"the number of student steps must be >= 1, got {steps}")
    if lr.ndim != 0:
        raise ConfigError(f"the learning rate must be a scalar tensor, got one of shape {tuple(lr.shape)}")
    names = [name for name, _ in problem.network.named_parameters()]
    if names != list(params):
        raise ConfigError(f"parameters {list(params)} are not those of the network: {names}")
