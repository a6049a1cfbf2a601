"""Stages whose stored images are decoded to several training images each, as in IDC."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from pdd_lightning.augment import decode, tile
from pdd_lightning.augment.multiformation import GREY, piece_side
from pdd_lightning.errors import check_at_least
from pdd_lightning.stages.stage import DistillationStage
from pdd_lightning.typing import NetworkFactory


class DecodedImages(DistillationStage):
    """Learns images of `factor`^2 pieces, each of which is enlarged to a training image.

    The pixels are in [0, 1], but the images are kept in model space like those of every method. For per-channel
    standardization this is exact: decoding commutes with it, the images are clamped to black and white of each channel,
    and their gradient is scaled by 1/std^2, which makes `lr_img` the rate of the pixels on the [0, 1] scale. ZCA, which
    mixes pixels and has no such bounds, is refused.

    Args:
        network: See `DistillationStage`.
        ipc: Stored images per class and stage.
        factor: Pieces per side of a stored image.
        lr_img: Learning rate of the pixels on the [0, 1] scale.
        momentum: Momentum of the images' SGD.
        init: Start from factor^2 reduced real images in each (mix), from real images, or from noise.
        augment: See `DistillationStage`.
        align_corners: Sampling of scale and rotation.

    Raises:
        ConfigError: A setting is out of range.

    Reference:
        Kim et al., Dataset Condensation via Efficient Synthetic-Data Parameterization (ICML 2022), section 4.
    """

    inits = ("mix", "real", "noise")

    def __init__(
        self,
        network: NetworkFactory,
        ipc: int,
        factor: int,
        lr_img: float,
        momentum: float,
        init: Literal["mix", "real", "noise"],
        augment: str,
        align_corners: bool,
    ) -> None:
        super().__init__(network, ipc, lr_img, momentum, init, augment, align_corners)
        check_at_least(1, factor=factor)
        self.factor = factor

    @property
    def decode_factor(self) -> int:
        """Pieces per side of a stored image."""
        return self.factor

    @property
    def init_images(self) -> int:
        """Real images of each class that the initial images of a stage are made of."""
        return super().init_images * (self.factor**2 if self.init == "mix" else 1)

    def setup(self, stage: str) -> None:
        """Create the parameters; refuse whitened data, and a factor that does not suit the image size."""
        real = self.data.real
        real.pixels.level(GREY)  # refuses whitened data
        piece_side(real.image_shape[1], self.factor)
        super().setup(stage)

    def restart(self, generator: torch.Generator) -> None:
        """Begin a new stage with new images within the bounds."""
        super().restart(generator)
        self._clamp()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step and clamp the images to [0, 1]."""
        super().optimizer_step(*args, **kwargs)
        self._clamp()

    def learned_images(self) -> Tensor:
        """Return the images `[num_classes * ipc, C, H, W]`, with their gradient scaled by 1/std^2."""
        pixels = self.data.real.pixels
        scale = (pixels.level(1.0) - pixels.level(0.0)).square().to(self.images)
        return self.images + (scale - 1) * (self.images - self.images.detach())

    def decoded(self, images: Tensor) -> Tensor:
        """Return the training images `[n * factor^2, C, H, W]`: the first piece of all images, then the second, .."""
        return decode(images, self.labels[:0], self.factor, self.data.real.pixels.level(GREY))[0]

    def _initial_images(self, generator: torch.Generator) -> Tensor:
        images = super()._initial_images(generator)
        return tile(images, self.factor) if self.init == "mix" else images

    @torch.no_grad()
    def _clamp(self) -> None:
        pixels = self.data.real.pixels
        self.images.clamp_(pixels.level(0.0).to(self.images), pixels.level(1.0).to(self.images))
