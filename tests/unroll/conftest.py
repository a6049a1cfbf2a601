"""One small float64 problem with pre-drawn augmentation, and a way to differentiate it in any mode."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pdd_lightning.augment import DSA
from pdd_lightning.networks import ConvNet, flatten
from pdd_lightning.unroll import InnerProblem, unroll

STEPS, BATCH, UNION = 5, 4, 10


@pytest.fixture
def data() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "images": torch.randn(UNION, 1, 8, 8, dtype=torch.float64, generator=generator),
        "labels": torch.randint(3, (UNION,), generator=generator),
        "soft": torch.randn(UNION, 3, dtype=torch.float64, generator=generator),
        "lr": torch.tensor(0.1, dtype=torch.float64),
    }


@pytest.fixture
def network() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(1, 3, 8, depth=2, width=4).double()


@pytest.fixture
def augmented(data) -> Callable[..., tuple[Tensor, Tensor]]:
    """Give the batch of a step: a part of the union, augmented; labels are soft where they are an input."""
    generator = torch.Generator().manual_seed(1)
    dsa = DSA()
    rows = [torch.randperm(UNION, generator=generator)[:BATCH] for _ in range(STEPS)]
    draws = [dsa.draw(BATCH, (8, 8), generator) for _ in range(STEPS)]

    def batch(step: int, images: Tensor, soft: Tensor | None = None) -> tuple[Tensor, Tensor]:
        labels = data["labels"] if soft is None else soft.softmax(1)
        return dsa(images[rows[step]], draws[step]), labels[rows[step]]

    return batch


@pytest.fixture
def differentiate() -> Callable[..., list[Tensor]]:
    """Give the loss of the trained parameters and its gradients by the inputs and the learning rate."""

    def run(problem: InnerProblem, inputs, lr, mode, **options) -> list[Tensor]:
        inputs = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
        lr = lr.detach().requires_grad_()
        params = dict(problem.network.named_parameters())
        final = flatten(unroll(problem, params, tuple(inputs), lr, STEPS, mode, **options))
        loss = (final - flatten(params).detach() - 0.01).square().sum() / flatten(params).detach().square().sum()
        loss.backward()
        assert all(parameter.grad is None for parameter in params.values())
        return [loss.detach(), lr.grad, *(tensor.grad for tensor in inputs)]

    return run
