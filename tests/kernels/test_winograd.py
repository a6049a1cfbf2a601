"""Winograd's algorithm against plain convolutions."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import flops
from pdd_lightning.kernels import winograd

SHAPES = [
    (16, 16, 32, 8, 8, (1, 1)),
    (6, 48, 80, 7, 10, (1, 1)),
    (20, 128, 16, 16, 16, (1, 1)),
    (8, 32, 96, 6, 8, (2, 0)),
    (11, 16, 144, 10, 6, (0, 2)),
]
"""Images, channels, outputs, height, width and padding, with panels and tiles that are whole, and ones that are not."""


def operands(shape, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Images, kernel, and the slope of the result."""
    count, channels, outputs, height, width, padding = shape
    torch.manual_seed(0)
    x = torch.randn(count, channels, height, width, dtype=torch.float64)
    weight = torch.randn(outputs, channels, 3, 3, dtype=torch.float64)
    slope = torch.randn(F.conv2d(x, weight, padding=padding).shape, dtype=torch.float64)
    return x.to(dtype), weight.to(dtype), slope.to(dtype)


def products(x: Tensor, weight: Tensor, slope: Tensor, padding: tuple[int, int]) -> list[Tensor]:
    assert winograd.suits(x, weight, padding)
    return [
        winograd.convolution(x, weight, padding),
        winograd.input_slope(slope, weight, padding),
        winograd.weight_slope(slope, x, padding),
    ]


def plain(x: Tensor, weight: Tensor, slope: Tensor, padding: tuple[int, int]) -> list[Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    result = F.conv2d(x, weight, padding=padding)
    return [result.detach(), *torch.autograd.grad(result, (x, weight), slope)]


def errors(some: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((one.double() - other).norm() / other.norm()) for one, other in zip(some, exact, strict=True)]


@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_a_plain_convolution(shape):
    x, weight, slope = operands(shape)
    for one, other in zip(products(x, weight, slope, shape[-1]), plain(x, weight, slope, shape[-1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-11)


def test_float32_rounds_little_more_than_a_plain_convolution():
    shape = (16, 128, 128, 16, 16, (1, 1))
    x, weight, slope = operands(shape, torch.float32)
    exact = plain(x.double(), weight.double(), slope.double(), shape[-1])
    own, torchs = (errors(some(x, weight, slope, shape[-1]), exact) for some in (products, plain))
    assert max(own) < 2e-6
    assert all(one < 8 * other for one, other in zip(own, torchs, strict=True))


def test_bfloat16_is_rounded_once():
    shape = (4, 128, 128, 8, 8, (1, 1))
    x, weight, slope = operands(shape, torch.bfloat16)
    own = products(x, weight, slope, shape[-1])
    assert all(one.dtype == torch.bfloat16 for one in own)
    assert max(errors(own, plain(x.double(), weight.double(), slope.double(), shape[-1]))) < 2**-9


def test_bits_do_not_depend_on_threads_or_on_the_other_images():
    shape = (30, 64, 64, 16, 16, (1, 1))
    x, weight, slope = operands(shape, torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = products(x, weight, slope, shape[-1])
        torch.set_num_threads(3)
        together = products(x, weight, slope, shape[-1])
        some = winograd.convolution(x[7:9], weight, shape[-1])  # so few that threads share them in smaller parts
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, alone, together))
    assert torch.equal(some, alone[0][7:9])


def test_a_kernel_may_be_a_part_of_another():
    shape = (16, 32, 64, 8, 8, (1, 1))
    x, weight, slope = operands(shape)
    weight, slope = weight.contiguous(memory_format=torch.channels_last)[32:], slope[:, 32:]
    for one, other in zip(products(x, weight, slope, shape[-1]), plain(x, weight, slope, shape[-1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-11)


def test_a_kernel_on_another_device_is_left_to_torch():
    x, weight, _ = operands(SHAPES[0])
    assert not winograd.suits(x, weight.to("meta"), (1, 1))


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ((16, 24, 32, 8, 8, (1, 1)), {}),
        ((16, 32, 24, 8, 8, (1, 1)), {}),
        ((3, 32, 32, 8, 8, (1, 1)), {}),
        ((16, 32, 32, 5, 5, (1, 1)), {}),
        ((16, 32, 32, 8, 8, (3, 3)), {}),
        ((16, 64, 64, 8, 8, (1, 1)), {"dtype": torch.bfloat16}),
        ((16, 32, 32, 8, 8, (1, 1)), {"dtype": torch.float16}),
    ],
    ids=["odd inputs", "odd outputs", "few tiles", "wasteful tiles", "wide padding", "narrow bfloat16", "float16"],
)
def test_others_are_left_to_torch(shape, changes):
    x, weight, _ = operands(shape, **changes)
    assert not winograd.suits(x, weight, shape[-1])


def test_operations_are_counted_as_those_of_a_plain_convolution():
    from pdd_lightning.kernels.convolution import product

    x, weight, _ = operands(SHAPES[0])
    assert flops(lambda: product(x, weight, (1, 1))) == 2 * 16 * 32 * 16 * 9 * 8 * 8
