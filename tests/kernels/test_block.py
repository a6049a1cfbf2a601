"""A block with its map in memory, and one computed image by image, against a convolution, norm, ReLU and pooling."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pdd_lightning.kernels import Geometry, features
from pdd_lightning.kernels.block import ImageBlock, MapBlock, Wanted, suits_image_block
from pdd_lightning.kernels.convolution import channels_last

EPS = 1e-5
IMAGE = [
    (2, 3, 32, 16, 16, 3, (1, 1)),
    (3, 1, 48, 28, 28, 3, (3, 3)),
    (1, 4, 16, 7, 10, 3, (0, 2)),
    (5, 3, 144, 9, 8, 3, (1, 1)),
]
"""Images, channels, outputs, height, width, side of the kernel and padding."""
MAP = {
    "odd outputs": (2, 3, 24, 8, 8, 3, (1, 1)),
    "many channels": (2, 5, 32, 8, 8, 3, (1, 1)),
    "odd sides": (2, 40, 40, 5, 7, 1, (0, 0)),
    "few channels": (2, 2, 5, 4, 4, 1, (0, 0)),
    "one pooled row": (1, 70, 70, 2, 3, 1, (0, 0)),
    "large map": (1, 3, 16, 129, 129, 3, (1, 1)),
}
ALL = pytest.mark.parametrize("shape", [*IMAGE, *MAP.values()], ids=[*map(str, IMAGE), *MAP])


def operands(shape, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Images, kernel, scale and shift, requiring gradients."""
    count, channels, outputs, height, width, side, _ = shape
    torch.manual_seed(0)
    sizes = ((count, channels, height, width), (outputs, channels, side, side), (outputs,), (outputs,))
    return [torch.randn(size, dtype=torch.float64).to(dtype).requires_grad_() for size in sizes]


def own(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, padding: tuple[int, int]) -> Tensor:
    return features(Geometry(padding, (EPS,)), x, [weight, torch.zeros_like(beta), gamma, beta])


def plain(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, padding: tuple[int, int]) -> Tensor:
    maps = F.group_norm(F.conv2d(x, weight, padding=padding), len(gamma), gamma, beta, EPS)
    return F.avg_pool2d(F.relu(maps), 2).flatten(1)


def derivatives(block, shape, inputs: list[Tensor], wanted: list[Tensor]) -> list[Tensor]:
    """Pooled map, its first derivatives, and second derivatives of those that are asked for."""
    torch.manual_seed(1)
    pooled = block(*inputs, shape[-1])
    gradient = torch.randn(pooled.shape, dtype=pooled.dtype).requires_grad_()
    once = torch.autograd.grad(pooled, wanted, gradient, retain_graph=True)
    first = torch.autograd.grad(pooled, wanted, gradient, create_graph=True)
    product = sum((one * torch.randn(one.shape, dtype=one.dtype)).sum() for one in first)
    second = torch.autograd.grad(product, [*inputs, gradient], allow_unused=True, materialize_grads=True)
    return [pooled, *once, *first, *second]


@pytest.mark.parametrize("of", ["all", "parameters", "images", "kernel"])
@ALL
def test_it_and_its_derivatives_are_those_of_its_parts(shape, of):
    inputs = operands(shape)
    assert suits_image_block(*inputs[:2], shape[-1]) == (shape in IMAGE)
    wanted = {"all": inputs, "parameters": inputs[1:], "images": inputs[:1], "kernel": inputs[1:2]}[of]
    ours, expected = (derivatives(block, shape, inputs, wanted) for block in (own, plain))
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@ALL
def test_in_float32_it_is_as_good_as_torch(shape):
    single = operands(shape, torch.float32)
    double = [tensor.detach().double().requires_grad_() for tensor in single]
    results = (derivatives(own, shape, single, single), derivatives(plain, shape, single, single))
    for one, other, exact in zip(*results, derivatives(plain, shape, double, double), strict=True):
        assert (one - exact).norm() <= 5 * (other - exact).norm() + 1e-6 * exact.norm()


@pytest.mark.parametrize("wanted", [Wanted(True, True), Wanted(False, True), Wanted(True, False)])
@pytest.mark.parametrize("shape", IMAGE)
def test_passes_image_by_image_are_those_with_the_map_in_memory(shape, wanted):
    x, *params = (channels_last(one.detach()) if one.ndim == 4 else one.detach() for one in operands(shape))
    torch.manual_seed(1)
    v_params = [torch.randn_like(param) for param in params]
    results = []
    for kind in (ImageBlock, MapBlock):
        block = kind(x, params, shape[-1])
        pooled = block.forward(EPS)
        torch.manual_seed(2)
        gp, tp = torch.randn_like(pooled), torch.randn_like(pooled)
        first = block.backward(gp, wanted)
        vp = block.double_backward_gradient(None, v_params, wanted)
        second = block.double_backward_inputs(tp, wanted)
        counts = [bool(one.numel()) for one in (first[0], second[0])]
        results.append([pooled, block.moments, vp, first[2], first[3], *second[2:]])
        results[-1] += [*first[:1], *second[:1]] if wanted.x else []
        results[-1] += [first[1], second[1]] if wanted.weight else []
        assert counts == [wanted.x] * 2
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [IMAGE[0], MAP["odd outputs"]])
def test_an_input_that_depends_on_another_is_differentiated_once(shape):
    x, weight, gamma, beta = operands(shape)
    gradients = []
    for create_graph in (False, True):
        pooled = own(x, weight, gamma + weight.sum(), beta, (1, 1))
        gradients.append(torch.autograd.grad(pooled.square().sum(), [weight], create_graph=create_graph)[0])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_large_maps_far_from_zero_lose_no_more_than_in_torch():
    torch.manual_seed(0)
    x, weight, gamma, beta = (
        torch.randn(1, 40, 128, 128) + 10,
        torch.eye(40)[:, :, None, None],
        torch.ones(40),
        torch.zeros(40),
    )
    exact = plain(x.double(), weight.double(), gamma.double(), beta.double(), (0, 0))
    worst = [(compute(x, weight, gamma, beta, (0, 0)) - exact).abs().max() for compute in (own, plain)]
    assert worst[0] < 10 * worst[1] + 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("channels", [3, 16])
def test_what_is_not_finite_does_not_become_a_number(bad, channels):
    x = torch.randn(2, channels, 4, 4)
    x[0, 1, 2, 2] = bad
    kernel = torch.zeros(channels, channels, 1, 1)
    kernel[1, 1] = 1
    result = own(x, kernel, torch.ones(channels), torch.zeros(channels), (0, 0)).unflatten(1, (channels, 4))
    assert result[0, 1].isnan().all() and result[1].isfinite().all()


@pytest.mark.parametrize("shape", [IMAGE[3], (5, 64, 80, 16, 16, 3, (1, 1))], ids=["image", "map"])
def test_bits_do_not_depend_on_threads(shape):
    inputs, threads, results = operands(shape, torch.float32), torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(derivatives(own, shape, inputs, inputs[-3:] if shape in IMAGE else inputs))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *results))
