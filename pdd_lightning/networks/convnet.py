"""The convolutional network that dataset distillation is usually measured with."""

from __future__ import annotations

import math

from torch import Tensor, nn

from pdd_lightning.errors import ConfigError
from pdd_lightning.kernels.chain import ChainBlock, chain_gradient
from pdd_lightning.networks.blocks import Blocks, fused_blocks, hooked
from pdd_lightning.networks.norm import Norm, norm_layers
from pdd_lightning.typing import Params

_MNIST_SIZE = 28
_MNIST_MAP = 32


class ConvNet(nn.Module):
    """`depth` blocks of 3x3 convolution, norm, ReLU and 2x2 average pooling, then one linear layer.

    One-channel images of 28 pixels are padded by the first convolution so that its map has 32 pixels.

    Args:
        in_channels: Number of image channels.
        num_classes: Number of outputs.
        image_size: Height and width of the (square) images, in pixels.
        depth: Number of blocks: 3 for 32 pixels, 4 for 64, 5 for 128.
        width: Number of channels of every block.
        norm: Normalisation after each convolution; `instance` is a group norm with one channel per group.

    Attributes:
        features: Images `[N, C, H, W]` to flattened features `[N, F]`.
        classifier: Features to logits `[N, num_classes]`.

    Raises:
        ConfigError: If the images are too small for the depth, or the norm is unknown.

    Reference:
        Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", CVPR 2018, as used in
        Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021, section 3.1.

    Example:
        >>> import torch
        >>> ConvNet(3, 10, 32)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
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
        _check_depth(image_size, map_size, depth)
        layers: list[nn.Module] = []
        for block in range(depth):
            padding = 3 if padded and block == 0 else 1
            channels = in_channels if block == 0 else width
            # In place: nobody needs the map before the ReLU, and unrolled loops hold all that is stored.
            layers += [nn.Conv2d(channels, width, 3, padding=padding), *norm_layers(norm, width)]
            layers += [nn.ReLU(inplace=True), nn.AvgPool2d(2)]
        self.features = Blocks(*layers, nn.Flatten())
        self.classifier = nn.Linear(width * (map_size >> depth) ** 2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[N, num_classes]` of images `[N, C, H, W]`."""
        logits: Tensor = self.classifier(self.features(images))
        return logits

    def loss_gradient(self, params: Params, images: Tensor, labels: Tensor) -> tuple[Tensor, ...] | None:
        """Return the gradient of the mean cross-entropy by the parameters in one operation, or None if there is none.

        There is one on a CPU with compiled kernels, for `instance` norm; see `pdd_lightning.kernels.chain`. It can be
        differentiated once, in parameters, images and label probabilities.

        Args:
            params: All parameters, in the place of the network's own.
            images: `[N, C, H, W]`.
            labels: Classes `[N]`, all of them counting, or class probabilities `[N, num_classes]`.
        """
        blocks = fused_blocks(self.features, images)
        own = (type(self), type(self.classifier)) == (ConvNet, nn.Linear)
        if blocks is None or not own or not len(images) or any(map(hooked, self.modules())):
            return None
        if list(params) != [name for name, _ in self.named_parameters()] or len(params) != 4 * len(blocks) + 2:
            return None
        chain = [ChainBlock(block.padding, block.norm.eps) for block in blocks]
        return chain_gradient(chain, tuple(params.values()), images, labels)


def _check_depth(image_size: int, map_size: int, depth: int) -> None:
    """Raise `ConfigError` unless the map (in pixels) can be halved `depth` times."""
    largest = int(math.log2(map_size)) if map_size >= 1 else 0
    if not 1 <= depth <= largest:
        raise ConfigError(
            f"ConvNet of depth {depth} does not fit images of {image_size} pixels: each block halves "
            f"the map; the largest depth that fits is {largest}, the smallest 1"
        )
