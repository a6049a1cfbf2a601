"""DenseNet-121 for small images."""

from __future__ import annotations

from torch import nn

from pdd_lightning.errors import ConfigError
from pdd_lightning.networks.features import Classifier
from pdd_lightning.networks.norm import Norm, replace_batch_norms

_BLOCKS = (6, 12, 24, 16)
_REDUCTION = 8


class DenseNet(Classifier):
    """Densely connected network with the layers of DenseNet-121, growth rate 12, and a 3x3 stem without pooling.

    1,000,618 parameters for 3 channels and 10 classes.

    Args:
        growth_rate: Channels that each layer adds; the stem has twice as many.
        norm: `batch` to evaluate with, `instance` (one channel per group) to distil with.

    Raises:
        ConfigError: The images are too small, for the network or for the norm, or the norm is unknown.

    Reference:
        Huang et al., "Densely Connected Convolutional Networks", CVPR 2017; evaluated with distilled sets in Kim et
        al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022.
    """

    def __init__(
        self, in_channels: int, num_classes: int, image_size: int, growth_rate: int = 12, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        smallest = 2 * _REDUCTION if norm == "instance" else _REDUCTION
        if image_size < smallest:
            raise ConfigError(
                f"DenseNet with norm {norm!r} does not fit images of {image_size} pixels: it needs at least {smallest}"
            )
        from torchvision import models

        stem = 2 * growth_rate
        network = models.DenseNet(growth_rate, _BLOCKS, stem, num_classes=num_classes)
        layers = dict(network.features.named_children())
        for name in ("conv0", "norm0", "relu0", "pool0"):
            del layers[name]
        first = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.features = nn.Sequential(
            first, *layers.values(), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        replace_batch_norms(self.features, norm)
        self.classifier = network.classifier
