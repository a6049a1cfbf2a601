"""Pixel spaces: how images in [0, 1] become what the networks see, and how to get back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import model_validator
from torch import Tensor

from pdd_lightning.augment.zca import ZCA
from pdd_lightning.errors import ConfigError
from pdd_lightning.stored import Stored, array, damaged_error, validate


class PixelSpace(ABC):
    """An invertible map between images in [0, 1] and the space in which networks are trained."""

    kind: ClassVar[str]

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Map images `[N, C, H, W]` in [0, 1] to model space, on their own device and in their dtype."""

    @abstractmethod
    def decode(self, images: Tensor) -> Tensor:
        """Map images `[N, C, H, W]` from model space to the [0, 1] scale, not clipped."""

    @abstractmethod
    def level(self, value: float) -> Tensor:
        """Return what a plain level (0 black, 1 white) is in model space: per channel `[C, 1, 1]`.

        Raises:
            ConfigError: Levels have no such counterpart, because the space mixes pixels.
        """

    @abstractmethod
    def suits(self, image_shape: Sequence[int]) -> bool:
        """Whether images of shape `(C, H, W)` have as many channels, or pixels, as the space was made for."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return what `from_tensors` needs to rebuild this space, as float32 on the CPU."""

    @staticmethod
    def from_tensors(kind: str, tensors: Mapping[str, Tensor], where: str | Path = "the pixel space") -> PixelSpace:
        """Rebuild a stored pixel space.

        Args:
            kind: The space's `kind`: "standard" or "zca".
            tensors: What its `tensors()` gave.
            where: Name of the file that they come from.

        Raises:
            DamagedFileError: The kind is unknown, or a tensor is missing or not what it must be.
        """
        if kind == Standardized.kind:
            stored = validate(_StoredStandard, dict(tensors), where)
            return Standardized(stored.mean, stored.std)
        if kind != Whitened.kind:
            raise damaged_error(where, f"unknown pixel space {kind!r}; known are {Standardized.kind}, {Whitened.kind}")
        fitted = validate(_StoredZCA, dict(tensors), where)
        # The matrix is symmetric with eigenvalues 1/sqrt(variance + eps), far from 0: inverting it again
        # loses next to nothing, and a stored set takes half the space.
        factor, failed = torch.linalg.cholesky_ex(fitted.matrix.double())
        if failed or not torch.allclose(fitted.matrix, fitted.matrix.T, rtol=1e-3, atol=1e-4):
            raise damaged_error(where, "matrix: the matrix of a ZCA is symmetric and positive definite")
        inverse = torch.cholesky_inverse(factor).float()
        return Whitened(ZCA(mean=fitted.mean, matrix=fitted.matrix, inverse=inverse))


class _StoredStandard(Stored):
    """What `Standardized.tensors` gives, as it may come back from a file."""

    mean: Annotated[Tensor, array("C: float32")]
    std: Annotated[Tensor, array("C: float32")]

    @model_validator(mode="after")
    def fit(self) -> _StoredStandard:
        """Refuses deviations that are not positive, and means that are not as many."""
        if len(self.mean) != len(self.std) or not len(self.std) or not bool((self.std > 0).all()):
            raise ValueError(f"std must be positive and as long as mean, got {self.std.tolist()[:5]}")
        return self


class _StoredZCA(Stored):
    """What `Whitened.tensors` gives, as it may come back from a file."""

    mean: Annotated[Tensor, array("D: float32")]
    matrix: Annotated[Tensor, array("D D: float32")]

    @model_validator(mode="after")
    def fit(self) -> _StoredZCA:
        """Refuses a matrix that is not square, or of another size than the mean image."""
        if list(self.matrix.shape) != [len(self.mean)] * 2 or not len(self.mean):
            raise ValueError(f"matrix must be [{len(self.mean)}, {len(self.mean)}], got {list(self.matrix.shape)}")
        return self


class Standardized(PixelSpace):
    """Per-channel standardisation, (x - mean) / std.

    Args:
        mean: Channel means `[C]` on the [0, 1] scale.
        std: Channel standard deviations `[C]` on the [0, 1] scale, all positive.
    """

    kind = "standard"

    def __init__(self, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]) -> None:
        self.mean = torch.as_tensor(mean, dtype=torch.float32).cpu()
        self.std = torch.as_tensor(std, dtype=torch.float32).cpu()

    @classmethod
    def fit(cls, images: Tensor) -> Standardized:
        """Fit to uint8 images `[N, C, H, W]`; a constant channel counts as deviation 1.

        Computed from exact counts of the 256 levels, so that the result is the same on every machine.
        """
        levels = torch.arange(256, dtype=torch.float64) / 255
        counts = [torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]
        shares = torch.stack(counts).double() / (images.numel() // images.shape[1])
        mean = shares @ levels
        variance = (shares * (levels - mean[:, None]).square()).sum(1)
        return cls(mean, torch.where(variance > 0, variance, 1.0).sqrt())

    def encode(self, images: Tensor) -> Tensor:
        """Map images `[N, C, H, W]` in [0, 1] to zero mean and unit deviation per channel."""
        return (images - self._per_channel(self.mean, images)) / self._per_channel(self.std, images)

    def decode(self, images: Tensor) -> Tensor:
        """Map standardised images `[N, C, H, W]` to the [0, 1] scale, not clipped."""
        return images * self._per_channel(self.std, images) + self._per_channel(self.mean, images)

    def level(self, value: float) -> Tensor:
        """Return what a plain level (0 black, 1 white) is in model space: per channel `[C, 1, 1]`."""
        return self.encode(torch.full((len(self.mean), 1, 1), value))

    def suits(self, image_shape: Sequence[int]) -> bool:
        """Whether images of shape `(C, H, W)` have as many channels."""
        return image_shape[0] == len(self.mean)

    def tensors(self) -> dict[str, Tensor]:
        """Return `mean` and `std`, each `[C]`."""
        return {"mean": self.mean, "std": self.std}

    @staticmethod
    def _per_channel(values: Tensor, images: Tensor) -> Tensor:
        return values.to(images).view(-1, 1, 1)


class Whitened(PixelSpace):
    """ZCA whitening over all pixels and channels together.

    Args:
        zca: The fitted transform.
    """

    kind = "zca"

    def __init__(self, zca: ZCA) -> None:
        self.zca = zca
        self._copies: dict[tuple[torch.device, torch.dtype], ZCA] = {}

    def encode(self, images: Tensor) -> Tensor:
        """Whiten images `[N, C, H, W]` in [0, 1]."""
        zca, work = self._matching(images)
        return zca.whiten(work).to(images.dtype)

    def decode(self, images: Tensor) -> Tensor:
        """Map whitened images `[N, C, H, W]` to the [0, 1] scale, not clipped."""
        zca, work = self._matching(images)
        return zca.restore(work).to(images.dtype)

    def level(self, value: float) -> Tensor:
        """Refuse: whitened pixels depend on the whole image.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "images that are cut into pieces, or kept within [0, 1], cannot be ZCA-whitened, because whitening mixes"
            " their pixels: set the data's normalization to standard"
        )

    def suits(self, image_shape: Sequence[int]) -> bool:
        """Whether images of shape `(C, H, W)` have as many pixels in all channels together."""
        return math.prod(image_shape) == len(self.zca.mean)

    def tensors(self) -> dict[str, Tensor]:
        """Return `mean` `[D]` and `matrix` `[D, D]`, D = C * H * W."""
        return {"mean": self.zca.mean.float().cpu(), "matrix": self.zca.matrix.float().cpu()}

    def _matching(self, images: Tensor) -> tuple[ZCA, Tensor]:
        """Bring transform and images to the images' device and to at least single precision.

        A sum over thousands of pixels in half precision would lose the image. The moved matrices are kept:
        they are large, and a loop encodes one batch after another.
        """
        work = images if images.dtype == torch.float64 else images.float()
        key = (work.device, work.dtype)
        if key not in self._copies:
            fitted = self.zca
            self._copies[key] = ZCA(
                mean=fitted.mean.to(work), matrix=fitted.matrix.to(work), inverse=fitted.inverse.to(work)
            )
        return self._copies[key], work
