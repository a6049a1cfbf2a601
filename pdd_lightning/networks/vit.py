"""Vision transformer for small images."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pdd_lightning.errors import ConfigError
from pdd_lightning.networks.features import Classifier


class ViT(Classifier):
    """Vision transformer: the image's patches and a class token through encoder layers, then one linear layer.

    The defaults are the network that is usual in evaluations, with 8x8 patches (16-pixel patches of 128-pixel images
    there, 4-pixel patches of 32-pixel images here). 15,844,874 parameters for 32 pixels, 3 channels and 10 classes.

    Args:
        patch_size: Height and width of the patches, in pixels; must divide the image size.
        depth: Number of encoder layers.
        width: Length of the tokens.
        heads: Number of attention heads; must divide the width.
        mlp_width: Hidden units of each encoder layer's perceptron.
        dropout: Probability of dropout after the embedding and in the encoder layers.

    Raises:
        ConfigError: The patch size does not divide the image size, or the number of heads the width.

    Reference:
        Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; width, depth and heads: Cazenavette et al.,
        "Generalizing Dataset Distillation via Deep Generative Prior", CVPR 2023.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int,
        patch_size: int = 4,
        depth: int = 10,
        width: int = 512,
        heads: int = 8,
        mlp_width: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if patch_size < 1 or image_size % patch_size:
            raise ConfigError(f"patch_size {patch_size} must divide the image size, {image_size} pixels")
        if heads < 1 or width % heads:
            raise ConfigError(f"heads ({heads}) must divide the width, {width}")
        from torchvision.models import VisionTransformer

        self.features = VisionTransformer(
            image_size, patch_size, depth, heads, width, mlp_width, dropout, num_classes=num_classes
        )
        self.features.conv_proj = _patches(in_channels, width, patch_size)
        self.features.heads = nn.Identity()
        # Torchvision's classifier is zero at initialization, which gives the images no gradient.
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[N, num_classes]` of images `[N, C, H, W]`."""
        # Fused attention cannot be differentiated twice, and is no faster with so few tokens.
        with sdpa_kernel(SDPBackend.MATH):
            return super().forward(images)


def _patches(in_channels: int, width: int, patch_size: int) -> nn.Conv2d:
    """Return a patch embedding, initialized like torchvision's, for any number of channels."""
    embedding = nn.Conv2d(in_channels, width, patch_size, patch_size)
    nn.init.trunc_normal_(embedding.weight, std=math.sqrt(1 / (in_channels * patch_size**2)))
    nn.init.zeros_(embedding.bias)  # type: ignore[arg-type]  # there is one
    return embedding
