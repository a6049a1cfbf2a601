"""A synthetic image set that grows by one stage at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pdd_lightning.augment.multiformation import GREY, decode
from pdd_lightning.data.pixels import PixelSpace
from pdd_lightning.errors import DataError
from pdd_lightning.files import sha256_of_tensors
from pdd_lightning.stored import MAX_CLASSES, MAX_NUMBERS, MAX_STAGES, Rate, Stored, array, validate


class StoredSet(Stored):
    """Model of `SyntheticSet.state_dict` as read from a file."""

    images: Annotated[Tensor, array("N C H W: float32")]
    labels: Annotated[Tensor, array("N: int64", "N classes: float32")]
    stages: Annotated[Tensor, array("N: int64")]
    learning_rates: Annotated[list[Rate | None], Field(max_length=MAX_STAGES)]
    decode_factor: Annotated[int, Field(ge=1, le=16)] = 1

    @model_validator(mode="after")
    def fit(self) -> StoredSet:
        """Refuse tensors that do not fit each other."""
        images, labels, count = self.images, self.labels, len(self.images)
        if not len(labels) == len(self.stages) == count:
            raise ValueError(f"{count} images, {len(labels)} labels and {len(self.stages)} stages do not fit")
        if images.numel() * self.decode_factor**2 > MAX_NUMBERS or not all(images.shape[1:]):
            raise ValueError(
                f"images {list(images.shape)} with decode_factor {self.decode_factor} are too many, or empty"
            )
        number = len(self.learning_rates)
        if self.stages.unique().tolist() != list(range(1, number + 1)):
            raise ValueError(f"stages must be 1 to {number}, one per learning rate, without a gap")
        if count and labels.dim() == 1 and not 0 <= int(labels.min()) <= int(labels.max()) < MAX_CLASSES:
            raise ValueError(f"labels are between {int(labels.min())} and {int(labels.max())}")
        # The comparisons are false for NaN.
        if count and labels.dim() == 2 and not ((labels.sum(1) - 1).abs().max() <= 1e-3 and labels.min() >= 0):
            raise ValueError("soft labels are not probabilities, >= 0 and of sum 1; of logits, store the softmax")
        return self


def hard_labels(labels: Tensor) -> Tensor:
    """Return classes `[N]` unchanged, and the most probable classes of soft labels `[N, classes]`."""
    return labels if labels.dim() == 1 else labels.argmax(1)


@dataclass(frozen=True)
class SyntheticSet:
    """Distilled images of all finished stages.

    Attributes:
        images: `[N, C, H, W]`, float32, in model space.
        labels: `[N]` int64 (hard) or `[N, classes]` float32 (soft).
        stages: `[N]` int64, the stage of each image, counted from 1.
        learning_rates: One per stage; None where the method does not learn it.
        decode_factor: Each image is decoded to `decode_factor`^2 training images, see `decoded`.
    """

    images: Tensor
    labels: Tensor
    stages: Tensor
    learning_rates: tuple[float | None, ...]
    decode_factor: int = 1

    @classmethod
    def empty(cls, image_shape: Sequence[int], decode_factor: int = 1) -> SyntheticSet:
        """Return a set without stages, for images of shape `(C, H, W)`."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls(torch.zeros(0, *image_shape), none, none, (), decode_factor)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_stages(self) -> int:
        """Number of finished stages."""
        return len(self.learning_rates)

    def stage(self, index: int) -> SyntheticSet:
        """Return the images of one stage; its learning rate is the last of `learning_rates`.

        Raises:
            IndexError: There is no such stage.
        """
        self._check_stage(index)
        return self._select(self.stages == index, index)

    def union(self, index: int) -> SyntheticSet:
        """Return the union of stages 1 to `index`, in the order of this set.

        Raises:
            IndexError: There is no such stage.
        """
        self._check_stage(index)
        return self._select(self.stages <= index, index)

    def decoded(self, pixels: PixelSpace) -> SyntheticSet:
        """Return the set that networks are trained on, with a `decode_factor` of 1.

        Args:
            pixels: The model space of the images, which determines the gray that they are padded with.

        Raises:
            ConfigError: The space mixes pixels (ZCA), so that images cannot be divided.
        """
        if self.decode_factor == 1:
            return self
        images, labels = decode(self.images, self.labels, self.decode_factor, pixels.level(GREY))
        return SyntheticSet(images, labels, self.stages.repeat(self.decode_factor**2), self.learning_rates)

    def append(self, images: Tensor, labels: Tensor, learning_rate: float | None = None) -> SyntheticSet:
        """Return a new set with one more stage.

        Args:
            images: `[n, C, H, W]` in model space; copied to this set's device, detached.
            labels: `[n]` hard or `[n, classes]` soft, of the same kind as those of earlier stages.
            learning_rate: The stage's learned student learning rate, if it has one.

        Raises:
            DataError: Images or labels do not fit those of the earlier stages.
        """
        if images.dim() != 4 or images.dtype != torch.float32:
            raise DataError(f"images must be [N, C, H, W] float32, got {list(images.shape)} {images.dtype}")
        hard = labels.dim() == 1 and labels.dtype == torch.int64
        soft = labels.dim() == 2 and labels.dtype == torch.float32
        if not (hard or soft) or len(labels) != len(images):
            raise DataError(
                f"labels must be [{len(images)}] int64 or [{len(images)}, classes] float32 like the {len(images)}"
                f" images, got {list(labels.shape)} {labels.dtype}"
            )
        if len(images) == 0:
            raise DataError("a stage needs at least one image")
        if images.shape[1:] != self.images.shape[1:]:
            raise DataError(
                f"the set holds images of shape {list(self.images.shape[1:])}, got {list(images.shape[1:])}"
            )
        if len(self) and (labels.dtype, labels.shape[1:]) != (self.labels.dtype, self.labels.shape[1:]):
            raise DataError(
                f"labels of earlier stages are {self.labels.dtype} {list(self.labels.shape[1:])} each, "
                f"got {labels.dtype} {list(labels.shape[1:])}"
            )
        device = self.images.device
        new_labels = labels.detach().to(device, copy=True)
        new_stages = torch.full((len(images),), self.num_stages + 1, dtype=torch.int64, device=device)
        return SyntheticSet(
            images=torch.cat([self.images, images.detach().to(device)]),
            labels=torch.cat([self.labels, new_labels]) if len(self) else new_labels,
            stages=torch.cat([self.stages, new_stages]),
            learning_rates=(*self.learning_rates, None if learning_rate is None else float(learning_rate)),
            decode_factor=self.decode_factor,
        )

    def to(self, device: torch.device | str) -> SyntheticSet:
        """Return the set on `device`."""
        images, labels, stages = (tensor.to(device) for tensor in (self.images, self.labels, self.stages))
        return replace(self, images=images, labels=labels, stages=stages)

    def state_dict(self) -> dict[str, Any]:
        """Return the content as tensors and primitives that `torch.load(weights_only=True)` accepts."""
        return {**vars(self), "learning_rates": list(self.learning_rates)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], where: str | Path = "the synthetic set") -> SyntheticSet:
        """Rebuild a set from `state_dict()`, which may come from a file.

        Args:
            state: The content.
            where: Name of the file for error messages.

        Raises:
            DamagedFileError: An entry is missing, is invalid, or does not fit the others.
        """
        stored = validate(StoredSet, dict(state), where)
        return cls(stored.images, stored.labels, stored.stages, tuple(stored.learning_rates), stored.decode_factor)

    def rates_tensor(self) -> Tensor:
        """Return the learning rates as float64 `[num_stages]`, NaN where there is none."""
        rates = [float("nan") if rate is None else rate for rate in self.learning_rates]
        return torch.tensor(rates, dtype=torch.float64)

    def sha256(self) -> str:
        """Return a hash of the content, the same on every device."""
        tensors = {"images": self.images, "labels": self.labels, "stages": self.stages}
        # A factor of 1 is left out, so that older hashes stay valid.
        text = {} if self.decode_factor == 1 else {"decode_factor": str(self.decode_factor)}
        return sha256_of_tensors({**tensors, "learning_rates": self.rates_tensor()}, text)

    def _select(self, chosen: Tensor, num_stages: int) -> SyntheticSet:
        images, labels, stages = (tensor[chosen] for tensor in (self.images, self.labels, self.stages))
        return replace(
            self, images=images, labels=labels, stages=stages, learning_rates=self.learning_rates[:num_stages]
        )

    def _check_stage(self, index: int) -> None:
        if not 1 <= index <= self.num_stages:
            held = f"stages 1 to {self.num_stages}" if self.num_stages else "no stage yet"
            raise IndexError(f"stage {index} does not exist: the set holds {held}")
