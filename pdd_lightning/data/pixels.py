"""Pixel spaces: invertible maps between images in [0, 1] and the inputs of networks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from pdd_lightning.augment.zca import ZCA
from pdd_lightning.errors import ConfigError
from pdd_lightning.stored import Stored, array, damaged_error, validate


class PixelSpace(ABC):
    """An invertible map between images in [0, 1] and the space in which networks are trained."""

    kind: ClassVar[str]

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Map images `[N, C, H, W]` in [0, 1] to model space; device and dtype stay the same."""

    @abstractmethod
    def decode(self, images: Tensor) -> Tensor:
        """Map images `[N, C, H, W]` from model space to the [0, 1] scale, not clipped."""

    @abstractmethod
    def level(self, value: float) -> Tensor:
        """Map a gray level (0 black, 1 white) to model space: a value per channel `[C, 1, 1]`.

        Raises:
            ConfigError: The space mixes pixels, so that a level has no value of its own.
        """

    @abstractmethod
    def suits(self, image_shape: Sequence[int]) -> bool:
        """Return whether images of shape `(C, H, W)` have the number of channels, or pixels, of the space."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the float32 tensors on the CPU from which `from_tensors` rebuilds this space."""

    @staticmethod
    def from_tensors(kind: str, tensors: Mapping[str, Tensor], where: str | Path = "the pixel space") -> PixelSpace:
        """Rebuild a stored pixel space.

        Args:
            kind: The space's `kind`: "standard" or "zca".
            tensors: Its `tensors()`.
            where: Name of the file for error messages.

        Raises:
            DamagedFileError: The kind is unknown, or a tensor is missing or invalid.
        """
        if kind == Standardized.kind:
            stored = validate(_StoredStandard, dict(tensors), where)
            mean, std = stored.mean, stored.std
            if len(mean) != len(std) or not len(std) or not bool((std > 0).all()):
                raise damaged_error(where, f"std must be positive and as long as mean, got {std.tolist()[:5]}")
            return Standardized(mean, std)
        if kind != Whitened.kind:
            raise damaged_error(where, f"unknown pixel space {kind!r}; known are {Standardized.kind}, {Whitened.kind}")
        fitted = validate(_StoredZCA, dict(tensors), where)
        mean, matrix = fitted.mean, fitted.matrix
        if list(matrix.shape) != [len(mean)] * 2 or not len(mean):
            raise damaged_error(where, f"matrix must be [{len(mean)}, {len(mean)}], got {list(matrix.shape)}")
        # The matrix is symmetric with eigenvalues 1/sqrt(variance + eps), far from 0: inverting it again loses hardly
        # any precision, and halves the size of a stored set.
        factor, failed = torch.linalg.cholesky_ex(matrix.double())
        if failed or not torch.allclose(matrix, matrix.T, rtol=1e-3, atol=1e-4):
            raise damaged_error(where, "matrix: the matrix of a ZCA is symmetric and positive definite")
        return Whitened(ZCA(mean, matrix, inverse=torch.cholesky_inverse(factor).float()))


class _StoredStandard(Stored):
    """Model of `Standardized.tensors` as read from a file."""

    mean: Annotated[Tensor, array("C: float32")]
    std: Annotated[Tensor, array("C: float32")]


class _StoredZCA(Stored):
    """Model of `Whitened.tensors` as read from a file."""

    mean: Annotated[Tensor, array("D: float32")]
    matrix: Annotated[Tensor, array("D D: float32")]


class Standardized(PixelSpace):
    """Per-channel standardization, (x - mean) / std.

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
        """Fit to uint8 images `[N, C, H, W]`; the deviation of a constant channel is set to 1.

        The result follows from exact counts of the 256 levels, and is the same on every machine.
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
        """Map standardized images `[N, C, H, W]` to the [0, 1] scale, not clipped."""
        return images * self._per_channel(self.std, images) + self._per_channel(self.mean, images)

    def level(self, value: float) -> Tensor:
        """Map a gray level (0 black, 1 white) to model space: a value per channel `[C, 1, 1]`."""
        return self.encode(torch.full((len(self.mean), 1, 1), value))

    def suits(self, image_shape: Sequence[int]) -> bool:
        """Return whether images of shape `(C, H, W)` have as many channels."""
        return image_shape[0] == len(self.mean)

    def tensors(self) -> dict[str, Tensor]:
        """Return `mean` and `std`, each `[C]`."""
        return {"mean": self.mean, "std": self.std}

    @staticmethod
    def _per_channel(values: Tensor, images: Tensor) -> Tensor:
        return values.to(images).view(-1, 1, 1)


class Whitened(PixelSpace):
    """ZCA whitening over all pixels and channels together, by a fitted transform."""

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
        """Raise `ConfigError`: whitened pixels depend on the entire image."""
        raise ConfigError(
            "images that are divided into pieces, or clipped to [0, 1], cannot be ZCA-whitened, because whitening mixes"
            " their pixels: set the data's normalization to standard"
        )

    def suits(self, image_shape: Sequence[int]) -> bool:
        """Return whether images of shape `(C, H, W)` have as many pixels, counting all channels."""
        return math.prod(image_shape) == len(self.zca.mean)

    def tensors(self) -> dict[str, Tensor]:
        """Return `mean` `[D]` and `matrix` `[D, D]`, D = C * H * W."""
        return {"mean": self.zca.mean.float().cpu(), "matrix": self.zca.matrix.float().cpu()}

    def _matching(self, images: Tensor) -> tuple[ZCA, Tensor]:
        """Return transform and images on the images' device and in at least single precision.

        Sums over thousands of pixels need more than half precision. Copies of the large matrices are cached.
        """
        work = images if images.dtype == torch.float64 else images.float()
        key = (work.device, work.dtype)
        if key not in self._copies:
            self._copies[key] = ZCA(*(tensor.to(work) for tensor in vars(self.zca).values()))
        return self._copies[key], work
