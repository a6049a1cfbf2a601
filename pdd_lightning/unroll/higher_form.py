"""The unrolled loop by the `higher` library, for optimizers other than plain gradient descent."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from pdd_lightning.errors import ConfigError
from pdd_lightning.typing import Params
from pdd_lightning.unroll.problem import InnerProblem
from pdd_lightning.unroll.stored import is_tracked

InnerOptimizer: TypeAlias = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
"""`optimizer(parameters)` builds the optimizer of the inner loop; its learning rate is not used."""


def unroll_higher(
    problem: InnerProblem,
    params: Params,
    inputs: tuple[Tensor, ...],
    lr: Tensor,
    steps: int,
    optimizer: InnerOptimizer | None = None,
) -> Params:
    """Return the parameters after `steps` of an optimizer; memory grows with the steps. See `unroll`.

    Raises:
        ConfigError: If `higher` does not support the optimizer.

    Reference:
        Grefenstette et al., "Generalized Inner Loop Meta-Learning", 2019.
    """
    import higher  # here, because only this form needs it

    track = is_tracked(inputs, lr)
    network = _with_params(problem.network, params)
    parameters = [parameter for _, parameter in network.named_parameters()]
    inner = torch.optim.SGD(parameters, lr=1.0) if optimizer is None else optimizer(parameters)
    student = higher.monkeypatch(network, track_higher_grads=track)
    try:
        stepper = higher.get_diff_optim(
            inner, parameters, fmodel=student, override={"lr": [lr]}, track_higher_grads=track
        )
    except ValueError as error:
        raise ConfigError(
            f"{type(inner).__name__} is not supported by `higher`; choose SGD, Adam, "
            "Adagrad, Adadelta, Adamax, ASGD, RMSprop or Rprop"
        ) from error
    for step in range(steps):
        with torch.enable_grad():
            images, labels = problem.batch(step, *inputs)
            loss = problem.criterion(student(images), labels)
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
