"""The gradient of the cross-entropy of a ConvNet by its parameters, as one operation that is differentiable once.

Automatic differentiation of the backward pass does the same work in many small steps over maps that do not fit the
cache, and stores all of them. Here each block is a convolution and `norm_relu_pool`, the derivative of the gradient is
written out, and what is cheap to compute again (the widest map, and the slopes of maps) is not stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pdd_lightning.kernels import norm_relu_pool as norms
from pdd_lightning.kernels.convolution import input_slope, product, weight_slope
from pdd_lightning.kernels.order import require_last_derivative
from pdd_lightning.kernels.parts import in_parts


class ChainBlock(NamedTuple):
    """What of a block is no parameter.

    Attributes:
        padding: Rows and columns of zeros around the images.
        eps: Added to the variance by the norm.
    """

    padding: tuple[int, int]
    eps: float


def chain_gradient(
    blocks: Sequence[ChainBlock], params: Sequence[Tensor], images: Tensor, labels: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradient of the mean cross-entropy by each parameter, differentiable once in all inputs.

    The bias of a convolution has no influence, since a norm follows it: its gradient is exactly 0.

    Args:
        blocks: Each of a 3x3 (or other) convolution of stride 1, instance norm, ReLU and 2x2 average pooling.
        params: Of each block kernel, bias, scale and shift; then weight and bias of the classifier.
        images: `[N, C, H, W]` on the CPU; under autocast to bfloat16, maps are kept in it, sums and parameters are not.
        labels: Classes `[N]`, or class probabilities `[N, classes]`.
    """
    dtype = norms.computed_in(images)
    classes = params[-1].shape[0]
    targets = labels if labels.is_floating_point() else F.one_hot(labels, classes).to(params[-1].dtype)
    images_of_parts = in_parts(images, len(params[0]), dtype)
    targets_of_parts = targets.tensor_split(len(images_of_parts))
    with torch.autocast("cpu", enabled=False):
        # Of the mean over the part's images each part gives what is its share in the mean over all.
        parts = [
            _ChainGradient.apply(blocks, dtype, some, of_some * (len(some) / len(images)), *params)
            for some, of_some in zip(images_of_parts, targets_of_parts, strict=True)
        ]
    return tuple(sum(rest, first) for first, *rest in zip(*parts, strict=True))


class _Pass(NamedTuple):
    """What a forward and backward pass leave for each block: its input, map, norm, and the slope of its result."""

    x: Tensor
    y: Tensor
    state: norms.NormState
    gp: Tensor


class _ChainGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, blocks: Sequence[ChainBlock], dtype: torch.dtype, images: Tensor, targets: Tensor, *params: Tensor
    ) -> tuple[Tensor, ...]:
        x = images.to(dtype).contiguous(memory_format=torch.channels_last)
        xs, ys, states = [], [], []
        weights = [_weight(weight, dtype) for weight in params[: 4 * len(blocks) : 4]]
        for number, (block, weight) in enumerate(zip(blocks, weights, strict=True)):
            gamma, beta = params[4 * number + 2 : 4 * number + 4]
            xs.append(x)
            ys.append(product(x, weight, block.padding))
            x, state = norms.forward(ys[-1], gamma, beta, block.eps)
            states.append(state)
        features = x.flatten(1).to(params[-1].dtype)
        shares = torch.addmm(params[-1], features, params[-2].t()).softmax(1)
        slope = (shares * targets.sum(1, keepdim=True) - targets) / len(images)
        gradient = [slope.t() @ features, slope.sum(0)]
        gp, gps = (slope @ params[-2]).view_as(x).to(dtype), []
        for number in reversed(range(len(blocks))):
            gps.append(gp)
            gy, ggamma, gbeta = norms.backward(gp, ys[number], states[number])
            of_weight = weight_slope(gy, xs[number], weights[number], blocks[number].padding)
            bias = params[4 * number + 1]
            gradient[:0] = [of_weight.to(bias), torch.zeros_like(bias), ggamma.to(bias), gbeta.to(bias)]
            if number:
                gp = input_slope(gy, xs[number], weights[number], blocks[number].padding)
        ctx.blocks, ctx.dtype = blocks, dtype
        kept = [tensor for state in states for tensor in (state.mean, state.rstd)]
        ctx.save_for_backward(images, targets, features, shares, slope, *params, *xs[1:], *ys[1:], *gps[::-1], *kept)
        return tuple(gradient)

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> tuple[Tensor | None, ...]:
        require_last_derivative()
        with torch.autocast("cpu", enabled=False):
            return (None, None, *_second_order(ctx, v))


def _second_order(ctx: Any, v: Sequence[Tensor]) -> list[Tensor | None]:
    """Derivatives of the inner product of the gradient and `v` by images, targets and parameters."""
    images, targets, features, shares, slope, params, passes = _unpack(ctx)
    blocks, dtype = ctx.blocks, ctx.dtype
    of_images, of_targets, *of_params = ctx.needs_input_grad[2:]
    learned = any(of_params)
    # Through the backward pass, in its reverse order: from the first block to the classifier.
    of_x: list[Tensor | None] = []
    of_weight: list[Tensor | None] = []
    halves, maps, vp = [], [], None
    weights = [_weight(params[4 * number], dtype) for number in range(len(blocks))]
    for number, (block, one) in enumerate(zip(blocks, passes, strict=True)):
        weight, v_weight = weights[number], _weight(v[4 * number], dtype)
        v_gamma, v_beta = v[4 * number + 2 : 4 * number + 4]
        gy, _, _ = norms.backward(one.gp, one.y, one.state)
        vy = product(one.x, v_weight, block.padding)
        if vp is not None:
            vy += product(vp, weight, block.padding)
        of_weight.append(None if vp is None or not learned else weight_slope(gy, vp, weight, block.padding))
        of_x.append(input_slope(gy, one.x, v_weight, block.padding) if number or of_images else None)
        half = norms.adjoint(one.gp, one.y, vy, v_gamma, v_beta, one.state)
        halves.append(half)
        maps.append(vy)
        vp = half.vp
    assert vp is not None
    v_features = vp.flatten(1).to(features)
    v_slope = v_features @ params[-2].t() + torch.addmm(v[-1], features, v[-2].t())
    v_slope = v_slope / len(images)
    sums = targets.sum(1, keepdim=True)
    inner = (shares * v_slope).sum(1, keepdim=True)
    logits = sums * shares * (v_slope - inner)
    derivatives: list[Tensor | None] = [slope.t() @ v_features + logits.t() @ features, logits.sum(0)]
    # Through the forward pass, in its reverse order.
    tp = (slope @ v[-2] + logits @ params[-2]).view_as(vp).to(dtype)
    for number in reversed(range(len(blocks))):
        block, one = blocks[number], passes[number]
        weight, bias = weights[number], params[4 * number + 1]
        ty, tgamma, tbeta = norms.total(one.gp, one.y, maps.pop(), tp, v[4 * number + 2], halves[number], one.state)
        if learned:
            of_weight[number] = _sum(of_weight[number], weight_slope(ty, one.x, weight, block.padding)).to(bias)
        derivatives[:0] = [of_weight[number], torch.zeros_like(bias), tgamma.to(bias), tbeta.to(bias)]
        if number or of_images:
            tp = _sum(of_x[number], input_slope(ty, one.x, weight, block.padding))
    return [tp.to(images) if of_images else None, inner - v_slope if of_targets else None, *derivatives]


def _unpack(ctx: Any) -> tuple[Any, ...]:
    """What the forward pass stored, and the first map, which is computed again."""
    depth, saved = len(ctx.blocks), iter(ctx.saved_tensors)
    images, targets, features, shares, slope = islice(saved, 5)
    params = tuple(islice(saved, 4 * depth + 2))
    x = images.to(ctx.dtype).contiguous(memory_format=torch.channels_last)
    xs, ys, gps = [x, *islice(saved, depth - 1)], list(islice(saved, depth - 1)), list(islice(saved, depth))
    ys.insert(0, product(x, params[0].to(ctx.dtype), ctx.blocks[0].padding))
    states = [(*islice(saved, 2), *params[4 * number + 2 : 4 * number + 4]) for number in range(depth)]
    passes = [_Pass(x, y, norms.NormState(*state), gp) for x, y, state, gp in zip(xs, ys, states, gps, strict=True)]
    return images, targets, features, shares, slope, params, passes


def _weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A convolution's kernel as it is computed with, so that no call has to bring it into that form again."""
    return weight.to(dtype).contiguous(memory_format=torch.channels_last)


def _sum(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first.add_(second)
