"""Residual networks for small images."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from pdd_lightning.errors import ConfigError
from pdd_lightning.networks.features import Classifier
from pdd_lightning.networks.norm import Norm, norm_layers

_REDUCTION = 8


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm, average_pool: bool) -> None:
        super().__init__()
        pool = [nn.AvgPool2d(stride)] if average_pool and stride != 1 else []
        stride = 1 if average_pool else stride
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False),
            *norm_layers(norm, channels),
            nn.ReLU(inplace=True),
            *pool,
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            *norm_layers(norm, channels),
        )
        self.shortcut = nn.Sequential()
        if pool or stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, *pool, *norm_layers(norm, channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps `[N, channels, H / stride, W / stride]`."""
        return F.relu(self.residual(maps) + self.shortcut(maps))


class _ResNet(Classifier):
    """Residual network with a 3x3 stem, four groups of basic blocks and global average pooling.

    Args:
        width: Channels of the first group; each later group doubles them. 64 is the usual network, 32 the
            narrow one (1.23 million parameters for ResNet-10 and 2.80 million for ResNet-18, 3 channels
            and 10 classes).
        norm: `batch` to evaluate with, `instance` (one channel per group) to distil with.
        average_pool: Halve maps by 2x2 average pooling after a convolution rather than by its stride ("ResNet-AP").

    Attributes:
        blocks: Number of blocks in each of the four groups.

    Raises:
        ConfigError: The images are too small, for pooling or for the norm, or the norm is unknown.

    Reference:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; narrow form: Kim et al.,
        "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022; average pooling: Zhao et al.,
        "Dataset Condensation with Gradient Matching", ICLR 2021.
    """

    blocks: ClassVar[tuple[int, int, int, int]]

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int,
        width: int = 64,
        norm: Norm = "batch",
        average_pool: bool = False,
    ) -> None:
        super().__init__()
        # Three reductions by 2; the instance norm of a single pixel is always zero.
        pixels = 2 if norm == "instance" else 1
        smallest = pixels * _REDUCTION if average_pool else (pixels - 1) * _REDUCTION + 1
        if image_size < smallest:
            raise ConfigError(
                f"{type(self).__name__} with norm {norm!r} and average_pool {average_pool} does not fit images of"
                f" {image_size} pixels: it needs at least {smallest}"
            )
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1, bias=False)]
        layers += [*norm_layers(norm, width), nn.ReLU(inplace=True)]
        channels = width
        for group, count in enumerate(self.blocks):
            for block in range(count):
                stride = 2 if group > 0 and block == 0 else 1
                layers.append(_BasicBlock(channels, width << group, stride, norm, average_pool))
                channels = width << group
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(channels, num_classes)


class ResNet10(_ResNet):
    """Residual network with one basic block in each of four groups, 1.23 million parameters at width 32."""

    blocks = (1, 1, 1, 1)


class ResNet18(_ResNet):
    """Residual network with two basic blocks in each of four groups, 2.80 million parameters at width 32."""

    blocks = (2, 2, 2, 2)
