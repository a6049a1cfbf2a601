"""Any classifier of torchvision or timm, to evaluate with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pdd_lightning.errors import ConfigError
from pdd_lightning.shorthand import did_you_mean


class _LibraryNetwork(nn.Module):
    """A classifier of a library, by name and untrained; it takes images of 1 or 3 channels.

    Args:
        library: Name of the library, for messages.
        name: Name of the network.
        make: Makes the network.
        shape: Channels, and height and width in pixels, of the images.
        num_classes: Number of outputs.
        resize: Images are enlarged to this height and width; None leaves them as they are.
    """

    def __init__(
        self,
        library: str,
        name: str,
        make: Callable[[], nn.Module],
        shape: tuple[int, int],
        num_classes: int,
        resize: int | None,
    ) -> None:
        super().__init__()
        channels, size = shape
        if channels not in (1, 3):
            raise ConfigError(f"{library}'s classifiers take images of 1 or 3 channels, got {channels}")
        self.resize = resize
        try:
            self.network = make()
            self._check_output(channels, num_classes, size)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise ConfigError(
                f"{library}'s {name} does not work on images of {resize or size} pixels with these options: {error}."
                " Small images may need resize (most of these networks were made for 224 pixels), networks with"
                " auxiliary outputs the option aux_logits: false"
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

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int,
        name: str = "resnet18",
        resize: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        # torchvision is imported where it is used: importing the package stays light.
        from torchvision import models

        if name not in models.list_models(models):
            known = ", ".join(models.list_models(models))
            raise ConfigError(f"torchvision has no classifier {name!r}; it has {known}")
        check_untrained(options, "weights")
        make = partial(models.get_model, name, num_classes=num_classes, **options or {})
        super().__init__("torchvision", name, make, (in_channels, image_size), num_classes, resize)


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

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int,
        name: str = "resnet18",
        resize: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        try:
            import timm
        except ImportError as error:
            raise ConfigError("this network needs timm: pip install 'pdd-lightning[timm]'") from error
        if not timm.is_model(name):  # names with a colon would be fetched from elsewhere
            advice = did_you_mean(name, timm.list_models()) or "see timm.list_models()"
            raise ConfigError(f"timm has no classifier {name!r}: {advice}")
        check_untrained(options, "pretrained", "checkpoint")
        make = partial(timm.create_model, name, num_classes=num_classes, **options or {})
        super().__init__("timm", name, make, (in_channels, image_size), num_classes, resize)


def check_untrained(options: dict[str, Any] | None, *names: str) -> None:
    """Refuse options that load trained weights.

    Raises:
        ConfigError: There is one, whose name begins with one of `names`.
    """
    if given := [option for option in options or {} if option.startswith(names)]:
        raise ConfigError(f"networks are created untrained: leave out the option {given[0]}")
