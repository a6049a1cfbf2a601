"""A block computed image by image against a convolution, norm, ReLU and pooling."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import flops
from pdd_lightning.kernels.chain import _MapBlock
from pdd_lightning.kernels.image_block import ImageBlock, image_block, suits
from pdd_lightning.networks import ConvNet

EPS = 1e-5
SHAPES = [
    (2, 3, 32, 16, 16, (1, 1)),
    (3, 1, 48, 28, 28, (3, 3)),
    (1, 4, 16, 7, 10, (0, 2)),
    (5, 3, 144, 9, 8, (1, 1)),
]
"""Images, channels, outputs, height, width and padding."""


def operands(shape, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Images, kernel, scale and shift, requiring gradients."""
    count, channels, outputs, height, width, _ = shape
    torch.manual_seed(0)
    sizes = ((count, channels, height, width), (outputs, channels, 3, 3), (outputs,), (outputs,))
    drawn = [torch.randn(size, dtype=torch.float64) for size in sizes]
    return [tensor.to(dtype).requires_grad_() for tensor in drawn]


def plain(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, padding: tuple[int, int], eps: float) -> Tensor:
    maps = F.group_norm(F.conv2d(x, weight, padding=padding), len(gamma), gamma, beta, eps)
    return F.avg_pool2d(F.relu(maps), 2)


def derivatives(block, shape, inputs: list[Tensor], wanted: list[Tensor]) -> list[Tensor]:
    """Pooled map, its first derivatives, and second derivatives of those that are asked for."""
    torch.manual_seed(1)
    pooled = block(*inputs, shape[-1], EPS)
    slope = torch.randn(pooled.shape, dtype=pooled.dtype).requires_grad_()
    once = torch.autograd.grad(pooled, wanted, slope, retain_graph=True)
    first = torch.autograd.grad(pooled, wanted, slope, create_graph=True)
    product = sum((one * torch.randn(one.shape, dtype=one.dtype)).sum() for one in first)
    second = torch.autograd.grad(product, [*inputs, slope], allow_unused=True, materialize_grads=True)
    return [pooled, *once, *first, *second]


@pytest.mark.parametrize("with_images", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_and_its_derivatives_are_those_of_its_parts(shape, with_images):
    inputs = operands(shape)
    assert suits(*inputs[:2], shape[-1])
    wanted = inputs if with_images else inputs[1:]
    own, expected = (derivatives(block, shape, inputs, wanted) for block in (image_block, plain))
    for one, other in zip(own, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("wanted", [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("shape", SHAPES)
def test_its_passes_are_those_of_a_block_with_its_map(shape, wanted):
    x, weight, gamma, beta = (tensor.detach() for tensor in operands(shape))
    torch.manual_seed(1)
    v_weight, v_gamma, v_beta = (torch.randn_like(tensor) for tensor in (weight, gamma, beta))
    results = []
    for block in (ImageBlock(x, weight, shape[-1]), _MapBlock(x, weight, shape[-1])):
        pooled, state = block.forward(gamma, beta, EPS)
        torch.manual_seed(2)
        gp, tp = torch.randn_like(pooled), torch.randn_like(pooled)
        slopes = block.backward(gp, state, wanted[0])
        vp = block.adjoint(gp, state, None, v_weight, v_gamma, v_beta, wanted)
        totals = block.total(gp, state, tp, v_gamma, wanted)
        results.append([pooled, *slopes, vp, *totals])
    for one, other in zip(*results, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_an_input_that_depends_on_another_is_differentiated_once():
    x, weight, gamma, beta = operands((2, 3, 16, 8, 8, (1, 1)))
    gradients = []
    for create_graph in (False, True):
        pooled = image_block(x, weight, gamma + weight.sum(), beta, (1, 1), EPS)
        gradients.append(torch.autograd.grad(pooled.square().sum(), [weight], create_graph=create_graph)[0])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_parameters_of_other_shapes_are_an_error():
    x, weight, gamma, beta = operands(SHAPES[0])
    with pytest.raises(RuntimeError, match=r"goes \[32\] there, got \[2\]"):
        image_block(x, weight, gamma[:2], beta, (1, 1), EPS)


def test_a_kernel_on_another_device_is_left_to_its_parts():
    x, weight, *_ = operands(SHAPES[0])
    assert not suits(x, weight.to("meta"), (1, 1))


def test_bits_do_not_depend_on_threads():
    inputs, threads = operands(SHAPES[3], torch.float32), torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            pooled = image_block(*inputs, (1, 1), EPS)
            results.append([pooled, *torch.autograd.grad(pooled.square().sum(), inputs)])
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *results))


def test_bfloat16_is_rounded_at_the_end():
    coarse = operands(SHAPES[0], torch.bfloat16)
    exact = [tensor.detach().double().requires_grad_() for tensor in coarse]
    coarse[2:] = [tensor.detach().float().requires_grad_() for tensor in coarse[2:]]
    own, expected = image_block(*coarse, (1, 1), EPS), plain(*exact, (1, 1), EPS)
    slope = torch.randn(own.shape).bfloat16()
    assert own.dtype == torch.bfloat16
    pairs = zip(
        [own, *torch.autograd.grad(own, coarse, slope)],
        [expected, *torch.autograd.grad(expected, exact, slope.double())],
        strict=True,
    )
    assert all((one.double() - other).norm() < 2**-8 * other.norm() for one, other in pairs)


@pytest.mark.parametrize(
    "shape",
    [(2, 3, 24, 8, 8, (1, 1)), (2, 5, 32, 8, 8, (1, 1)), (0, 3, 32, 8, 8, (1, 1)), (1, 3, 16, 129, 129, (1, 1))],
    ids=["odd outputs", "many channels", "no image", "large map"],
)
def test_others_are_left_to_the_parts(shape):
    assert not suits(*operands(shape)[:2], shape[-1])


def test_operations_are_counted():
    network = ConvNet(3, 2, 16, depth=1, width=32)
    assert flops(lambda: network(torch.zeros(2, 3, 16, 16))) == 2 * 2 * (32 * 27 * 256 + 2 * 32 * 64)
