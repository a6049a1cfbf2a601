"""Vision transformer for small images."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pdd_lightning.errors import ConfigError


class ViT(nn.Module):
    """Vision transformer: the image's patches and a class token through encoder layers, then one linear layer.

    The defaults are the network that distilled sets are usually evaluated with, whose 16-pixel patches of 128-pixel
    images are 8x8 patches, as 4-pixel patches of 32-pixel images are. 15,844,874 parameters for 32 pixels, 3 channels
    and 10 classes.

    Args:
        in_channels: Number of image channels.
        num_classes: Number of outputs.
        image_size: Height and width of the (square) images, in pixels.
        patch_size: Height and width of the patches, in pixels; must divide the image size.
        depth: Number of encoder layers.
        width: Length of the tokens.
        heads: Number of attention heads; must divide the width.
        mlp_width: Hidden units of each encoder layer's perceptron.
        dropout: Probability of dropout after the embedding and in the encoder layers.

    Attributes:
        features: Images `[N, C, H, W]` to the class token `[N, width]`.
        classifier: Features to logits `[N, num_classes]`.

    Raises:
        ConfigError: If the patches do not fill the image, or the heads do not share the width.

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
        # torchvision is imported where it is used: importing the package stays light.
        from torchvision.models import VisionTransformer

        self.features = VisionTransformer(
            image_size, patch_size, depth, heads, width, mlp_width, dropout, num_classes=num_classes
        )
        self.features.conv_proj = _patches(in_channels, width, patch_size)
        self.features.heads = nn.Identity()
        # Unlike torchvision's, not zero: a zero classifier gives the images no gradient.
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[N, num_classes]` of images `[N, C, H, W]`."""
        # The fused kernels of attention cannot be differentiated twice, and gain nothing with so few tokens.
        with sdpa_kernel(SDPBackend.MATH):
            logits: Tensor = self.classifier(self.features(images))
        return logits


def _patches(in_channels: int, width: int, patch_size: int) -> nn.Conv2d:
    """Linear embedding of patches, initialised as torchvision's for any number of channels."""
    embedding = nn.Conv2d(in_channels, width, patch_size, patch_size)
    nn.init.trunc_normal_(embedding.weight, std=math.sqrt(1 / (in_channels * patch_size**2)))
    nn.init.zeros_(embedding.bias)  # type: ignore[arg-type]  # there is one
    return embedding
