"""VGG-11 for small images."""

from __future__ import annotations

from torch import nn

from pdd_lightning.errors import ConfigError
from pdd_lightning.networks.features import Classifier
from pdd_lightning.networks.norm import Norm, norm_layers

_GROUPS = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG11(Classifier):
    """Eight 3x3 convolutions with norm and ReLU in five groups, each closed by 2x2 max pooling, then one linear layer.

    9,231,114 parameters for 3 channels and 10 classes, whatever the size of the images. For images below 32 pixels,
    some groups are not pooled, so that norms see more than a single pixel. For images above 63 pixels, the last maps
    are averaged.

    Args:
        norm: `batch` to evaluate with, `instance` (one channel per group) to distil with.

    Raises:
        ConfigError: The images are too small, or the norm is unknown.

    Reference:
        Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
        configuration A, with one linear layer as in Zhao et al., "Dataset Condensation with Gradient Matching",
        ICLR 2021, section 4.1.
    """

    def __init__(self, in_channels: int, num_classes: int, image_size: int, norm: Norm = "batch") -> None:
        super().__init__()
        if image_size < 2:
            raise ConfigError(f"VGG11 does not fit images of {image_size} pixel(s): it needs at least 2")
        layers: list[nn.Module] = []
        channels, side = in_channels, image_size
        for group, widths in enumerate(_GROUPS):
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), *norm_layers(norm, width), nn.ReLU(inplace=True)]
                channels = width
            if side >= 4 or group == len(_GROUPS) - 1:
                layers.append(nn.MaxPool2d(2))
                side //= 2
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(channels, num_classes)
