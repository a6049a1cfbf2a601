"""The blocks of a ConvNet and the gradient of its loss as torch operators on a CPU.

    features            images, parameters -> features                  differentiable twice
    loss_gradient       images, targets, parameters -> gradient         differentiable once

Automatic differentiation of a loss gradient runs many small operations on maps that do not fit the cache, and stores
all maps. Here the derivative of the gradient is implemented directly, each block is computed in a few passes
(`ImageBlock` or `MapBlock`), and what is cheap to recompute (the widest map, and the gradients of maps) is not stored.

Each operator and its backward are registered with torch's dispatcher, with an overload for each number of blocks, since
lists of tensors have more overhead there than the passes over small images. Under `torch.func` (vmap, grad, ..) the
dispatcher runs torch's own operations instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from pdd_lightning.errors import KernelError
from pdd_lightning.kernels.block import Wanted, suits_image_block
from pdd_lightning.kernels.chain import PER_BLOCK, Chain
from pdd_lightning.kernels.compiled import TYPES, library, shapes_only

_NAME = "pdd_lightning"
_LIBRARY = torch.library.Library(_NAME, "DEF")
_FUNC = "FuncTorchDynamicLayerFrontMode"
"""The dispatch key that comes first under transforms of `torch.func`, and only there."""
_MAX_MAP_BYTES = 16 << 20
"""Size of the largest map in memory. Larger ones do not fit the processor's cache, and the C library requests memory
from the system for each of them; with smaller ones kernels are transformed more often. With 128 channels a step on 256
images of 32x32 takes 1.3 times as long with maps of 2 MiB."""
_Tensors: TypeAlias = tuple[Tensor, ...]


class Geometry(NamedTuple):
    """Settings of a network's blocks.

    Attributes:
        padding: Rows and columns of zeros around the images of each block.
        eps: Added to the variance by the norm of each block.
    """

    padding: tuple[int, ...]
    eps: tuple[float, ...]


def usable(images: Tensor, params: Sequence[Tensor]) -> bool:
    """Return whether the operators support these tensors: on a CPU, and of one supported dtype.

    Forward-mode differentiation and compiled programs use torch's own operations.
    """
    if images.device.type != "cpu" or images.dtype not in TYPES or not len(images) or torch.compiler.is_compiling():
        return False
    uniform = all(param.dtype == images.dtype and param.device == images.device for param in params)
    forward_mode = any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in (images, *params))
    return uniform and not forward_mode and library() is not None


def features(geometry: Geometry, images: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Return the features `[N, F]` of images; differentiable twice.

    Args:
        geometry: Settings of blocks of a convolution of stride 1, instance norm, ReLU and 2x2 average pooling.
        images: `[N, C, H, W]`, see `usable`.
        params: Kernel, bias, scale and shift of each block. The bias has no effect, since a norm follows it.

    Raises:
        KernelError: Shapes do not fit each other.
    """
    operator = _operator("features", len(geometry.eps))
    results = [operator(*geometry, part, *params)[0] for part in split_images(geometry, images, params[0])]
    return results[0] if len(results) == 1 else torch.cat(results)


def loss_gradient(geometry: Geometry, images: Tensor, targets: Tensor, params: Sequence[Tensor]) -> _Tensors:
    """Return the gradient of the mean cross-entropy by each parameter, differentiable once in all inputs.

    The gradient by the bias of a convolution is exactly 0.

    Args:
        geometry: See `features`.
        images: See `features`.
        targets: Class probabilities `[N, classes]`.
        params: Those of `features`, then weight and bias of the classifier.

    Raises:
        KernelError: Shapes do not fit each other.
    """
    operator, parts = _operator("loss_gradient", len(geometry.eps)), split_images(geometry, images, params[0])
    # Weighted by its number of images, the mean over each part's images sums to the mean over all.
    weighted = [chunk * (len(chunk) / len(images)) for chunk in targets.tensor_split(len(parts))]
    gradients = [
        operator(*geometry, part, chunk, *params)[: len(params)] for part, chunk in zip(parts, weighted, strict=True)
    ]
    return tuple(sum(rest, first) for first, *rest in zip(*gradients, strict=True))


def split_images(geometry: Geometry, images: Tensor, weight: Tensor) -> _Tensors:
    """Split images `[N, C, H, W]` into nearly equal parts whose maps are not too large.

    The kernel `weight` is that of the first convolution, whose map is the largest.
    """
    map_bytes = images.shape[2] * images.shape[3] * len(weight) * images.dtype.itemsize
    rows, columns = geometry.padding[:2]
    if suits_image_block(images, weight, (rows, columns)):  # only the pooled map is in memory
        map_bytes //= 4
    largest = max(1, _MAX_MAP_BYTES // max(1, map_bytes))
    return images.tensor_split(max(1, -(-len(images) // largest)))


def _features(padding: list[int], eps: list[float], images: Tensor, *params: Tensor) -> _Tensors:
    chain = Chain(padding, eps, images, params)
    return chain.forward(), *chain.saved


def _features_backward(
    padding: list[int], eps: list[float], wanted: list[bool], gradient: Tensor, images: Tensor, *rest: Tensor
) -> _Tensors:
    count = PER_BLOCK * len(eps)
    chain = Chain(padding, eps, images, rest[:count], rest[count:])
    return *chain.backward(gradient, Wanted(*wanted)), *chain.gps[:-1]


def _features_double_backward(
    padding: list[int], eps: list[float], wanted: list[bool], v_images: Tensor | None, *rest: Tensor
) -> _Tensors:
    count = PER_BLOCK * len(eps)
    v, (gradient, images), params, saved, gps = _split(rest, count, 2, count, _saved(len(eps)))
    chain = Chain(padding, eps, images, params, saved, (*gps, gradient), with_map=v_images is not None)
    of_gradient = chain.double_backward_gradient(v_images, v, Wanted(*wanted))
    return of_gradient, *chain.double_backward_inputs(torch.zeros_like(gradient), Wanted(*wanted))


def _loss_gradient(padding: list[int], eps: list[float], images: Tensor, targets: Tensor, *params: Tensor) -> _Tensors:
    *of_blocks, weight, bias = params
    chain = Chain(padding, eps, images, of_blocks)
    features = chain.forward()
    _, of_logits = _softmax(features, targets, weight, bias)
    _, *gradient = chain.backward(of_logits @ weight, Wanted(x=False, weight=True))
    return *gradient, of_logits.t() @ features, of_logits.sum(0), features, *chain.saved, *chain.gps


def _loss_gradient_backward(padding: list[int], eps: list[float], wanted: list[bool], *rest: Tensor) -> _Tensors:
    count, kinds = PER_BLOCK * len(eps), Wanted(*wanted)
    v, (v_weight, v_bias), (images, targets), params, (weight, bias, features), saved, gps = _split(
        rest, count, 2, 2, count, 3, _saved(len(eps))
    )
    chain = Chain(padding, eps, images, params, saved, gps)
    shares, of_logits = _softmax(features, targets, weight, bias)
    # Through the backward pass, in its reverse order: from the first block to the classifier.
    v_features = chain.double_backward_gradient(None, v, kinds)
    v_logits = (v_features @ weight.t() + torch.addmm(v_bias, features, v_weight.t())) / len(images)
    inner = (shares * v_logits).sum(1, keepdim=True)
    logits = targets.sum(1, keepdim=True) * shares * (v_logits - inner)
    # Through the forward pass, in its reverse order.
    of_images, *of_blocks = chain.double_backward_inputs(of_logits @ v_weight + logits @ weight, kinds)
    of_weight = of_logits.t() @ v_features + logits.t() @ features
    return of_images, inner - v_logits, *of_blocks, of_weight, logits.sum(0)


def _softmax(features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmax of the logits, and the gradient of the loss with respect to the logits."""
    shares = torch.addmm(bias, features, weight.t()).softmax(1)
    return shares, (shares * targets.sum(1, keepdim=True) - targets) / len(features)


def _saved(depth: int) -> int:
    """Return the number of tensors in `Chain.saved`."""
    return 3 * depth - 2


def _split(tensors: Sequence[Tensor], *counts: int) -> list[Sequence[Tensor]]:
    """Split tensors into groups of these sizes, and the rest."""
    ends = list(accumulate(counts, initial=0))
    return [tensors[first:end] for first, end in zip(ends, [*ends[1:], None], strict=True)]


def _plain_features(padding: list[int], eps: list[float], images: Tensor, *params: Tensor) -> _Tensors:
    """Compute the features by torch's own operations, with empty tensors for those to be saved."""
    empty = [images.new_empty(0)] * _saved(len(eps))
    for number, block_eps in enumerate(eps):
        weight, bias, gamma, beta = params[PER_BLOCK * number : PER_BLOCK * number + PER_BLOCK]
        maps = F.conv2d(images, weight, bias, padding=padding[2 * number : 2 * number + 2])
        images = F.avg_pool2d(F.relu(F.group_norm(maps, len(gamma), gamma, beta, block_eps)), 2)
    return images.flatten(1), *empty


def _refuse(*_: object) -> _Tensors:
    raise KernelError(
        "fused ConvNets on a CPU can be differentiated twice, their loss gradients once, and not by `torch.func`: set"
        " the environment variable PDD_KERNELS=off to use torch's own operations"
    )


def _differentiate_features(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    wanted = [ctx.needs_input_grad[2], any(ctx.needs_input_grad[3:])]
    derivatives = _operator("features_backward", ctx.depth)(*ctx.geometry, wanted, gradient, *ctx.saved_tensors)
    return None, None, *derivatives[: 1 + PER_BLOCK * ctx.depth]


def _differentiate_features_backward(ctx: Any, v_images: Tensor | None, *v: Tensor | None) -> tuple[Any, ...]:
    params, saved = PER_BLOCK * ctx.depth, ctx.saved_tensors
    wanted = [ctx.needs_input_grad[4], any(ctx.needs_input_grad[5 : 5 + params])]
    vectors, operator = _or_zeros(v[:params], saved[2:]), _operator("features_double_backward", ctx.depth)
    derivatives = operator(*ctx.geometry, wanted, v_images, *vectors, *saved)
    return None, None, None, *derivatives, *(None,) * _saved(ctx.depth)


def _differentiate_loss_gradient(ctx: Any, *v: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[2], any(ctx.needs_input_grad[4:])]
    vectors = _or_zeros(v[: PER_BLOCK * ctx.depth + 2], saved[2:])
    return None, None, *_operator("loss_gradient_backward", ctx.depth)(*ctx.geometry, wanted, *vectors, *saved)


def _or_zeros(v: Sequence[Tensor | None], params: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(param) if u is None else u for u, param in zip(v, params, strict=False)]


class _Schema(NamedTuple):
    """The signature of an operator.

    Attributes:
        extra: Arguments before the tensors.
        tensors: Number of tensor arguments.
        results: Number of results, which are tensors.
        saved: First argument and first result that the derivative needs; None if there is no derivative.
    """

    extra: str
    tensors: int
    results: int
    saved: tuple[int, int] | None = None


def _schema(name: str, depth: int) -> _Schema:
    """Return the signature of an operator for a number of blocks."""
    params, saved, wanted = PER_BLOCK * depth, _saved(depth), ", bool[] wanted"
    schemas = {
        "features": _Schema("", 1 + params, 1 + saved, (2, 1)),
        "features_backward": _Schema(wanted, 2 + params + saved, params + depth, (3, 1 + params)),
        "features_double_backward": _Schema(f"{wanted}, Tensor? v_images", 2 * params + 1 + saved + depth, 2 + params),
        "loss_gradient": _Schema("", params + 4, params + 3 + saved + depth, (2, params + 2)),
        "loss_gradient_backward": _Schema(wanted, 2 * params + 7 + saved + depth, params + 4),
    }
    return schemas[name]


KERNELS: dict[str, tuple[Callable[..., _Tensors], Callable[..., _Tensors], Callable[..., tuple[Any, ...]]]] = {
    "features": (_features, _plain_features, _differentiate_features),
    "features_backward": (_features_backward, _refuse, _differentiate_features_backward),
    "features_double_backward": (_features_double_backward, _refuse, _refuse),
    "loss_gradient": (_loss_gradient, _refuse, _differentiate_loss_gradient),
    "loss_gradient_backward": (_loss_gradient_backward, _refuse, _refuse),
}
"""Implementation of each operator on a CPU, under `torch.func`, and of its derivative."""


@cache
def _operator(name: str, depth: int) -> Callable[..., _Tensors]:
    """Register an operator for a number of blocks with torch, and return it."""
    schema, overload = _schema(name, depth), f"{name}.depth{depth}"
    kernel, func_kernel, differentiate = KERNELS[name]

    def exact(*arguments: Any) -> _Tensors:
        with torch.autocast("cpu", enabled=False):
            return kernel(*arguments)

    def fake(*arguments: Any) -> _Tensors:
        with shapes_only():
            return kernel(*arguments)

    def save(ctx: Any, inputs: tuple[Any, ...], output: _Tensors) -> None:
        ctx.depth, ctx.geometry = depth, inputs[:2]
        ctx.set_materialize_grads(False)
        if schema.saved:
            saved = output[schema.saved[1] :]
            ctx.mark_non_differentiable(*saved)
            ctx.save_for_backward(*inputs[schema.saved[0] :], *saved)

    tensors = "".join(f", Tensor t{number}" for number in range(schema.tensors))
    results = ", ".join(["Tensor"] * schema.results)
    _LIBRARY.define(f"{overload}(int[] padding, float[] eps{schema.extra}{tensors}) -> ({results})")
    _LIBRARY.impl(overload, exact, "CPU")
    _LIBRARY.impl(overload, func_kernel, _FUNC)
    torch.library.register_fake(f"{_NAME}::{overload}", fake, lib=_LIBRARY)
    torch.library.register_autograd(f"{_NAME}::{overload}", differentiate, setup_context=save, lib=_LIBRARY)
    operator: Callable[..., _Tensors] = getattr(getattr(torch.ops, _NAME), name).__getattr__(f"depth{depth}")
    return operator
