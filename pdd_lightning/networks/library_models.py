"""Any classifier of torchvision or timm, to evaluate with."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pdd_lightning.errors import ConfigError
from pdd_lightning.shorthand import did_you_mean


class _LibraryNetwork(nn.Module, ABC):
    """A classifier of a library, by name and untrained; for the arguments see its subclasses.

    Attributes:
        library: Name of the library, for messages.
    """

    library: ClassVar[str]

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
        options = options or {}
        make = self._find(name, options)
        if in_channels not in (1, 3):
            raise ConfigError(f"{self.library}'s classifiers take images of 1 or 3 channels, got {in_channels}")
        self.resize = resize
        try:
            self.network = make(name, num_classes=num_classes, **options)
            self._check_output(in_channels, num_classes, image_size)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise ConfigError(
                f"{self.library}'s {name} does not work on images of {resize or image_size} pixels with options"
                f" {options}: {error}. Small images may need resize (most of these networks were made for 224 pixels),"
                " networks with auxiliary outputs the option aux_logits: false"
            ) from error

    @abstractmethod
    def _find(self, name: str, options: dict[str, Any]) -> Callable[..., nn.Module]:
        """Return the function that makes a network of the library, or refuse its name or options."""

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


class Torchvision(_LibraryNetwork):
    """One of torchvision's classifiers by name, untrained.

    One-channel images are repeated to the three channels that these networks take.

    Args:
        in_channels: Number of image channels: 1 or 3.
        num_classes: Number of outputs.
        image_size: Height and width of the (square) images, in pixels.
        name: As in `torchvision.models.list_models(torchvision.models)`, for instance `resnet50`.
        resize: Height and width in pixels to which images are resized bilinearly; null does not resize.
        options: Further arguments of the network's own function in torchvision.

    Raises:
        ConfigError: If there is no such network, it does not know an option, or it does not work on such images.

    Examples:
        >>> Torchvision(3, 10, 32, "shufflenet_v2_x1_0")(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    library = "torchvision"

    def _find(self, name: str, options: dict[str, Any]) -> Callable[..., nn.Module]:
        # torchvision is imported where it is used: importing the package stays light.
        from torchvision import models

        if name not in models.list_models(models):
            known = ", ".join(models.list_models(models))
            raise ConfigError(f"torchvision has no classifier {name!r}; it has {known}")
        _check_untrained(options, "weights")
        make: Callable[..., nn.Module] = models.get_model
        return make


class Timm(_LibraryNetwork):
    """One of timm's classifiers by name, untrained; needs the extra `timm`.

    One-channel images are repeated to the three channels that these networks take.

    Args:
        in_channels: Number of image channels: 1 or 3.
        num_classes: Number of outputs.
        image_size: Height and width of the (square) images, in pixels.
        name: As in `timm.list_models()`, for instance `efficientnet_b0`.
        resize: Height and width in pixels to which images are resized bilinearly; null does not resize.
        options: Further arguments of `timm.create_model`, for instance `{"img_size": 32}`.

    Raises:
        ConfigError: If timm is not installed, there is no such network, it does not know an option, or it does not
            work on such images.
    """

    library = "timm"

    def _find(self, name: str, options: dict[str, Any]) -> Callable[..., nn.Module]:
        try:
            import timm
        except ImportError as error:
            raise ConfigError("this network needs timm: pip install 'pdd-lightning[timm]'") from error
        if not timm.is_model(name):  # names with a colon would be fetched from elsewhere
            advice = did_you_mean(name, timm.list_models()) or "see timm.list_models()"
            raise ConfigError(f"timm has no classifier {name!r}: {advice}")
        _check_untrained(options, "pretrained", "checkpoint")
        make: Callable[..., nn.Module] = timm.create_model
        return make


def _check_untrained(options: dict[str, Any], *names: str) -> None:
    if given := [option for option in options if option.startswith(names)]:
        raise ConfigError(f"networks are created untrained: leave out the option {given[0]}")
