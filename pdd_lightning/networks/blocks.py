"""Blocks of convolution, instance norm, ReLU and average pooling, computed in few passes where that is possible."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from pdd_lightning.kernels.convolution import convolution
from pdd_lightning.kernels.image_block import image_block, suits
from pdd_lightning.kernels.norm_relu_pool import can_fuse, computed_in, norm_relu_pool
from pdd_lightning.kernels.parts import in_parts


class Block(NamedTuple):
    """The two modules of a block that have parameters."""

    conv: nn.Conv2d
    norm: nn.GroupNorm

    @property
    def padding(self) -> tuple[int, int]:
        """Rows and columns of zeros around the images."""
        return int(self.conv.padding[0]), int(self.conv.padding[1])


class Blocks(nn.Sequential):
    """Modules one after another, as `nn.Sequential`; on a CPU, known blocks are computed in few passes.

    The result is that of the modules up to rounding. It can be differentiated twice in reverse mode; for more, forward
    mode, or batched gradients set `PDD_KERNELS=off`, see `pdd_lightning.kernels.compiled`.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of images `[N, C, H, W]`."""
        blocks = fused_blocks(self, images)
        if blocks is None:
            features: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
            return features
        dtype, first = computed_in(images), blocks[0].conv
        parts = in_parts(images, first.out_channels, dtype, suits(images, first.weight, blocks[0].padding))
        return torch.cat([_features(blocks, part.to(dtype)) for part in parts]).to(images.dtype)


def _features(blocks: list[Block], x: Tensor) -> Tensor:
    """Features `[N, F]`, in the type of the images."""
    x = x.contiguous(memory_format=torch.channels_last)
    for block in blocks:
        weight = block.conv.weight.to(x.dtype)
        # The convolution's bias has no influence, since the norm takes it out, and a gradient of zero.
        shift = block.norm.bias if block.conv.bias is None else block.norm.bias + 0 * block.conv.bias
        if suits(x, weight, block.padding):
            x = image_block(x, weight, block.norm.weight, shift, block.padding, block.norm.eps)
        else:
            x = norm_relu_pool(convolution(x, weight, block.padding), block.norm.weight, shift, block.norm.eps)
    return x.flatten(1)


def fused_blocks(features: nn.Module, images: Tensor) -> list[Block] | None:
    """Return the blocks that `features` consists of, or None if it is something else, or must run module by module.

    That is so on other devices, without compiled kernels, under `torch.func`, and with hooks.

    Args:
        features: Blocks and `nn.Flatten` at the end.
        images: What it is to be given.
    """
    if not isinstance(features, Blocks) or not can_fuse(images) or any(map(hooked, list(features.modules())[1:])):
        return None
    *modules, last = features.children()
    if len(modules) % 4 or not modules or type(last) is not nn.Flatten or (last.start_dim, last.end_dim) != (1, -1):
        return None
    groups = (modules[first : first + 4] for first in range(0, len(modules), 4))
    blocks = [block for group in groups if (block := _as_block(*group)) is not None]
    fits = 4 * len(blocks) == len(modules) and all(block.conv.weight.dtype == images.dtype for block in blocks)
    return blocks if fits else None


def _as_block(conv: nn.Module, norm: nn.Module, relu: nn.Module, pool: nn.Module) -> Block | None:
    """The four modules as a block, if they are one."""
    # Their own classes: a subclass, or a parametrised module, may compute something else.
    if (type(conv), type(norm), type(relu), type(pool)) != (nn.Conv2d, nn.GroupNorm, nn.ReLU, nn.AvgPool2d):
        return None
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.GroupNorm) and isinstance(pool, nn.AvgPool2d)
    plain = conv.stride == conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
    each = norm.num_groups == norm.num_channels == conv.out_channels and norm.affine
    halves = (pool.kernel_size, pool.stride, pool.padding) == (2, 2, 0)
    halves = halves and not pool.ceil_mode and pool.divisor_override is None
    known = plain and not isinstance(conv.padding, str) and each and halves
    return Block(conv, norm) if known else None


def hooked(module: nn.Module) -> bool:
    """Return whether somebody wants to be told when a module, or any module, is called or differentiated."""
    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    return any(getattr(module, f"_{kind}") or getattr(hooks, f"_global_{kind}") for kind in kinds)
