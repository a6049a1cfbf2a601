"""A Parquet file that the Hugging Face library `datasets` reads as images, classes and stages."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.formats.content import Content
from pdd_lightning.data.formats.image_folder import picture, to_bytes_scale
from pdd_lightning.data.formats.order import hard_labels
from pdd_lightning.data.splits import to_unit
from pdd_lightning.errors import ConfigError, DamagedFileError, DataError
from pdd_lightning.files import atomic_write_bytes

if TYPE_CHECKING:
    from pdd_lightning.data.real import RealDataModule

_OWN = b"pdd_lightning"
_FEATURES = b"huggingface"


def read(path: Path, real: RealDataModule) -> Content:
    """Read the columns `image` and `label`, and `stage` and `soft_label` where they are.

    Classes go by the names that the file gives them, where it does.

    Raises:
        DataError: A column is missing or unusable, or a class is not one of the real data.
        DamagedFileError: The file is truncated or altered.
        ConfigError: pyarrow is not installed.
    """
    arrow = _pyarrow()
    try:
        table = arrow.parquet.read_table(path)
    except (arrow.ArrowException, OSError) as error:
        raise DamagedFileError(f"{path} is damaged, or not a Parquet file: {error}") from error
    missing = {"image", "label"} - set(table.column_names)
    if missing:
        raise DataError(
            f"{path} lacks the column {' and '.join(sorted(missing))}; it has {', '.join(table.column_names)}"
        )
    metadata = table.schema.metadata or {}
    stages = _tensor(path, table, "stage", torch.int64) if "stage" in table.column_names else None
    return Content(
        form="Parquet",
        images=_images(path, table["image"].to_pylist(), real.image_shape[0]),
        labels=_labels(path, table, _names(_parsed(metadata.get(_FEATURES))), real),
        in_pixels=True,
        stages=stages,
        **_said(path, _parsed(metadata.get(_OWN))),
    )


def write(path: Path, dataset: DistilledDataset) -> None:
    """Write the set with 8 bits per channel, and with all that it says about itself.

    Raises:
        ConfigError: pyarrow is not installed, or the images have neither one channel nor three.
    """
    arrow = _pyarrow()
    pixels = to_bytes_scale(dataset)
    names = [f"stage{stage:02d}_{number:05d}.png" for number, stage in enumerate(dataset.stages.tolist())]
    rows = [{"bytes": _png(image), "path": name} for image, name in zip(pixels, names, strict=True)]
    columns: dict[str, Any] = {
        "image": arrow.array(rows, arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])),
        "label": arrow.array(hard_labels(dataset.labels).tolist(), arrow.int64()),
        "stage": arrow.array(dataset.stages.tolist(), arrow.int64()),
    }
    if dataset.labels.dim() == 2:
        columns["soft_label"] = arrow.array(dataset.labels.tolist(), arrow.list_(arrow.float32()))
    own = {
        "learning_rates": dataset.learning_rates,
        "decode_factor": dataset.synthetic.decode_factor,
        "about": dataset.about(),
    }
    metadata = {_FEATURES: json.dumps(_features(dataset)), _OWN: json.dumps(own)}
    sink = arrow.BufferOutputStream()
    arrow.parquet.write_table(arrow.table(columns).replace_schema_metadata(metadata), sink)
    atomic_write_bytes(path, sink.getvalue().to_pybytes())


def _features(dataset: DistilledDataset) -> dict[str, Any]:
    """What `datasets` makes of the columns, in the words that its files use."""
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": dataset.class_names, "_type": "ClassLabel"},
        "stage": {"dtype": "int64", "_type": "Value"},
    }
    if dataset.labels.dim() == 2:
        # Older versions know no other name for lists, and newer ones still take it.
        features["soft_label"] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
    return {"info": {"features": features}}


def _labels(path: Path, table: Any, names: list[str] | None, real: RealDataModule) -> Tensor:
    """Return labels `[N]`, or soft ones `[N, classes]`, in the numbering of the real data."""
    if names is None:
        names = real.class_names
    elif not set(names) <= set(real.class_names):
        raise DataError(
            f"{path} does not belong to {real.name}: its class names: {names}, the data's: {real.class_names}"
        )
    position = torch.tensor([real.class_names.index(name) for name in names])
    if "soft_label" in table.column_names:
        soft = _tensor(path, table, "soft_label", torch.float32)
        if soft.dim() != 2 or soft.shape[1] != len(names):
            raise DataError(f"{path}: soft labels must have {len(names)} entries each, one per class")
        return torch.zeros(len(soft), real.num_classes).index_copy(1, position, soft)
    labels = _tensor(path, table, "label", torch.int64)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
        raise DataError(f"{path}: labels must lie between 0 and {len(names) - 1}, for it has {len(names)} classes")
    return position[labels]


def _images(path: Path, rows: list[Any], channels: int) -> Tensor:
    """Images `[N, C, H, W]` in [0, 1].

    Raises:
        DataError: One cannot be decoded, or they differ in size.
    """
    mode = "L" if channels == 1 else "RGB"
    images = []
    for number, row in enumerate(rows):
        try:
            with Image.open(io.BytesIO(row["bytes"])) as file:
                pixels = np.asarray(file.convert(mode), dtype=np.uint8)
        except Exception as error:  # the decoders raise many unrelated types on damaged files
            raise DataError(f"{path}: image {number} cannot be read: {error}") from error
        images.append(torch.from_numpy(pixels.copy()).reshape(*pixels.shape[:2], -1).permute(2, 0, 1))
    if len({image.shape for image in images}) != 1:
        raise DataError(f"{path} holds no images, or images of different sizes")
    return to_unit(torch.stack(images))


def _png(pixels: Tensor) -> bytes:
    buffer = io.BytesIO()
    picture(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _tensor(path: Path, table: Any, name: str, dtype: torch.dtype) -> Tensor:
    """Return a column of numbers, or of lists of as many numbers."""
    values = table[name].to_pylist()
    try:
        tensor = torch.tensor(values)
        if tensor.is_floating_point() != dtype.is_floating_point:
            raise TypeError("numbers of another kind")
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: the column {name} cannot be used: {error}") from error
    return tensor.to(dtype)


def _said(path: Path, own: dict[str, Any]) -> dict[str, Any]:
    """Return what a file that `write` wrote says beside its columns."""
    if not own:
        return {}
    try:
        rates = tuple(None if rate is None else float(rate) for rate in own["learning_rates"])
        return {"rates": rates, "decode_factor": int(own["decode_factor"]), "metadata": dict(own["about"])}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} was altered: its own description cannot be read ({error})") from error


def _names(features: dict[str, Any]) -> list[str] | None:
    """Names of the classes, if the file gives them."""
    try:
        return [str(name) for name in features["info"]["features"]["label"]["names"]]
    except (KeyError, TypeError):
        return None


def _parsed(text: bytes | None) -> dict[str, Any]:
    try:
        value = json.loads(text or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("Parquet files need pyarrow: pip install 'pdd-lightning[parquet]'") from error
    return pyarrow
