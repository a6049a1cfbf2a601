"""What formats of other code have in common: they do not say everything about a set, and do not keep everything."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.formats.registry import Format, ImportOptions
from pdd_lightning.data.pixels import PixelSpace, Standardized
from pdd_lightning.data.synthetic import SyntheticSet, are_probabilities, hard_labels
from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.stored import Stored, array, describe_tensor, validate

if TYPE_CHECKING:
    from pdd_lightning.data.real import RealDataModule

_ROUNDING = 1e-3


@dataclass(frozen=True)
class Contents:
    """What a file holds, not checked yet.

    Attributes:
        images: `[N, C, H, W]`, float32.
        labels: `[N]` integers, or `[N, classes]` float32 probabilities.
        stages: Stage of each image `[N]` int64, where the file says it.
        learning_rates: Learned learning rates: one per stage, or that of the last stage alone.
        decode_factor: See `SyntheticSet`, where the file says it.
        metadata: What else the file says.
    """

    images: Any
    labels: Any
    stages: Tensor | None = None
    learning_rates: tuple[float | None, ...] = ()
    decode_factor: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class ForeignFormat(Format):
    """A format of other code. A subclass gives the `contents` of a file, unchecked, and says what the format keeps.

    Attributes:
        title: What metadata call it.
        eight_bits: Whether images are rounded to 8 bits per channel.
        needs_factor: Whether images usually stand for several, so that reading asks for the decode factor.
        keeps: What is kept beside images and classes; learned rates only if their stages are known.
    """

    title: ClassVar[str]
    eight_bits: ClassVar[bool] = False
    needs_factor: ClassVar[bool] = False
    keeps: ClassVar[tuple[Literal["soft labels", "stages", "rates", "decode factor"], ...]] = ()

    @abstractmethod
    def contents(self, path: Path, real: RealDataModule) -> Contents:
        """Return what a file holds.

        Raises:
            DataError: Something is missing, or does not belong to the real data.
            DamagedFileError: The file is truncated or altered.
        """

    def read(self, path: Path, real: RealDataModule | None, options: ImportOptions) -> DistilledDataset:
        """Return the set that the checked contents make, in the order of its stages."""
        if real is None:
            raise ConfigError(f"{path} says neither its pixel space nor its classes: name its data with --data")
        real.prepare_data()
        real.setup()
        contents = self.contents(path, real)
        found = validate(_Arrays, {"images": contents.images, "labels": contents.labels}, path)
        images = _checked_images(path, found.images, real, self.in_model_space)
        labels = _checked_labels(path, found.labels, len(images), real.num_classes)
        stages = _checked_stages(path, contents, labels, real.num_classes, options)
        rates = _checked_rates(path, contents.learning_rates, int(stages.max()))
        options.check(path, decode_factor=contents.decode_factor)
        factor = contents.decode_factor or options.decode_factor
        if factor is None and self.needs_factor:
            raise ConfigError(
                f"{path} does not say how many images each of its images stands for: give decode_factor (IDC takes 2"
                " for images of 32 pixels and 3 for larger ones; 1: each for itself)"
            )
        order = torch.argsort(stages, stable=True)
        content = {
            "images": images[order],
            "labels": labels[order],
            "stages": stages[order],
            "learning_rates": rates,
            "decode_factor": factor or 1,
        }
        synthetic = SyntheticSet.from_state_dict(content, path)
        metadata = {"dataset": {"name": real.name}, "imported_from": self.title, **contents.metadata}
        return DistilledDataset.of(synthetic, real.pixels, real.class_names, metadata, stored=True)

    def omissions(self, dataset: DistilledDataset) -> list[str]:
        """Return what of a set the format does not keep, or how it has to be read, a sentence each."""
        omissions = []
        if self.in_model_space:
            omissions.append(_describe_space(dataset.pixels))
        else:
            pixels = dataset.pixels.decode(dataset.images)
            if share := float(((pixels < 0) | (pixels > 1)).float().mean()):
                omissions.append(f"{share:.1%} of the pixel values lay outside [0, 1] and were clipped")
        if self.eight_bits:
            omissions.append("images are rounded to 8 bits per channel")
        if dataset.labels.dim() == 2 and "soft labels" not in self.keeps:
            omissions.append("soft labels are not kept: each image has its most probable class")
        if set(dataset.learning_rates) != {None} and not self.keeps_rates(dataset):
            rates = ", ".join("none" if rate is None else f"{rate:.4g}" for rate in dataset.learning_rates)
            omissions.append(f"learned rates are not kept: {rates}")
        if dataset.num_stages > 1 and "stages" not in self.keeps and not self.keeps_rates(dataset):
            how = f"named: read it with --num_stages {dataset.num_stages}"
            omissions.append(
                f"stages are not {how if self.tells_stages(dataset) else 'kept, since they differ in size'}"
            )
        factor = dataset.synthetic.decode_factor
        if factor > 1 and "decode factor" not in self.keeps:
            omissions.append(
                f"each image stands for {factor**2} training images: read it with --decode_factor {factor}"
            )
        return omissions

    def keeps_rates(self, dataset: DistilledDataset) -> bool:
        """Whether a set has learned rates, and they are kept."""
        return "rates" in self.keeps and self.tells_stages(dataset) and set(dataset.learning_rates) != {None}

    def tells_stages(self, dataset: DistilledDataset) -> bool:
        """Whether a set's stages are kept, or can be inferred from the order of its images."""
        if "stages" in self.keeps:
            return True
        labels = dataset.labels if "soft labels" in self.keeps else hard_labels(dataset.labels)
        order = torch.argsort(dataset.stages, stable=True)
        try:
            inferred = _infer_stages("", labels[order], dataset.num_stages)
        except DataError:
            return False
        return torch.equal(inferred, dataset.stages[order])


class _Arrays(Stored):
    """Images and labels of a file."""

    images: Annotated[Tensor, array("N C H W: float32")]
    labels: Annotated[Tensor, array("N: uint8 int8 int16 int32 int64", "N classes: float32")]


def _checked_images(path: Path, images: Tensor, real: RealDataModule, in_model_space: bool) -> Tensor:
    """Return the images in model space, as a copy: the file may be replaced."""
    shape = tuple(images.shape[1:])
    if not len(images):
        raise DataError(f"{path} holds no images")
    if shape != real.image_shape:
        raise DataError(
            f"{path} does not belong to {real.name}: its image shape: {shape}, the data's: {real.image_shape}"
        )
    copy: Tensor = images.clone(memory_format=torch.contiguous_format)
    if in_model_space:
        return copy
    low, high = float(copy.min()), float(copy.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise DataError(f"{path}: pixels lie between {low:.3g} and {high:.3g}, but this format keeps them in [0, 1]")
    return real.pixels.encode(copy)


def _checked_labels(path: Path, labels: Tensor, count: int, num_classes: int) -> Tensor:
    if labels.shape not in ((count,), (count, num_classes)):
        raise DataError(
            f"{path}: labels must be [{count}] integers or [{count}, {num_classes}] float32 like the {count} images,"
            f" got {describe_tensor(labels)}"
        )
    if labels.dim() == 2:
        if not are_probabilities(labels):
            raise DataError(f"{path}: soft labels are not probabilities; if they are logits, store their softmax")
        return labels.clone(memory_format=torch.contiguous_format)
    low, high = int(labels.min()), int(labels.max())
    if not 0 <= low <= high < num_classes:
        raise DataError(
            f"{path}: labels lie between {low} and {high}, but the data has {num_classes} classes, 0 to"
            f" {num_classes - 1}: name the data that it was distilled from"
        )
    return labels.to(torch.int64, copy=True)


def _checked_stages(path: Path, contents: Contents, labels: Tensor, num_classes: int, options: ImportOptions) -> Tensor:
    """Return the stage of each image: the file's, or else inferred."""
    stages, rates = contents.stages, contents.learning_rates
    if stages is None:
        # One rate per stage says how many stages there are.
        return _infer_stages(path, labels, options.num_stages or max(1, len(rates)))
    found = stages.unique().tolist()
    if stages.shape != (len(labels),) or found != list(range(1, len(found) + 1)):
        raise DataError(f"{path}: stages must be {len(labels)} integers 1, 2, .. without a gap, got {found[:5]}")
    options.check(path, num_stages=len(found))
    return stages


def _infer_stages(path: Path | str, labels: Tensor, num_stages: int) -> Tensor:
    """Return the stage of each image `[N]`, counted from 1, as the order of the images says.

    Within each class, images come in the order of their stages, as many in every stage. That holds for sets that are
    kept stage by stage (MTT) as well as for those that are kept class by class (IDC). Soft labels name no class; such
    sets are kept stage by stage.
    """
    soft = labels.dim() == 2
    groups = torch.zeros(len(labels), dtype=torch.int64) if soft else labels
    counts = groups.bincount()
    for count in counts[counts > 0].tolist():
        if count % num_stages:
            number = f"{count} images" if soft else f"{count} images of a class"
            raise DataError(f"{path}: {number} do not fit {num_stages} stages: correct num_stages")
    order = torch.argsort(groups, stable=True)
    rank = torch.empty_like(groups)
    rank[order] = torch.arange(len(groups)) - (counts.cumsum(0) - counts)[groups[order]]
    return rank // (counts // num_stages)[groups] + 1


def _checked_rates(path: Path, rates: tuple[float | None, ...], num_stages: int) -> list[float | None]:
    """Return one rate per stage; a single one belongs to the last stage, which it was learned in."""
    if len(rates) <= 1:
        rates = (*[None] * (num_stages - 1), *(rates or [None]))
    if len(rates) != num_stages:
        raise DataError(f"{path}: {len(rates)} learned rates do not fit {num_stages} stages: correct num_stages")
    return [None if rate is None or math.isnan(rate) else rate for rate in rates]


def _describe_space(pixels: PixelSpace) -> str:
    if not isinstance(pixels, Standardized):
        return "images are ZCA-whitened, which is not said: read it with the same data and normalization zca"
    mean, std = ([round(value, 4) for value in values.tolist()] for values in (pixels.mean, pixels.std))
    return f"images are normalised, which is not said: read it with data of mean {mean} and std {std}"
