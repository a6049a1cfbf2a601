"""The three products of convolutions, by Winograd's algorithm and by torch, against plain convolutions."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pdd_lightning.kernels.convolution import (
    channels_last,
    convolution,
    input_gradient,
    suits_winograd,
    weight_gradient,
)

WINOGRAD = [
    (16, 16, 32, 8, 8, 3, (1, 1)),
    (6, 48, 80, 7, 10, 3, (1, 1)),
    (20, 128, 16, 16, 16, 3, (1, 1)),
    (8, 32, 96, 6, 8, 3, (2, 0)),
    (11, 16, 144, 10, 6, 3, (0, 2)),
]
"""Images, channels, outputs, height, width, side of the kernel and padding; panels and tiles that are whole, or not."""
TORCH = {
    "odd inputs": (16, 24, 32, 8, 8, 3, (1, 1)),
    "odd outputs": (16, 32, 24, 8, 8, 3, (1, 1)),
    "few inputs": (3, 3, 6, 9, 8, 3, (3, 3)),
    "few tiles": (3, 32, 32, 8, 8, 3, (1, 1)),
    "wasteful tiles": (16, 32, 32, 5, 5, 3, (1, 1)),
    "wide padding": (16, 32, 32, 8, 8, 3, (3, 3)),
    "large kernel": (3, 16, 32, 9, 8, 5, (1, 2)),
}


def operands(shape, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Images, kernel, and the gradient of the result."""
    count, channels, outputs, height, width, side, padding = shape
    torch.manual_seed(0)
    x = torch.randn(count, channels, height, width, dtype=torch.float64)
    weight = torch.randn(outputs, channels, side, side, dtype=torch.float64)
    gradient = torch.randn(F.conv2d(x, weight, padding=padding).shape, dtype=torch.float64)
    return tuple(channels_last(tensor.to(dtype)) for tensor in (x, weight, gradient))


def products(x: Tensor, weight: Tensor, gradient: Tensor, padding: tuple[int, int]) -> list[Tensor]:
    return [
        convolution(x, weight, padding),
        input_gradient(gradient, x, weight, padding),
        weight_gradient(gradient, x, weight, padding),
    ]


def plain(x: Tensor, weight: Tensor, gradient: Tensor, padding: tuple[int, int]) -> list[Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    result = F.conv2d(x, weight, padding=padding)
    return [result.detach(), *torch.autograd.grad(result, (x, weight), gradient)]


def errors(some: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((one.double() - other).norm() / other.norm()) for one, other in zip(some, exact, strict=True)]


@pytest.mark.parametrize("shape", [*WINOGRAD, *TORCH.values()], ids=[*map(str, WINOGRAD), *TORCH])
def test_products_are_those_of_a_plain_convolution(shape):
    x, weight, gradient = operands(shape)
    assert suits_winograd(x, weight, shape[-1]) == (shape in WINOGRAD)
    own, expected = (compute(x, weight, gradient, shape[-1]) for compute in (products, plain))
    for one, other in zip(own, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-11)
        assert one.is_contiguous(memory_format=torch.channels_last)


def test_float32_rounds_little_more_than_a_plain_convolution():
    shape = (16, 128, 128, 16, 16, 3, (1, 1))
    x, weight, gradient = operands(shape, torch.float32)
    exact = plain(x.double(), weight.double(), gradient.double(), shape[-1])
    own, torchs = (errors(some(x, weight, gradient, shape[-1]), exact) for some in (products, plain))
    assert max(own) < 2e-6
    assert all(one < 8 * other for one, other in zip(own, torchs, strict=True))


def test_bits_do_not_depend_on_threads_or_on_the_other_images():
    shape = (30, 64, 64, 16, 16, 3, (1, 1))
    x, weight, gradient = operands(shape, torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = products(x, weight, gradient, shape[-1])
        torch.set_num_threads(3)
        together = products(x, weight, gradient, shape[-1])
        some = convolution(x[7:9], weight, shape[-1])  # so few that threads share them in smaller parts
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, alone, together))
    assert torch.equal(some, alone[0][7:9])


def test_a_kernel_may_be_a_part_of_another():
    shape = (16, 32, 64, 8, 8, 3, (1, 1))
    x, weight, gradient = operands(shape)
    weight, gradient = weight[32:], channels_last(gradient[:, 32:])
    own, expected = (compute(x, weight, gradient, shape[-1]) for compute in (products, plain))
    for one, other in zip(own, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-11)
