"""Base of the formats of other code, which neither describe nor store everything about a set."""

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
from pdd_lightning.data.synthetic import SyntheticSet, hard_labels
from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.stored import Stored, array, describe_tensor, validate

if TYPE_CHECKING:
    from pdd_lightning.data.real import RealDataModule

_ROUNDING = 1e-3


@dataclass(frozen=True)
class Contents:
    """Unchecked content of a file.

    Attributes:
        images: `[N, C, H, W]`, float32.
        labels: `[N]` integers, or `[N, classes]` float32 probabilities.
        stages: Stage of each image `[N]` int64, if the file has it.
        learning_rates: Learned learning rates: one per stage, or only that of the last stage.
        decode_factor: See `SyntheticSet`, if the file has it.
        metadata: Other metadata of the file.
    """

    images: Any
    labels: Any
    stages: Tensor | None = None
    learning_rates: tuple[float | None, ...] = ()
    decode_factor: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class ForeignFormat(Format):
    """A format of other code. A subclass reads the unchecked `contents` of a file, and declares what is stored.

    Attributes:
        title: Name in metadata.
        eight_bits: Whether images are rounded to 8 bits per channel.
        needs_factor: Whether images usually have to be decoded, so that reading requires the decode factor.
        keeps: What is stored besides images and classes; learned rates only if their stages are known.
    """

    title: ClassVar[str]
    eight_bits: ClassVar[bool] = False
    needs_factor: ClassVar[bool] = False
    keeps: ClassVar[tuple[Literal["soft labels", "stages", "rates", "decode factor"], ...]] = ()

    @abstractmethod
    def contents(self, path: Path, real: RealDataModule) -> Contents:
        """Return the content of a file.

        Raises:
            DataError: Something is missing, or does not fit the real data.
            DamagedFileError: The file is truncated or altered.
        """

    def read(self, path: Path, real: RealDataModule | None, options: ImportOptions) -> DistilledDataset:
        """Return the set of the checked contents, sorted by stage."""
        if real is None:
            raise ConfigError(f"{path} describes neither its pixel space nor its classes: name its data with --data")
        real.prepare_data()
        real.setup()
        contents = self.contents(path, real)
        found = validate(_Arrays, {"images": contents.images, "labels": contents.labels}, path)
        images = _encode_images(path, found.images, real, self.in_model_space)
        labels = _check_labels(path, found.labels, len(images), real.num_classes)
        stages = _find_stages(path, contents, labels, options)
        options.check(path, decode_factor=contents.decode_factor)
        factor = contents.decode_factor or options.decode_factor
        if factor is None and self.needs_factor:
            raise ConfigError(
                f"{path} does not contain its decode factor: give decode_factor (IDC takes 2 for images of 32 pixels"
                " and 3 for larger ones; 1: images are not decoded)"
            )
        order = torch.argsort(stages, stable=True)
        content = {
            "images": images[order].contiguous(),
            "labels": labels[order].contiguous(),
            "stages": stages[order],
            "learning_rates": _assign_rates(path, contents.learning_rates, int(stages.max())),
            "decode_factor": factor or 1,
        }
        synthetic = SyntheticSet.from_state_dict(content, path)
        metadata = {"dataset": {"name": real.name}, "imported_from": self.title, **contents.metadata}
        return DistilledDataset.of(synthetic, real.pixels, real.class_names, metadata, stored=True)

    def omissions(self, dataset: DistilledDataset) -> list[str]:
        """Return sentences on what the format does not store, or how the set has to be read."""
        omissions = []
        if self.in_model_space:
            omissions.append(_describe_space(dataset.pixels))
        else:
            pixels = dataset.pixels.decode(dataset.images)
            if share := float(((pixels < 0) | (pixels > 1)).float().mean()):
                omissions.append(f"{share:.1%} of the pixel values were outside [0, 1] and were clipped")
        if self.eight_bits:
            omissions.append("images are rounded to 8 bits per channel")
        if dataset.labels.dim() == 2 and "soft labels" not in self.keeps:
            omissions.append("soft labels are not stored: each image has its most probable class")
        if set(dataset.learning_rates) != {None} and not self.keeps_rates(dataset):
            rates = ", ".join("none" if rate is None else f"{rate:.4g}" for rate in dataset.learning_rates)
            omissions.append(f"learned rates are not stored: {rates}")
        if dataset.num_stages > 1 and "stages" not in self.keeps and not self.keeps_rates(dataset):
            remedy = f": read it with --num_stages {dataset.num_stages}"
            omissions.append(f"stages are not stored{remedy if self.keeps_stages(dataset) else ', and differ in size'}")
        factor = dataset.synthetic.decode_factor
        if factor > 1 and "decode factor" not in self.keeps:
            omissions.append(f"each image is decoded to {factor**2} images: read it with --decode_factor {factor}")
        return omissions

    def keeps_rates(self, dataset: DistilledDataset) -> bool:
        """Return whether a set has learned rates, and they are stored."""
        return "rates" in self.keeps and self.keeps_stages(dataset) and set(dataset.learning_rates) != {None}

    def keeps_stages(self, dataset: DistilledDataset) -> bool:
        """Return whether a set's stages are stored, or can be inferred from the order of its images."""
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


def _encode_images(path: Path, images: Tensor, real: RealDataModule, in_model_space: bool) -> Tensor:
    """Check the images, and return them in model space."""
    shape = tuple(images.shape[1:])
    if not len(images):
        raise DataError(f"{path} holds no images")
    if shape != real.image_shape:
        raise DataError(
            f"{path} does not belong to {real.name}: its image shape: {shape}, the data's: {real.image_shape}"
        )
    if in_model_space:
        return images
    low, high = float(images.min()), float(images.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise DataError(f"{path}: pixels are between {low:.3g} and {high:.3g}, but this format has them in [0, 1]")
    return real.pixels.encode(images.contiguous())


def _check_labels(path: Path, labels: Tensor, count: int, num_classes: int) -> Tensor:
    if labels.shape not in ((count,), (count, num_classes)):
        raise DataError(
            f"{path}: labels must be [{count}] integers or [{count}, {num_classes}] float32 like the {count} images,"
            f" got {describe_tensor(labels)}"
        )
    if labels.dim() == 2:
        return labels
    low, high = int(labels.min()), int(labels.max())
    if not 0 <= low <= high < num_classes:
        raise DataError(
            f"{path}: labels are between {low} and {high}, but the data has {num_classes} classes, 0 to"
            f" {num_classes - 1}: name the data that it was distilled from"
        )
    return labels.to(torch.int64)


def _find_stages(path: Path, contents: Contents, labels: Tensor, options: ImportOptions) -> Tensor:
    """Return the stage of each image, from the file or inferred."""
    stages = contents.stages
    if stages is None:  # there may be one rate per stage
        return _infer_stages(path, labels, options.num_stages or max(1, len(contents.learning_rates)))
    found = stages.unique().tolist()
    if stages.shape != (len(labels),) or found != list(range(1, len(found) + 1)):
        raise DataError(f"{path}: stages must be {len(labels)} integers 1, 2, .. without a gap, got {found[:5]}")
    options.check(path, num_stages=len(found))
    return stages


def _infer_stages(path: Path | str, labels: Tensor, num_stages: int) -> Tensor:
    """Infer the stage of each image `[N]`, counted from 1, from the order of the images.

    Within each class, images are sorted by stage, and stages are equal in size. This holds for sets that are stored
    stage by stage (MTT) as well as class by class (IDC). Sets with soft labels are stored stage by stage.
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


def _assign_rates(path: Path, rates: tuple[float | None, ...], num_stages: int) -> list[float | None]:
    """Return one rate per stage; a single one was learned in the last stage."""
    if len(rates) <= 1:
        rates = (*[None] * (num_stages - 1), *(rates or [None]))
    if len(rates) != num_stages:
        raise DataError(f"{path}: {len(rates)} learned rates do not fit {num_stages} stages: correct num_stages")
    return [None if rate is None or math.isnan(rate) else rate for rate in rates]


def _describe_space(pixels: PixelSpace) -> str:
    if not isinstance(pixels, Standardized):
        return "images are ZCA-whitened, which is not stored: read it with the same data and normalization zca"
    mean, std = ([round(value, 4) for value in values.tolist()] for values in (pixels.mean, pixels.std))
    return f"images are normalized, which is not stored: read it with data of mean {mean} and std {std}"
