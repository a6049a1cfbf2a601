"""The file of a distilled set: its images and everything that is needed to use them."""

from __future__ import annotations

import base64
import copy
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
from pydantic import Field, field_validator
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset

from pdd_lightning import __version__
from pdd_lightning.data.hub import local_file
from pdd_lightning.data.pixels import PixelSpace
from pdd_lightning.data.synthetic import SyntheticSet, hard_labels
from pdd_lightning.errors import ConfigError, DamagedFileError, DataError
from pdd_lightning.files import atomic_write_bytes, sha256_of_tensors
from pdd_lightning.networks.spec import NetworkSpec
from pdd_lightning.stored import ClassNames, Json, Name, Stored, array, damaged_error, parse_json, read_bytes, validate

FORMAT_VERSION = 1

_PIXELS = "pixels."
# Header entries in plain text, which other tools can show; all other entries are JSON.
_TEXT = ("format_version", "sha256", "pixel_space", "decode_factor", "method", "pdd_lightning_version")
_RESERVED = (*(name for name in _TEXT if name != "method"), "class_names")
_JOINED_METADATA = ("dataset", "method", "network", "settings")


class DistilledDataset(Dataset[tuple[Tensor, "int | Tensor"]]):
    """A distilled set that is used like a torchvision dataset.

    Images are in model space, ready for training; a network trained on them expects its test images in the
    same space: `dataset.pixels.encode(images)` for images in [0, 1]. Images with a `decode_factor` above 1 are decoded
    when they are read, so that items are those that networks are trained on.

    Args:
        path: A `.safetensors` file written by `save_distilled`.
        stored: Keep the images as they are stored, not decoded.

    Attributes:
        synthetic: Images, labels, stages and learning rates as a `SyntheticSet`; decoded unless `stored`.
        stored: The same as it is stored.
        pixels: The pixel space of the images.
        class_names: Name of each class, by label.
        metadata: Metadata of the file: dataset, network, method, settings and so on.

    Raises:
        DataError: The file is missing, is not a distilled set, or needs a newer version of this package.
        DamagedFileError: The file is truncated or altered.

    Examples:
        >>> dataset = DistilledDataset("distilled.safetensors")  # doctest: +SKIP
        >>> loader = DataLoader(dataset.union(1), batch_size=256, shuffle=True)  # doctest: +SKIP
    """

    def __init__(self, path: str | Path, stored: bool = False) -> None:
        self._set(*_read(Path(path)), stored)

    @classmethod
    def load(cls, source: str | Path) -> DistilledDataset:
        """Read a set from a file, a folder, `zoo:name`, or `hub:owner/name`, see `pdd_lightning.data.hub.local_file`.

        Raises:
            ConfigError: There is no such set in the zoo.
            DataError: The file is missing, or is not a distilled set.
            DamagedFileError: The file is truncated or altered.
        """
        return cls(local_file(source))

    @classmethod
    def of(
        cls,
        synthetic: SyntheticSet,
        pixels: PixelSpace,
        class_names: Sequence[str],
        metadata: Mapping[str, Any],
        stored: bool = False,
    ) -> DistilledDataset:
        """Return the dataset of a set in memory; see `save_distilled` for the arguments.

        Raises:
            ConfigError: The set has to be decoded, but its pixel space mixes pixels.
        """
        dataset = cls.__new__(cls)
        dataset._set(synthetic, pixels, list(class_names), dict(metadata), stored)
        return dataset

    def _set(
        self, synthetic: SyntheticSet, pixels: PixelSpace, names: list[str], metadata: dict[str, Any], stored: bool
    ) -> None:
        self.stored = synthetic
        self.synthetic = synthetic if stored else synthetic.decoded(pixels)
        self.pixels = pixels
        self.class_names = names
        self.metadata = metadata

    def __len__(self) -> int:
        return len(self.synthetic)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.images.shape[1:]))
        sizes = " + ".join(map(str, torch.bincount(self.stages)[1:].tolist()))
        source = self.metadata.get("dataset", {}).get("name", "unknown data")
        return (
            f"DistilledDataset: {len(self)} images ({sizes}) of {shape} by {self.metadata.get('method')}, of {source}"
        )

    def _repr_html_(self) -> str:
        """Show the first images in a notebook: a column for each class, stage below stage."""
        from torchvision.transforms.functional import to_pil_image  # here, since importing it takes long
        from torchvision.utils import make_grid

        columns = min(len(self.class_names), 20)
        groups = list(zip(self.stages.tolist(), hard_labels(self.labels).tolist(), strict=True))
        number_in_group = [groups[:index].count(group) for index, group in enumerate(groups)]
        order = sorted(range(len(self)), key=lambda i: (groups[i][0], number_in_group[i], groups[i][1]))
        grid = make_grid(self.to_pixels()[order[: 20 * columns]], columns, padding=1, pad_value=1.0)
        buffer = io.BytesIO()
        to_pil_image(grid).save(buffer, "PNG")
        source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        width = max(grid.shape[-1], 32 * columns)
        return f'<p>{html.escape(repr(self))}</p><img src="{source}" style="width:{width}px;image-rendering:pixelated">'

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        """Return an image `[C, H, W]` in model space and its label: an int, or `[classes]` if soft."""
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
        """Learned student learning rate of each stage; None if the method has none."""
        return self.synthetic.learning_rates

    def learning_rate(self, stage: int, default: float = 0.01) -> float:
        """Return the learning rate to train with on the union of stages 1 to `stage`: the learned one, if any."""
        return self.learning_rates[stage - 1] or default

    def union(self, index: int) -> DistilledDataset:
        """Return the images of stages 1 to `index`, for progressive training.

        Raises:
            IndexError: There is no such stage.
        """
        subset = copy.copy(self)
        subset.stored, subset.synthetic = self.stored.union(index), self.synthetic.union(index)
        return subset

    def to_pixels(self) -> Tensor:
        """Return the images `[N, C, H, W]` as pixels, clipped to [0, 1]."""
        return self.pixels.decode(self.images).clamp(0, 1)

    def about(self) -> dict[str, Any]:
        """Return the metadata without the entries that the file format adds, as `save_distilled` takes it."""
        return {name: value for name, value in self.metadata.items() if name not in _RESERVED}


def save_distilled(
    path: str | Path,
    synthetic: SyntheticSet,
    pixels: PixelSpace,
    class_names: Sequence[str],
    metadata: Mapping[str, Any],
) -> Path:
    """Write a distilled set as one `.safetensors` file, atomically.

    Args:
        path: File to write or replace.
        synthetic: The set; at least one stage.
        pixels: The pixel space of its images.
        class_names: Name of each class, by label.
        metadata: JSON values to store: `dataset` (name, fingerprint), `network` (class_path, init_args), `method`
            (text), `settings`, and any others.

    Returns:
        The path written.

    Raises:
        ConfigError: The metadata uses a reserved name, or a value that is not JSON.
        DataError: The set is empty, or could not be read again.
    """
    if synthetic.num_stages == 0:
        raise DataError("nothing to save: the synthetic set has no stage yet")
    encoded = _encode_metadata(metadata)
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
        **encoded,
    }
    try:  # reading it again would be refused otherwise
        _check_set(tensors, header, pixels, "the set")
    except DamagedFileError as error:
        raise DataError(f"cannot write {path}: {str(error).partition('damaged: ')[2]}") from error
    header["sha256"] = sha256_of_tensors(tensors, header)
    return atomic_write_bytes(path, safetensors.torch.save(tensors, header))


def join_distilled(paths: Sequence[str | Path], target: str | Path) -> Path:
    """Write a set that has the stages of several stored sets, one after another.

    Its metadata is that of the first set, with the checksums of all sets as `joined`.

    Args:
        paths: Distilled sets of the same data in the same model space.
        target: File to write or replace.

    Raises:
        ConfigError: `paths` is empty.
        DataError: The sets differ in classes, model space, decode factor or data.
    """
    if not paths:
        raise ConfigError("nothing to join: name at least one distilled set")
    sets = [DistilledDataset(local_file(path), stored=True) for path in paths]
    first = sets[0]
    joined = first.synthetic
    for path, other in zip(paths[1:], sets[1:], strict=True):
        facts = _facts(other)
        if differences := [name for name, fact in _facts(first).items() if fact != facts[name]]:
            raise DataError(f"{path} cannot be joined with {paths[0]}: another {' and '.join(differences)}")
        for stage in range(1, other.num_stages + 1):
            images = other.synthetic.stage(stage)
            joined = joined.append(images.images, images.labels, images.learning_rates[-1])
    metadata = {name: first.metadata[name] for name in _JOINED_METADATA if name in first.metadata}
    metadata["joined"] = [other.metadata["sha256"] for other in sets]
    return save_distilled(target, joined, first.pixels, first.class_names, metadata)


def _facts(dataset: DistilledDataset) -> dict[str, Any]:
    """Return what sets that are joined must have in common."""
    return {
        "class names": dataset.class_names,
        "model space": (dataset.pixels.kind, sha256_of_tensors(dataset.pixels.tensors())),
        "decode factor": dataset.synthetic.decode_factor,
        "data": dataset.metadata.get("dataset"),
    }


def _encode_metadata(metadata: Mapping[str, Any]) -> dict[str, str]:
    taken = sorted(set(metadata) & set(_RESERVED))
    if taken:
        raise ConfigError(f"the file format reserves {', '.join(taken)}: leave it out of the metadata")
    try:
        return {name: str(value) if name in _TEXT else json.dumps(value) for name, value in metadata.items()}
    except TypeError as error:
        raise ConfigError(f"metadata must hold JSON values only: {error}") from error


class _Dataset(Stored):
    """The real images that a set was distilled from."""

    name: Name | None = None
    fingerprint: Name | None = None


class _Settings(Stored, extra="allow"):
    """Settings of a method, of which those of the augmentation are used again."""

    __pydantic_extra__: Json = Field(init=False)
    augment: Name = ""
    align_corners: bool = True
    augment_together: bool = True


class StoredMetadata(Stored, extra="allow"):
    """Metadata of a set."""

    __pydantic_extra__: Json = Field(init=False)
    method: Name = ""
    dataset: _Dataset = _Dataset()
    network: NetworkSpec | None = None
    settings: _Settings = _Settings()
    joined: list[Name] = Field(default=[])

    @field_validator("network", mode="before")
    @classmethod
    def is_given(cls, network: Any) -> Any:
        """Refuse null: the entry is either missing or names a network."""
        if network is None:
            raise ValueError("expected class_path and init_args")
        return network


class _Header(StoredMetadata):
    """Header of a file, with JSON entries decoded."""

    format_version: Name
    pixel_space: Name
    decode_factor: Annotated[str, Field(pattern="^[0-9]+$", max_length=2)]
    pdd_lightning_version: Name
    class_names: ClassNames


class _Rates(Stored):
    """Learned learning rates; NaN for stages without one."""

    learning_rates: Annotated[Tensor, array("stages: float64", finite=False)]


def _read(path: Path) -> tuple[SyntheticSet, PixelSpace, list[str], dict[str, Any]]:
    """Read a file; return the set as it is stored, its pixel space, class names and metadata."""
    tensors, header = _parse(path, read_bytes(path))
    digest = header.pop("sha256", None)
    if digest is None:
        raise DataError(f"{path} is a safetensors file, but not one written by pdd_lightning")
    if digest != sha256_of_tensors(tensors, header):
        raise damaged_error(path, "its content does not match its checksum", "copy it again")
    version = header.get("format_version", "")
    if version != str(FORMAT_VERSION):
        raise DataError(
            f"{path} has format {version[:20]}, this version of pdd_lightning reads {FORMAT_VERSION}: upgrade"
            " pdd_lightning"
        )
    space = {name.removeprefix(_PIXELS): value for name, value in tensors.items() if name.startswith(_PIXELS)}
    pixels = PixelSpace.from_tensors(header.get("pixel_space", ""), space, path)
    synthetic, metadata = _check_set(tensors, header, pixels, path)
    return synthetic, pixels, list(metadata["class_names"]), {**metadata, "sha256": digest}


def _parse(path: Path, data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the header of a safetensors file."""
    try:
        tensors = safetensors.torch.load(data)
        text = data[8 : 8 + int.from_bytes(data[:8], "little")]
        # A changed byte in the padding of the header would not change the parsed JSON.
        if not text.rstrip(b" ").endswith(b"}"):
            raise ValueError("altered padding")
        return tensors, dict(json.loads(text).get("__metadata__", {}))
    except (SafetensorError, KeyError, ValueError, RuntimeError, OverflowError) as error:
        raise damaged_error(path, f"it is no safetensors file ({error})", "copy it again") from error


def _check_set(
    tensors: Mapping[str, Tensor], header: Mapping[str, str], pixels: PixelSpace, where: str | Path
) -> tuple[SyntheticSet, dict[str, Any]]:
    """Return the set and the metadata of a file, or raise `DamagedFileError` if they are invalid or do not fit."""
    metadata = {
        name: value if name in _TEXT else parse_json(value, f"{where}: {name}") for name, value in header.items()
    }
    checked_header = validate(_Header, metadata, where)
    rates = validate(_Rates, dict(tensors), where).learning_rates.tolist()
    content = {
        **{name: tensors.get(name) for name in ("images", "labels", "stages")},
        "learning_rates": [None if math.isnan(rate) else rate for rate in rates],
        "decode_factor": int(checked_header.decode_factor),
    }
    synthetic = SyntheticSet.from_state_dict(content, where)
    labels, num_classes = synthetic.labels, len(checked_header.class_names)
    classes = labels.shape[1] if labels.dim() == 2 else int(labels.max()) + 1 if len(labels) else 0
    if classes > num_classes or (labels.dim() == 2 and classes < num_classes):
        raise damaged_error(where, f"labels are of {classes} classes, class_names of {num_classes}")
    if not pixels.suits(synthetic.images.shape[1:]):
        raise damaged_error(where, f"images are {list(synthetic.images.shape[1:])}, the pixel space is of another size")
    return synthetic, metadata
