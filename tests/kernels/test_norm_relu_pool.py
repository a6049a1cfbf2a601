"""The fused norm, ReLU and pooling against torch's own operations."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pdd_lightning.kernels.norm_relu_pool import can_fuse, norm_relu_pool

EPS = 1e-5
SHAPES = [(3, 40, 6, 6), (2, 32, 5, 7), (2, 5, 4, 4), (1, 70, 2, 3)]


def plain(y: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return F.avg_pool2d(F.relu(F.group_norm(y, y.shape[1], gamma, beta, EPS)), 2)


def fused(y: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return norm_relu_pool(y, gamma, beta, EPS)


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = 3 * torch.randn(shape, dtype=torch.float64, generator=generator) + 1
    gamma = torch.randn(shape[1], dtype=torch.float64, generator=generator)
    beta = torch.randn(shape[1], dtype=torch.float64, generator=generator)
    return [tensor.to(dtype).requires_grad_() for tensor in (y, gamma, beta)]


def derivatives(operation, tensors: list[Tensor]) -> list[Tensor]:
    """Result, first derivatives of a function of it, and second derivatives by the inputs and by the slope."""
    torch.manual_seed(1)
    result = operation(*tensors)
    slope = torch.randn(result.shape).to(result.dtype).requires_grad_()
    first = torch.autograd.grad((result * slope).sum() + result.square().sum(), tensors, create_graph=True)
    product = sum((one * torch.randn(one.shape)).sum() for one in first)
    return [result, *first, *torch.autograd.grad(product, [*tensors, slope])]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
def test_it_and_its_derivatives_are_torchs(shape, layout):
    y, gamma, beta = inputs(shape)
    y = y.detach().contiguous(memory_format=layout).requires_grad_()
    for own, expected in zip(derivatives(fused, [y, gamma, beta]), derivatives(plain, [y, gamma, beta]), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_float32_it_is_as_good_as_torch(shape):
    single = inputs(shape, torch.float32)
    double = [tensor.detach().double().requires_grad_() for tensor in single]
    for own, theirs, expected in zip(
        derivatives(fused, single), derivatives(plain, single), derivatives(plain, double), strict=True
    ):
        assert (own - expected).norm() <= 5 * (theirs - expected).norm() + 1e-6 * expected.norm()


def test_large_maps_far_from_zero_lose_no_more_than_in_torch():
    torch.manual_seed(0)
    y, gamma, beta = torch.randn(1, 40, 128, 128) + 10, torch.ones(40), torch.zeros(40)
    exact = plain(y.double(), gamma.double(), beta.double())
    errors = [(compute(y, gamma, beta) - exact).abs().max() for compute in (fused, plain)]
    assert errors[0] < 10 * errors[1] + 1e-6


def test_maps_in_bfloat16_are_computed_in_float32():
    y, gamma, beta = inputs((4, 40, 8, 8), torch.float32)
    coarse = y.detach().bfloat16().requires_grad_()
    exact = coarse.detach().float().requires_grad_()
    own, expected = fused(coarse, gamma, beta), plain(exact, gamma, beta)
    assert own.dtype == torch.bfloat16
    # One rounding at the end: a unit in the last of 8 bits at most.
    torch.testing.assert_close(own.float(), expected, rtol=2**-8, atol=1e-6)
    slope = torch.ones_like(expected)
    gradients = torch.autograd.grad(own, [coarse, gamma], slope.bfloat16())
    for one, other in zip(gradients, torch.autograd.grad(expected, [exact, gamma], slope), strict=True):
        assert one.dtype == (torch.bfloat16 if one.ndim == 4 else torch.float32)
        torch.testing.assert_close(one.float(), other, rtol=2**-8, atol=1e-4)


def test_rounding_to_bfloat16_is_to_nearest_even():
    # Two maps of two equal halves: the norm makes them -1 and 1, so that the result is what beta and gamma say.
    y = torch.tensor([[[[-1.0, -1.0], [1.0, 1.0]]]]).bfloat16()
    for value in (1.00390625, 1.01171875, 3.1415927):
        beta = torch.tensor([value])
        own = norm_relu_pool(y, torch.zeros(1), beta, EPS)
        assert own.item() == beta.bfloat16().item()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_what_is_not_finite_does_not_become_a_number(bad):
    y, gamma, beta = (tensor.detach() for tensor in inputs((2, 3, 4, 4), torch.float32))
    y[0, 1, 2, 2] = bad
    result = fused(y, gamma, beta)
    assert result[0, 1].isnan().all()
    assert result[1].isfinite().all() and result[0, 0].isfinite().all()


def test_results_do_not_depend_on_the_number_of_threads():
    tensors = inputs((5, 70, 16, 16), torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(derivatives(fused, tensors))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_kernels_are_for_the_cpu_and_outside_of_torch_func():
    images = torch.zeros(1, 3, 8, 8)
    assert can_fuse(images) and not can_fuse(images.half()) and not can_fuse(images.to("meta"))
    seen = []

    def inside(one: Tensor) -> Tensor:
        seen.append(can_fuse(one))
        return one

    torch.vmap(inside)(images)
    assert seen == [False]
