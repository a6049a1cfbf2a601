"""The file that users take home: distilled images with all that is needed to use them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
from pydantic import Field, field_validator
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset

from pdd_lightning import __version__
from pdd_lightning.data.pixels import PixelSpace
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError, DamagedFileError, DataError
from pdd_lightning.files import atomic_write_bytes, sha256_of_tensors
from pdd_lightning.networks.spec import NetworkSpec
from pdd_lightning.stored import ClassNames, Json, Name, Stored, array, damaged_error, parse_json, read_bytes, validate

FORMAT_VERSION = 1

_PIXELS = "pixels."
# Plain text in the header, so that other tools can show it; every other entry is JSON.
_TEXT = ("format_version", "sha256", "pixel_space", "decode_factor", "method", "pdd_lightning_version")
_RESERVED = (*(name for name in _TEXT if name != "method"), "class_names")


class DistilledDataset(Dataset[tuple[Tensor, "int | Tensor"]]):
    """A distilled set, used like a torchvision dataset.

    Images are in model space, ready for training; a network trained on them expects its test images in the
    same space: `dataset.pixels.encode(images)` for images in [0, 1].

    A set whose stored images stand for several training images each (`decode_factor` above 1) is decoded when it is
    read: items, lengths and images are those that networks are trained on.

    Args:
        path: A `.safetensors` file written by `save_distilled`.
        stored: Give the images as they are stored, not decoded.

    Attributes:
        synthetic: Images, labels, stages and learning rates as a `SyntheticSet`; decoded unless `stored`.
        pixels: The pixel space of the images.
        class_names: Name of each class, by label.
        metadata: What the file says about itself: dataset, network, method, settings and so on.

    Raises:
        DataError: The file is missing, is not a distilled set, or needs a newer version of this package.
        DamagedFileError: The file is truncated or altered.

    Example:
        >>> dataset = DistilledDataset("distilled.safetensors")  # doctest: +SKIP
        >>> loader = DataLoader(dataset.union(1), batch_size=256, shuffle=True)  # doctest: +SKIP
    """

    def __init__(self, path: str | Path, stored: bool = False) -> None:
        self._hold(*_read(Path(path)), stored)

    @classmethod
    def of(
        cls,
        synthetic: SyntheticSet,
        pixels: PixelSpace,
        class_names: Sequence[str],
        metadata: Mapping[str, Any],
        stored: bool = False,
    ) -> DistilledDataset:
        """Make the dataset of a set in memory; the arguments are as those of `save_distilled`.

        Raises:
            ConfigError: The set has to be decoded, and its pixel space mixes pixels.
        """
        dataset = cls.__new__(cls)
        dataset._hold(synthetic, pixels, list(class_names), dict(metadata), stored)
        return dataset

    def _hold(
        self,
        synthetic: SyntheticSet,
        pixels: PixelSpace,
        class_names: list[str],
        metadata: dict[str, Any],
        stored: bool,
    ) -> None:
        self.synthetic = synthetic if stored else synthetic.decoded(pixels)
        self.pixels = pixels
        self.class_names = class_names
        self.metadata = metadata

    def __len__(self) -> int:
        return len(self.synthetic)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        """Return image `[C, H, W]` in model space and its label: an int, or `[classes]` if soft."""
        label = self.labels[index]
        return self.images[index], label if label.dim() else int(label)

    @property
    def images(self) -> Tensor:
        """All images `[N, C, H, W]` in model space."""
        return self.synthetic.images

    @property
    def labels(self) -> Tensor:
        """Labels `[N]` int64, or `[N, classes]` float32 if soft."""
        return self.synthetic.labels

    @property
    def stages(self) -> Tensor:
        """Stage of each image `[N]`, counted from 1."""
        return self.synthetic.stages

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return self.synthetic.num_stages

    @property
    def learning_rates(self) -> tuple[float | None, ...]:
        """Learned student learning rate of each stage; None where the method has none."""
        return self.synthetic.learning_rates

    def union(self, index: int) -> DistilledDataset:
        """Return the images of stages 1 to `index`, for progressive training.

        Raises:
            IndexError: There is no such stage.
        """
        subset = copy.copy(self)
        subset.synthetic = self.synthetic.union(index)
        return subset

    def to_pixels(self) -> Tensor:
        """Return the images `[N, C, H, W]` as pixels in [0, 1], clipped, for looking at them."""
        return self.pixels.decode(self.images).clamp(0, 1)

    def about(self) -> dict[str, Any]:
        """Return the metadata without what the file format adds: what `save_distilled` takes."""
        return {name: value for name, value in self.metadata.items() if name not in _RESERVED}


def save_distilled(
    path: str | Path,
    synthetic: SyntheticSet,
    pixels: PixelSpace,
    class_names: Sequence[str],
    metadata: Mapping[str, Any],
) -> Path:
    """Write a distilled set as one `.safetensors` file, whole or not at all.

    Args:
        path: File to write or replace.
        synthetic: The set; at least one stage.
        pixels: The pixel space of its images.
        class_names: Name of each class, by label.
        metadata: What else to keep, as JSON values: `dataset` (name, fingerprint), `network` (class_path,
            init_args), `method` (text), `settings`, and anything more.

    Returns:
        The path written.

    Raises:
        ConfigError: The metadata uses a name that the format needs itself, or holds no JSON value.
        DataError: The set is empty.
    """
    if synthetic.num_stages == 0:
        raise DataError("nothing to save: the synthetic set has no stage yet")
    about = _encode_metadata(metadata)
    tensors = {
        "images": synthetic.images,
        "labels": synthetic.labels,
        "stages": synthetic.stages,
        "learning_rates": synthetic.rates_tensor(),
        **{f"{_PIXELS}{name}": value for name, value in pixels.tensors().items()},
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {
        "format_version": str(FORMAT_VERSION),
        "pixel_space": pixels.kind,
        "decode_factor": str(synthetic.decode_factor),
        "pdd_lightning_version": __version__,
        "class_names": json.dumps(list(class_names)),
        **about,
        "sha256": "",
    }
    try:  # what would be refused when it is read
        _checked_set(tensors, header, pixels, "the set")
    except DamagedFileError as error:
        raise DataError(f"cannot write {path}: {str(error).partition('damaged: ')[2]}") from error
    del header["sha256"]
    header["sha256"] = sha256_of_tensors(tensors, header)
    return atomic_write_bytes(path, safetensors.torch.save(tensors, header))


def join_distilled(paths: Sequence[str | Path], target: str | Path) -> Path:
    """Write a set whose stages are those of several stored sets, one after another.

    What the target says of itself is what the first set says, and the checksums of all (`joined`).

    Args:
        paths: Distilled sets of the same data in the same model space.
        target: File to write or replace.

    Raises:
        ConfigError: There is nothing to join.
        DataError: The sets do not belong together.
    """
    if not paths:
        raise ConfigError("nothing to join: name at least one distilled set")
    sets = [DistilledDataset(path, stored=True) for path in paths]
    first = sets[0]
    joined = first.synthetic
    for path, other in zip(paths[1:], sets[1:], strict=True):
        if differences := _differences(first, other):
            raise DataError(f"{path} cannot be joined with {paths[0]}: another {' and '.join(differences)}")
        for stage in range(1, other.num_stages + 1):
            images = other.synthetic.stage(stage)
            joined = joined.append(images.images, images.labels, images.learning_rates[-1])
    shared = {"dataset", "network", "method", "settings"} & set(first.metadata)
    about = {name: first.metadata[name] for name in sorted(shared)}
    about["joined"] = [other.metadata["sha256"] for other in sets]
    return save_distilled(target, joined, first.pixels, first.class_names, about)


def _differences(first: DistilledDataset, other: DistilledDataset) -> list[str]:
    """Return what two sets must share to be joined, and do not."""
    facts = [
        {
            "class names": dataset.class_names,
            "model space": (dataset.pixels.kind, sha256_of_tensors(dataset.pixels.tensors())),
            "decode factor": dataset.synthetic.decode_factor,
            "data": dataset.metadata.get("dataset"),
        }
        for dataset in (first, other)
    ]
    return [name for name, fact in facts[0].items() if fact != facts[1][name]]


def _encode_metadata(metadata: Mapping[str, Any]) -> dict[str, str]:
    taken = sorted(set(metadata) & set(_RESERVED))
    if taken:
        raise ConfigError(f"the file format sets {', '.join(taken)} itself: leave it out of the metadata")
    try:
        return {name: str(value) if name in _TEXT else json.dumps(value) for name, value in metadata.items()}
    except TypeError as error:
        raise ConfigError(f"metadata must hold JSON values only: {error}") from error


class _Dataset(Stored):
    """The real images that a set was distilled from."""

    name: Name | None = None
    fingerprint: Name | None = None


class _Settings(Stored, extra="allow"):
    """Settings of a method: of these, the augmentation is used again."""

    __pydantic_extra__: Json = Field(init=False)
    augment: Name = ""
    align_corners: bool = True
    augment_together: bool = True


class StoredAbout(Stored, extra="allow"):
    """What a set says of itself."""

    __pydantic_extra__: Json = Field(init=False)
    method: Name = ""
    dataset: _Dataset = _Dataset()
    network: NetworkSpec | None = None
    settings: _Settings = _Settings()
    joined: list[Name] = Field(default=[])

    @field_validator("network", mode="before")
    @classmethod
    def is_given(cls, network: Any) -> Any:
        """Refuses null: a set either names its network, or says nothing of it."""
        if network is None:
            raise ValueError("expected class_path and init_args")
        return network


class _Header(StoredAbout):
    """The header of a file, all but `_TEXT` decoded."""

    format_version: Name
    sha256: Name
    pixel_space: Name
    decode_factor: Annotated[str, Field(pattern="^[0-9]+$", max_length=2)]
    pdd_lightning_version: Name
    class_names: ClassNames


def _read(path: Path) -> tuple[SyntheticSet, PixelSpace, list[str], dict[str, Any]]:
    """Read a file: the set as it is stored, its pixel space, class names and metadata."""
    tensors, header = _read_checked(path)
    space = {name.removeprefix(_PIXELS): value for name, value in tensors.items() if name.startswith(_PIXELS)}
    pixels = PixelSpace.from_tensors(header.get("pixel_space", ""), space, path)
    synthetic, metadata = _checked_set(tensors, header, pixels, path)
    return synthetic, pixels, list(metadata["class_names"]), metadata


def _checked_set(
    tensors: Mapping[str, Tensor], header: Mapping[str, str], pixels: PixelSpace, where: str | Path
) -> tuple[SyntheticSet, dict[str, Any]]:
    """The set and the metadata that a file holds, if they are what they must be, and fit each other."""
    decoded = {
        name: value if name in _TEXT else parse_json(value, f"{where}: {name}") for name, value in header.items()
    }
    about = validate(_Header, decoded, where)
    rates = validate(_Rates, dict(tensors), where).learning_rates.tolist()
    content = {
        **{name: tensors.get(name) for name in ("images", "labels", "stages")},
        "learning_rates": [None if math.isnan(rate) else rate for rate in rates],
        "decode_factor": int(about.decode_factor),
    }
    synthetic = SyntheticSet.from_state_dict(content, where)
    check_belongs(synthetic, pixels, len(about.class_names), where)
    return synthetic, decoded


class _Rates(Stored):
    """Learned learning rates, NaN where a stage has none."""

    learning_rates: Annotated[Tensor, array("stages: float64", finite=False)]


def check_belongs(synthetic: SyntheticSet, pixels: PixelSpace, num_classes: int, where: str | Path) -> None:
    """Refuse a stored set whose labels or image shape are not those of its classes and pixel space.

    Raises:
        DamagedFileError: They are not.
    """
    labels = synthetic.labels
    classes = labels.shape[1] if labels.dim() == 2 else int(labels.max()) + 1 if len(labels) else 0
    if classes > num_classes or (labels.dim() == 2 and classes < num_classes):
        raise damaged_error(where, f"labels are of {classes} classes, class_names of {num_classes}")
    if not pixels.suits(synthetic.images.shape[1:]):
        raise damaged_error(where, f"images are {list(synthetic.images.shape[1:])}, the pixel space is of another size")


def _read_checked(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and header of a distilled set and compare them with the hash stored inside."""
    tensors, header = _parse(path, read_bytes(path))
    stored = header.pop("sha256", None)
    if stored is None:
        raise DataError(f"{path} is a safetensors file, but not one written by pdd_lightning")
    if stored != sha256_of_tensors(tensors, header):
        raise damaged_error(path, "its content does not match its checksum", "copy it again")
    version = header.get("format_version", "")
    if version != str(FORMAT_VERSION):
        raise DataError(
            f"{path} has format {version[:20]}, this version of pdd_lightning reads {FORMAT_VERSION}: upgrade"
            " pdd_lightning"
        )
    return tensors, {**header, "sha256": stored}


def _parse(path: Path, data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split the bytes of a safetensors file into tensors and header strings."""
    try:
        tensors = safetensors.torch.load(data)
        text = data[8 : 8 + int.from_bytes(data[:8], "little")]
        # The padding after the header is the one place where JSON would not notice a changed byte.
        if not text.rstrip(b" ").endswith(b"}"):
            raise ValueError("altered padding")
        return tensors, dict(json.loads(text).get("__metadata__", {}))
    except (SafetensorError, KeyError, ValueError, RuntimeError, OverflowError) as error:
        raise damaged_error(path, f"it is no safetensors file ({error})", "copy it again") from error
