"""What a file of another form says, and what its reader has to be told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.formats.order import stages_of
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pdd_lightning.data.real import RealDataModule

_ROUNDING = 1e-3


@dataclass(frozen=True)
class ImportOptions:
    """What files of other forms do not say about a distilled set.

    Attributes:
        num_stages: Stages of a set that was distilled progressively; null takes what the file says, or one.
        ipc: Images per class and stage, from which the number of stages follows, too.
        decode_factor: Each stored image stands for `decode_factor`^2 training images (IDC); null takes what the file
            says, or 1 for the forms whose images always stand for themselves.

    Raises:
        ConfigError: A number is below 1.
    """

    num_stages: int | None = None
    ipc: int | None = None
    decode_factor: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be >= 1, got {value}")

    def check(self, where: object, num_stages: int | None = None, decode_factor: int | None = None) -> None:
        """Refuse options that contradict what a file says itself; None: it does not say.

        Raises:
            ConfigError: They do; the message names the option.
        """
        for name, said in {"num_stages": num_stages, "decode_factor": decode_factor}.items():
            given = getattr(self, name)
            if None not in (said, given) and given != said:
                raise ConfigError(f"{where} itself says {name} {said}: leave out {name} {given}")
        if num_stages is not None and self.ipc is not None:
            raise ConfigError(f"{where} itself says the stage of each image: leave out ipc")


@dataclass(frozen=True)
class Content:
    """What a file of another form says, read but not judged.

    Attributes:
        form: Name of the form, for messages and metadata.
        images: `[N, C, H, W]`, float32.
        labels: `[N]` integers, or `[N, classes]` float32 probabilities.
        in_pixels: Whether images are on the [0, 1] scale; otherwise in the model space of the real data.
        stages: Stage of each image `[N]` int64, where the file says it.
        rates: Learned learning rates: one per stage, or that of the last stage alone.
        decode_factor: See `SyntheticSet`, where the file says it.
        needs_factor: Whether images of this form usually stand for several, so that the factor has to be given.
        metadata: What else the file says.
    """

    form: str
    images: Any
    labels: Any
    in_pixels: bool
    stages: Tensor | None = None
    rates: tuple[float | None, ...] = ()
    decode_factor: int | None = None
    needs_factor: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)


def assemble(
    where: object, content: Content, real: RealDataModule, options: ImportOptions, stored: bool
) -> DistilledDataset:
    """Make the dataset of a file's content, in the order of its stages.

    Args:
        where: The file, for messages.
        content: What it says.
        real: Real images of the same classes, set up: their pixel space and class names become the set's.
        options: What the file does not say.
        stored: See `DistilledDataset`.

    Raises:
        DataError: Images or labels cannot form a set, or do not belong to the real data.
        ConfigError: An option is missing, or contradicts the file.
    """
    images = _checked_images(where, content, real)
    labels = _checked_labels(where, content.labels, len(images), real.num_classes)
    if content.stages is None:
        # One rate per stage says how many stages there are.
        said = len(content.rates) if len(content.rates) > 1 and options.ipc is None else None
        stages = stages_of(where, labels, real.num_classes, options.num_stages or said, options.ipc)
    else:
        stages = _checked_stages(where, content.stages, len(images))
        options.check(where, num_stages=int(stages.max()))
    order = torch.argsort(stages, stable=True)
    synthetic = SyntheticSet(
        images=(real.pixels.encode(images) if content.in_pixels else images)[order],
        labels=labels[order],
        stages=stages[order],
        learning_rates=_rates(where, content.rates, int(stages.max())),
        decode_factor=_decode_factor(where, content, options),
    )
    about = {"dataset": {"name": real.name}, "imported_from": content.form, **content.metadata}
    return DistilledDataset.of(synthetic, real.pixels, real.class_names, about, stored)


def _checked_images(where: object, content: Content, real: RealDataModule) -> Tensor:
    images = content.images
    if not _is_plain(images) or images.dim() != 4 or images.dtype != torch.float32 or len(images) == 0:
        raise DataError(f"{where}: images must be [N, C, H, W] float32, got {_kind(images)}")
    images = images.detach().clone(memory_format=torch.contiguous_format)
    if tuple(images.shape[1:]) != real.image_shape:
        raise DataError(
            f"{where} does not belong to {real.name}: its image shape: {tuple(images.shape[1:])}, the data's:"
            f" {real.image_shape}"
        )
    if not bool(images.isfinite().all()):
        raise DataError(f"{where}: pixels are infinite or not a number; its distillation went wrong")
    if content.in_pixels and not -_ROUNDING <= float(images.min()) <= float(images.max()) <= 1 + _ROUNDING:
        raise DataError(
            f"{where}: pixels lie between {float(images.min()):.3g} and {float(images.max()):.3g}, but images of"
            f" {content.form} form lie in [0, 1]"
        )
    return images


def _checked_labels(where: object, labels: Any, count: int, num_classes: int) -> Tensor:
    if _is_plain(labels) and labels.dim() == 2 and labels.dtype == torch.float32:
        return _checked_probabilities(where, labels, count, num_classes)
    whole = _is_plain(labels) and not (labels.is_floating_point() or labels.is_complex())
    if not whole or labels.dtype == torch.bool or labels.shape != (count,):
        raise DataError(
            f"{where}: labels must be [{count}] integers or [{count}, {num_classes}] float32 like the {count} images,"
            f" got {_kind(labels)}"
        )
    numbers: Tensor = labels.detach().long().clone()
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"{where}: labels lie between {low} and {high}, but the data has {num_classes} classes, 0 to"
            f" {num_classes - 1}: name the data that it was distilled from"
        )
    return numbers


def _checked_probabilities(where: object, labels: Tensor, count: int, num_classes: int) -> Tensor:
    if labels.shape != (count, num_classes):
        raise DataError(f"{where}: soft labels must be [{count}, {num_classes}], got {_kind(labels)}")
    labels = labels.detach().clone(memory_format=torch.contiguous_format)
    off = (labels.sum(1) - 1).abs().max()
    # Written so that values that are not numbers fail, too.
    if not (float(labels.min()) >= 0 and float(off) <= _ROUNDING):
        raise DataError(f"{where}: soft labels are not probabilities; if they are logits, store their softmax")
    return labels


def _checked_stages(where: object, stages: Tensor, count: int) -> Tensor:
    found = stages.unique().tolist()
    if stages.shape != (count,) or stages.is_floating_point() or found != list(range(1, len(found) + 1)):
        raise DataError(f"{where}: stages must be {count} whole numbers 1, 2, .. without a gap, got {found[:5]}")
    return stages.long()


def _decode_factor(where: object, content: Content, options: ImportOptions) -> int:
    options.check(where, decode_factor=content.decode_factor)
    factor = content.decode_factor or options.decode_factor
    if factor is None and content.needs_factor:
        raise ConfigError(
            f"{where} does not say how many images each of its images stands for: give decode_factor (IDC takes 2 for"
            " images of 32 pixels and 3 for larger ones; 1: each for itself)"
        )
    return factor or 1


def _rates(where: object, rates: tuple[float | None, ...], num_stages: int) -> tuple[float | None, ...]:
    """One rate per stage; a single one belongs to the last stage, which it was learned in."""
    if len(rates) <= 1:
        rates = (*[None] * (num_stages - 1), *(rates or [None]))
    if len(rates) != num_stages:
        raise DataError(f"{where}: {len(rates)} learned rates do not fit {num_stages} stages: correct num_stages")
    rates = tuple(None if rate is None or math.isnan(rate) else rate for rate in rates)
    if not all(rate is None or 0 < rate < math.inf for rate in rates):
        raise DataError(f"{where}: learned rates must be positive, got {list(rates)}")
    return rates


def _is_plain(value: Any) -> TypeGuard[Tensor]:
    """Whether it is a tensor that holds all its numbers."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{list(value.shape)} {value.dtype}" + ("" if _is_plain(value) else f" {value.layout} on {value.device}")
