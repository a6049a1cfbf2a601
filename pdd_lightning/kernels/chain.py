"""The gradient of the cross-entropy of a ConvNet by its parameters, as one operation that is differentiable once.

Automatic differentiation of the backward pass does the same work in many small steps over maps that do not fit the
cache, and stores all of them. Here the derivative of the gradient is written out, each block is computed in a few
passes (`image_block` where it suits, else a convolution and `norm_relu_pool`), and what is cheap to compute again (the
widest map, and the slopes of maps) is not stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from pdd_lightning.kernels import image_block
from pdd_lightning.kernels import norm_relu_pool as norms
from pdd_lightning.kernels.calls import sums_dtype
from pdd_lightning.kernels.convolution import input_slope, product, weight_slope
from pdd_lightning.kernels.image_block import ImageBlock
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
    images_of_parts = in_parts(images, len(params[0]), dtype, image_block.suits(images, params[0], blocks[0].padding))
    targets_of_parts = targets.tensor_split(len(images_of_parts))
    with torch.autocast("cpu", enabled=False):
        # Of the mean over the part's images each part gives what is its share in the mean over all.
        parts = [
            _ChainGradient.apply(blocks, dtype, some, of_some * (len(some) / len(images)), *params)
            for some, of_some in zip(images_of_parts, targets_of_parts, strict=True)
        ]
    return tuple(sum(rest, first) for first, *rest in zip(*parts, strict=True))


class _MapBlock:
    """The passes of a block with its map in memory; the counterpart of `ImageBlock`.

    Args:
        x: What goes into it `[N, C, H, W]`.
        weight: Kernel `[K, C, h, w]`.
        padding: Rows and columns of zeros on each side.
        y: Its map `[N, K, H', W']`, if it is there; else it is computed.
    """

    def __init__(self, x: Tensor, weight: Tensor, padding: tuple[int, int], y: Tensor | None = None) -> None:
        self._x, self._weight, self._padding = x, weight, padding
        self.y = product(x, weight, padding) if y is None else y
        self._vy: Tensor | None = None
        self._half: norms.Adjoint | None = None
        self._of_x: Tensor | None = None
        self._of_weight: Tensor | None = None

    def forward(self, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, norms.NormState]:
        """Return the pooled map and the state."""
        return norms.forward(self.y, gamma, beta, eps)

    def backward(
        self, gp: Tensor, state: norms.NormState, inputs: bool
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        """Return the slopes of what goes in (None where they are not wanted), of the kernel, of gamma and of beta."""
        gy, ggamma, gbeta = norms.backward(gp, self.y, state)
        of_x = input_slope(gy, self._x, self._weight, self._padding) if inputs else None
        return of_x, weight_slope(gy, self._x, self._weight, self._padding), ggamma, gbeta

    def adjoint(
        self,
        gp: Tensor,
        state: norms.NormState,
        v: Tensor | None,
        v_weight: Tensor,
        v_gamma: Tensor,
        v_beta: Tensor,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        """Return what follows for gp from the slopes of what `backward` returned.

        Args:
            gp: Slope of the pooled map.
            state: That of the norm.
            v: Slope of the slope of what goes in; None for images.
            v_weight: Slope of the kernel's slope.
            v_gamma: Slope of gamma's slope.
            v_beta: Slope of beta's slope.
            wanted: Whether `total` will be asked for what goes in, and for the kernel.
        """
        gy, _, _ = norms.backward(gp, self.y, state)
        vy = product(self._x, v_weight, self._padding)
        if v is not None:
            vy += product(v, self._weight, self._padding)
        if wanted[0]:
            self._of_x = input_slope(gy, self._x, v_weight, self._padding)
        if wanted[1] and v is not None:
            self._of_weight = weight_slope(gy, v, self._weight, self._padding)
        self._vy, self._half = vy, norms.adjoint(gp, self.y, vy, v_gamma, v_beta, state)
        return self._half.vp

    def total(
        self, gp: Tensor, state: norms.NormState, tp: Tensor, v_gamma: Tensor, wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
        """Return the derivatives of what goes in, kernel, gamma and beta: the rest of `adjoint`, and those of tp."""
        assert self._vy is not None and self._half is not None
        ty, tgamma, tbeta = norms.total(gp, self.y, self._vy, tp, v_gamma, self._half, state)
        of_x, of_weight = self._of_x, self._of_weight
        if wanted[0]:
            of_x = _sum(of_x, input_slope(ty, self._x, self._weight, self._padding))
        if wanted[1]:
            of_weight = _sum(of_weight, weight_slope(ty, self._x, self._weight, self._padding))
        return of_x, of_weight, tgamma, tbeta


AnyBlock: TypeAlias = _MapBlock | ImageBlock


class _ChainGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, blocks: Sequence[ChainBlock], dtype: torch.dtype, images: Tensor, targets: Tensor, *params: Tensor
    ) -> tuple[Tensor, ...]:
        """The gradient by each parameter."""
        x = images.to(dtype).contiguous(memory_format=torch.channels_last)
        xs, states, passes = [], [], []
        for number, block in enumerate(blocks):
            gamma, beta = params[4 * number + 2 : 4 * number + 4]
            xs.append(x)
            passes.append(_block(x, params[4 * number], block, number))
            x, state = passes[-1].forward(gamma, beta, block.eps)
            states.append(state)
        features = x.flatten(1).to(params[-1].dtype)
        shares = torch.addmm(params[-1], features, params[-2].t()).softmax(1)
        slope = (shares * targets.sum(1, keepdim=True) - targets) / len(images)
        gradient = [slope.t() @ features, slope.sum(0)]
        gp, gps = (slope @ params[-2]).view_as(x).to(dtype), []
        for number in reversed(range(len(blocks))):
            gps.append(gp)
            of_x, of_weight, ggamma, gbeta = passes[number].backward(gp, states[number], number > 0)
            bias = params[4 * number + 1]
            gradient[:0] = [of_weight.to(bias), torch.zeros_like(bias), ggamma.to(bias), gbeta.to(bias)]
            gp = gp if of_x is None else of_x
        ctx.blocks, ctx.dtype = blocks, dtype
        kept = [tensor for state in states for tensor in (state.mean, state.rstd)]
        ys = [one.y for one in passes[1:] if isinstance(one, _MapBlock)]  # which they all are
        ctx.save_for_backward(images, targets, features, shares, slope, *params, *xs[1:], *ys, *gps[::-1], *kept)
        return tuple(gradient)

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> tuple[Tensor | None, ...]:
        """Its derivatives by images, targets and parameters."""
        require_last_derivative()
        with torch.autocast("cpu", enabled=False):
            return (None, None, *_second_order(ctx, v))


def _second_order(ctx: Any, v: Sequence[Tensor]) -> list[Tensor | None]:
    """Derivatives of the inner product of the gradient and `v` by images, targets and parameters."""
    images, targets, features, shares, slope, params, passes, states, gps = _unpack(ctx)
    of_images, of_targets, *of_params = ctx.needs_input_grad[2:]
    wanted = [(number > 0 or of_images, any(of_params)) for number in range(len(passes))]
    # Through the backward pass, in its reverse order: from the first block to the classifier.
    vp: Tensor | None = None
    for number, one in enumerate(passes):
        v_weight = _weight(v[4 * number], ctx.dtype)
        v_gamma, v_beta = v[4 * number + 2 : 4 * number + 4]
        vp = one.adjoint(gps[number], states[number], vp, v_weight, v_gamma, v_beta, wanted[number])
    assert vp is not None
    v_features = vp.flatten(1).to(features)
    v_slope = v_features @ params[-2].t() + torch.addmm(v[-1], features, v[-2].t())
    v_slope = v_slope / len(images)
    sums = targets.sum(1, keepdim=True)
    inner = (shares * v_slope).sum(1, keepdim=True)
    logits = sums * shares * (v_slope - inner)
    derivatives: list[Tensor | None] = [slope.t() @ v_features + logits.t() @ features, logits.sum(0)]
    # Through the forward pass, in its reverse order.
    tp: Tensor | None = (slope @ v[-2] + logits @ params[-2]).view_as(vp).to(ctx.dtype)
    for number in reversed(range(len(passes))):
        assert tp is not None
        bias, v_gamma = params[4 * number + 1], v[4 * number + 2]
        tp, of_weight, tgamma, tbeta = passes[number].total(gps[number], states[number], tp, v_gamma, wanted[number])
        of_kernel = None if of_weight is None else of_weight.to(bias)
        derivatives[:0] = [of_kernel, torch.zeros_like(bias), tgamma.to(bias), tbeta.to(bias)]
    return [None if tp is None else tp.to(images), inner - v_slope if of_targets else None, *derivatives]


def _unpack(ctx: Any) -> tuple[Any, ...]:
    """What the forward pass stored; the first map, if there is one, is computed again."""
    depth, saved = len(ctx.blocks), iter(ctx.saved_tensors)
    images, targets, features, shares, slope = islice(saved, 5)
    params = tuple(islice(saved, 4 * depth + 2))
    x = images.to(ctx.dtype).contiguous(memory_format=torch.channels_last)
    xs, ys, gps = [x, *islice(saved, depth - 1)], [None, *islice(saved, depth - 1)], list(islice(saved, depth))
    passes = [
        _block(x, params[4 * number], block, number, y)
        for number, (x, y, block) in enumerate(zip(xs, ys, ctx.blocks, strict=True))
    ]
    sums = sums_dtype(ctx.dtype)
    scales = [one.to(sums).contiguous() for number in range(depth) for one in params[4 * number + 2 : 4 * number + 4]]
    states = [norms.NormState(*islice(saved, 2), *scales[2 * number : 2 * number + 2]) for number in range(depth)]
    return images, targets, features, shares, slope, params, passes, states, gps


def _block(x: Tensor, weight: Tensor, block: ChainBlock, number: int, y: Tensor | None = None) -> AnyBlock:
    """A block's passes. Only the first one can be computed image by image: the others' inputs have derivatives."""
    weight = _weight(weight, x.dtype)
    if number == 0 and image_block.suits(x, weight, block.padding):
        return ImageBlock(x, weight, block.padding)
    return _MapBlock(x, weight, block.padding, y)


def _weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A convolution's kernel as it is computed with, so that no call has to bring it into that form again."""
    return weight.to(dtype).contiguous(memory_format=torch.channels_last)


def _sum(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first.add_(second)
