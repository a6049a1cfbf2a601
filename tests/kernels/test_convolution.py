"""Convolutions by their three products against torch's own."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pdd_lightning.kernels.convolution import convolution
from pdd_lightning.kernels.winograd import suits


def derivatives(operation, x: Tensor, weight: Tensor, of: str) -> list[Tensor]:
    """Result, its first derivatives, and second derivatives of a function of those that are asked for."""
    torch.manual_seed(1)
    result = operation(x, weight)
    slope = torch.randn(result.shape, dtype=result.dtype).requires_grad_()
    wanted = [{"images": x, "kernel": weight}[name] for name in of.split(" and ")]
    first = torch.autograd.grad((result * slope).sum(), wanted, create_graph=True)
    product = sum((one * torch.randn(one.shape, dtype=one.dtype)).sum() for one in first)
    return [
        result,
        *first,
        *torch.autograd.grad(product, [x, weight, slope], allow_unused=True, materialize_grads=True),
    ]


@pytest.mark.parametrize("of", ["images", "kernel", "images and kernel"])
@pytest.mark.parametrize(("channels", "outputs"), [(3, 6), (7, 6), (16, 32)])
@pytest.mark.parametrize(("side", "padding"), [(3, (1, 1)), (3, (3, 3)), (5, (1, 2))])
def test_it_and_its_derivatives_are_torchs(channels, outputs, side, padding, of):
    torch.manual_seed(0)
    x = torch.randn(3, channels, 9, 8, dtype=torch.float64).requires_grad_()
    weight = torch.randn(outputs, channels, side, side, dtype=torch.float64).requires_grad_()
    assert suits(x, weight, padding) == (channels == 16 and (side, padding) == (3, (1, 1)))
    own = derivatives(lambda *tensors: convolution(*tensors, padding), x, weight, of)
    expected = derivatives(lambda *tensors: F.conv2d(*tensors, padding=padding), x, weight, of)
    for one, other in zip(own, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_slopes_of_images_in_bfloat16_are_summed_in_float32():
    torch.manual_seed(0)
    x, weight = torch.randn(4, 3, 16, 16), torch.randn(64, 3, 3, 3)
    coarse = [tensor.bfloat16().requires_grad_() for tensor in (x, weight)]
    exact = [tensor.detach().double().requires_grad_() for tensor in coarse]
    slope = torch.randn(4, 64, 16, 16).bfloat16()
    (own,) = torch.autograd.grad(convolution(*coarse, (1, 1)), coarse[0], slope)
    (expected,) = torch.autograd.grad(F.conv2d(*exact, padding=1), exact[0], slope.double())
    assert own.dtype == torch.bfloat16
    assert (own.double() - expected).norm() < 2**-8 * expected.norm()
