"""The convolutional network that is standard in dataset distillation."""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as hooks

from pdd_lightning import kernels
from pdd_lightning.errors import ConfigError
from pdd_lightning.networks.features import Classifier
from pdd_lightning.networks.norm import Norm, norm_layers
from pdd_lightning.typing import Params

_MNIST_SIZE = 28
_MNIST_MAP = 32


class ConvNet(Classifier):
    """`depth` blocks of 3x3 convolution, norm, ReLU and 2x2 average pooling, then one linear layer.

    One-channel images of 28 pixels are padded by the first convolution so that its map has 32 pixels.

    Args:
        depth: Number of blocks: 3 for 32 pixels, 4 for 64, 5 for 128.
        width: Number of channels of every block.
        norm: Normalization after each convolution; `instance` is a group norm with one channel per group.

    Raises:
        ConfigError: The images are too small for the depth, or the norm is unknown.

    Reference:
        Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", CVPR 2018, as used in
        Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021, section 3.1.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int,
        depth: int = 3,
        width: int = 128,
        norm: Norm = "instance",
    ) -> None:
        super().__init__()
        padded = in_channels == 1 and image_size == _MNIST_SIZE
        map_size = _MNIST_MAP if padded else image_size
        max_depth = int(math.log2(map_size)) if map_size >= 1 else 0
        if not 1 <= depth <= max_depth:
            raise ConfigError(
                f"ConvNet of depth {depth} does not fit images of {image_size} pixels: each block halves the map, so"
                f" that the depth must be from 1 to {max_depth}"
            )
        layers: list[nn.Module] = []
        for block in range(depth):
            padding = 3 if padded and block == 0 else 1
            channels = in_channels if block == 0 else width
            # In place to save memory, since unrolled loops store every activation.
            layers += [nn.Conv2d(channels, width, 3, padding=padding), *norm_layers(norm, width)]
            layers += [nn.ReLU(inplace=True), nn.AvgPool2d(2)]
        self.features = Blocks(*layers, nn.Flatten())
        self.classifier = nn.Linear(width * (map_size >> depth) ** 2, num_classes)

    def loss_gradient(
        self, params: Params, images: Tensor, labels: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, ...] | None:
        """Return the gradient of the cross-entropy in one operation, or None if it is not supported.

        It is supported on a CPU with compiled kernels, for `instance` norm; see `pdd_lightning.kernels`. See
        `OffersLossGradient` for the arguments.

        Raises:
            KernelError: The parameters' shapes do not fit each other.
        """
        values, blocks = tuple(params.values()), _fusible_blocks(self.features)
        plain = (type(self), type(self.classifier)) == (ConvNet, nn.Linear) and not any(map(_has_hooks, self.modules()))
        complete = list(params) == [name for name, _ in self.named_parameters()] and len(params) == 4 * len(blocks) + 2
        if not blocks or not plain or not complete or not kernels.usable(images, values):
            return None
        targets = labels if labels.is_floating_point() else F.one_hot(labels, len(values[-1]))
        targets = targets.to(images.dtype)
        if weights is not None:
            targets = targets * weights.unsqueeze(1) * len(images)
        return kernels.loss_gradient(_geometry(blocks), images, targets, values)


class Blocks(nn.Sequential):
    """An `nn.Sequential` whose convolutional blocks are fused on a CPU.

    The result equals that of the modules up to rounding. It can be differentiated twice in reverse mode; for more set
    `PDD_KERNELS=off`, see `pdd_lightning.kernels`.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of images `[N, C, H, W]`."""
        blocks = _fusible_blocks(self)
        params = [p for conv, norm in blocks for p in (conv.weight, cast(Tensor, conv.bias), norm.weight, norm.bias)]
        if not blocks or not kernels.usable(images, params):
            features: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
            return features
        return kernels.features(_geometry(blocks), images, params)


def _geometry(blocks: list[tuple[nn.Conv2d, nn.GroupNorm]]) -> kernels.Geometry:
    padding = (int(size) for conv, _ in blocks for size in conv.padding)
    return kernels.Geometry(tuple(padding), tuple(norm.eps for _, norm in blocks))


def _fusible_blocks(features: nn.Module) -> list[tuple[nn.Conv2d, nn.GroupNorm]]:
    """Return convolution and norm of each block; an empty list if the modules cannot be fused."""
    *modules, last = features.children()
    flattened = type(last) is nn.Flatten and (last.start_dim, last.end_dim) == (1, -1)
    if type(features) is not Blocks or not flattened or any(map(_has_hooks, features.children())):
        return []
    blocks = [_as_block(*modules[first : first + 4]) for first in range(0, len(modules), 4)]
    return [block for block in blocks if block] if all(blocks) else []


def _as_block(*modules: nn.Module) -> tuple[nn.Conv2d, nn.GroupNorm] | None:
    """Return convolution and norm if these are a convolution of stride 1, instance norm, ReLU and 2x2 pooling."""
    # Subclasses and parametrized modules may compute something else.
    if [type(module) for module in modules] != [nn.Conv2d, nn.GroupNorm, nn.ReLU, nn.AvgPool2d]:
        return None
    conv, norm, _, pool = modules
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.GroupNorm) and isinstance(pool, nn.AvgPool2d)
    plain = conv.stride == conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
    plain = plain and conv.bias is not None and not isinstance(conv.padding, str)
    is_instance_norm = norm.num_groups == norm.num_channels == conv.out_channels and norm.affine
    halves = (pool.kernel_size, pool.stride, pool.padding) == (2, 2, 0)
    halves = halves and not pool.ceil_mode and pool.divisor_override is None
    return (conv, norm) if plain and is_instance_norm and halves else None


def _has_hooks(module: nn.Module) -> bool:
    """Return whether hooks are registered on a module, or globally."""
    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    return any(getattr(module, f"_{kind}") or getattr(hooks, f"_global_{kind}") for kind in kinds)
