"""AlexNet for small images."""

from __future__ import annotations

from torch import nn

from pdd_lightning.errors import ConfigError
from pdd_lightning.networks.features import Classifier

_REDUCTION = 8


class AlexNet(Classifier):
    """Five convolutions with ReLU, 2x2 max pooling after the first two and the last, then one linear layer.

    The first two kernels are 5x5, the others 3x3. Without norms, its outputs are small at initialization, and it
    learns more slowly than the other networks. 1,872,202 parameters for 32 pixels, 3 channels and 10 classes.

    Raises:
        ConfigError: The images are smaller than 8 pixels.

    Reference:
        Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012, reduced as in
        Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021, section 4.1.
    """

    def __init__(self, in_channels: int, num_classes: int, image_size: int) -> None:
        super().__init__()
        if image_size < _REDUCTION:
            raise ConfigError(f"AlexNet does not fit images of {image_size} pixels: it needs at least {_REDUCTION}")
        layers = [
            *_convolution(in_channels, 128, 5),
            nn.MaxPool2d(2),
            *_convolution(128, 192, 5),
            nn.MaxPool2d(2),
            *_convolution(192, 256, 3),
            *_convolution(256, 192, 3),
            *_convolution(192, 192, 3),
            nn.MaxPool2d(2),
        ]
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.classifier = nn.Linear(192 * (image_size // _REDUCTION) ** 2, num_classes)


def _convolution(in_channels: int, channels: int, kernel_size: int) -> list[nn.Module]:
    """Return a convolution that preserves the size of its input, and ReLU."""
    return [nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2), nn.ReLU(inplace=True)]
