"""Any of torchvision's classifiers, for evaluation."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pdd_lightning.errors import ConfigError


class Torchvision(nn.Module):
    """One of torchvision's classifiers by name, untrained.

    One-channel images are repeated to the three channels that these networks take.

    Args:
        in_channels: Number of image channels: 1 or 3.
        num_classes: Number of outputs.
        image_size: Height and width of the (square) images, in pixels.
        name: As in `torchvision.models.list_models(torchvision.models)`, for instance `resnet50`.
        resize: Height and width in pixels to which images are resized bilinearly; null does not resize.
        options: Further arguments of the network's builder in torchvision.

    Raises:
        ConfigError: There is no such network, it lacks an option, or it does not work on such images.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int,
        name: str = "resnet18",
        resize: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        from torchvision import models

        if name not in models.list_models(models):
            known = ", ".join(models.list_models(models))
            raise ConfigError(f"torchvision has no classifier {name!r}; it has {known}")
        if in_channels not in (1, 3):
            raise ConfigError(f"torchvision's classifiers take images of 1 or 3 channels, got {in_channels}")
        if downloaded := [option for option in options or {} if option.startswith("weights")]:
            raise ConfigError(f"networks are created untrained: leave out the option {downloaded[0]}")
        self.resize = resize
        try:
            self.network = models.get_model(name, num_classes=num_classes, **options or {})
            self._check_output(in_channels, num_classes, image_size)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise ConfigError(
                f"torchvision's {name} does not work on images of {resize or image_size} pixels with options "
                f"{options or {}}: {error}. Small images may need resize (most of these networks were made for 224 "
                "pixels), networks with auxiliary outputs the option aux_logits: false"
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[N, num_classes]` of images `[N, C, H, W]`."""
        if self.resize is not None:
            images = F.interpolate(images, size=(self.resize, self.resize), mode="bilinear", antialias=False)
        logits: Tensor = self.network(images.expand(-1, 3, -1, -1))
        return logits

    def _check_output(self, in_channels: int, num_classes: int, image_size: int) -> None:
        """Raise an error unless a copy on the meta device returns logits for a batch of two in training mode."""
        images = torch.empty(2, in_channels, image_size, image_size, device="meta")
        logits = copy.deepcopy(self).to("meta")(images)
        if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
            raise ValueError("it returns more than logits")
