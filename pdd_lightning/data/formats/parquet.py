"""Parquet files that the Hugging Face library `datasets` reads as images, classes and stages."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pdd_lightning.data.distilled import DistilledDataset, StoredMetadata
from pdd_lightning.data.folder import decode_image, refuse_large_images
from pdd_lightning.data.formats.foreign import Contents, ForeignFormat
from pdd_lightning.data.formats.image_folder import png_files
from pdd_lightning.data.formats.registry import register
from pdd_lightning.data.splits import to_unit
from pdd_lightning.data.synthetic import hard_labels
from pdd_lightning.errors import ConfigError, DamagedFileError, DataError
from pdd_lightning.files import atomic_write_bytes
from pdd_lightning.stored import (
    MAX_BYTES,
    MAX_STAGES,
    ClassNames,
    Json,
    Rate,
    Stored,
    damaged_error,
    one_line,
    parse_json,
    validate,
    validate_as,
)

if TYPE_CHECKING:
    from pdd_lightning.data.real import RealDataModule

_PDD_KEY, _FEATURES_KEY = b"pdd_lightning", b"huggingface"
_MAX_IMAGES = 10**6


@register
class Parquet(ForeignFormat):
    """Columns `image` (PNG), `label`, `stage` and, of soft labels, `soft_label`; the rest is metadata."""

    name, title, files = "parquet", "Parquet", "a Parquet file"
    suffix = ".parquet"
    eight_bits = True
    keeps = ("soft labels", "stages", "rates", "decode factor")

    def sniff(self, path: Path, content: Any) -> bool:
        """Return whether the file begins with the format's magic bytes."""
        return isinstance(content, bytes) and content.startswith(b"PAR1")

    def contents(self, path: Path, real: RealDataModule) -> Contents:
        """Return the columns; `image` and `label` are required. Classes are matched by name if the file has names."""
        table = _read_table(path)
        columns, metadata = table.column_names, table.schema.metadata or {}
        if missing := {"image", "label"} - set(columns):
            raise DataError(f"{path} lacks the column {' and '.join(sorted(missing))}; it has {', '.join(columns)}")
        return Contents(
            images=_images(path, table["image"].to_pylist(), grayscale=real.image_shape[0] == 1),
            labels=_labels(path, table, metadata, real),
            stages=_tensor(path, table, "stage", torch.int64) if "stage" in columns else None,
            **_pdd_contents(path, metadata),
        )

    def write(self, path: Path, dataset: DistilledDataset) -> None:
        """Write the set with its metadata."""
        arrow, soft = _pyarrow(), dataset.labels.dim() == 2
        images = [{"bytes": png, "path": name} for name, png in png_files(dataset)]
        columns: dict[str, Any] = {
            "image": arrow.array(images, arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])),
            "label": arrow.array(hard_labels(dataset.labels).tolist(), arrow.int64()),
            "stage": arrow.array(dataset.stages.tolist(), arrow.int64()),
        }
        # The schema of the columns in the form of `datasets`.
        features: dict[str, Any] = {
            "image": {"_type": "Image"},
            "label": {"names": dataset.class_names, "_type": "ClassLabel"},
            "stage": {"dtype": "int64", "_type": "Value"},
        }
        if soft:
            columns["soft_label"] = arrow.array(dataset.labels.tolist(), arrow.list_(arrow.float32()))
            # All versions know this name for lists.
            features["soft_label"] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
        own = {
            "learning_rates": dataset.learning_rates,
            "decode_factor": dataset.synthetic.decode_factor,
            "about": dataset.about(),
        }
        metadata = {_FEATURES_KEY: json.dumps({"info": {"features": features}}), _PDD_KEY: json.dumps(own)}
        sink = arrow.BufferOutputStream()
        arrow.parquet.write_table(arrow.table(columns).replace_schema_metadata(metadata), sink)
        atomic_write_bytes(path, sink.getvalue().to_pybytes())


class _PDDMetadata(Stored):
    """Metadata of files that this package wrote."""

    learning_rates: Annotated[list[Rate | None], Field(max_length=MAX_STAGES)]
    decode_factor: Annotated[int, Field(ge=1, le=16)]
    about: Json


def _read_table(path: Path) -> Any:
    """Read the columns after a check of their size."""
    arrow = _pyarrow()
    try:
        with arrow.parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            if file.metadata.num_rows > _MAX_IMAGES or sum(group.total_byte_size for group in groups) > MAX_BYTES:
                raise ValueError(f"it has more than {_MAX_IMAGES} rows, or {MAX_BYTES} bytes")
            if len(set(file.schema_arrow.names)) < len(file.schema_arrow.names):
                raise ValueError("two of its columns have the same name")
            known = [name for name in ("image", "label", "stage", "soft_label") if name in file.schema_arrow.names]
            table = file.read(known)
            table.validate(full=True)
            return table
    except (arrow.ArrowException, OSError, ValueError, MemoryError) as error:
        raise damaged_error(path, f"it is no Parquet file of a set: {error}") from error


def _labels(path: Path, table: Any, metadata: dict[bytes, bytes], real: RealDataModule) -> Tensor:
    """Return labels `[N]`, or soft ones `[N, classes]`, in the order of the real data's classes."""
    names = real.class_names
    with suppress(DamagedFileError, KeyError, TypeError):  # metadata of other files may be anything
        features = parse_json(metadata.get(_FEATURES_KEY, b""), path)["info"]["features"]
        names = validate_as(ClassNames, features["label"]["names"], path)
    if not set(names) <= set(real.class_names):
        raise DataError(
            f"{path} does not belong to {real.name}: its class names: {one_line(names)}, the data's:"
            f" {one_line(real.class_names)}"
        )
    indices = torch.tensor([real.class_names.index(name) for name in names])
    if "soft_label" in table.column_names:
        soft = _tensor(path, table, "soft_label", torch.float32)
        if soft.dim() != 2 or soft.shape[1] != len(names):
            raise DataError(f"{path}: soft labels must have {len(names)} entries each, one per class")
        return torch.zeros(len(soft), real.num_classes).index_copy(1, indices, soft)
    labels = _tensor(path, table, "label", torch.int64)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
        raise DataError(f"{path}: labels must be between 0 and {len(names) - 1}, for it has {len(names)} classes")
    return indices[labels]


def _images(path: Path, rows: list[Any], grayscale: bool) -> Tensor:
    """Return images `[N, C, H, W]` in [0, 1]."""
    try:
        files = [io.BytesIO(row["bytes"]) for row in rows]
    except (TypeError, KeyError) as error:
        raise DataError(f"{path}: the column image cannot be used: {error}") from error
    with refuse_large_images():
        images = [decode_image(file, None, grayscale, f"{number} of {path}") for number, file in enumerate(files)]
    if len({image.shape for image in images}) != 1:
        raise DataError(f"{path} holds no images, or images of different sizes")
    return to_unit(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous())


def _tensor(path: Path, table: Any, name: str, dtype: torch.dtype) -> Tensor:
    """Return a column of numbers, or of lists of equally many numbers."""
    try:
        rows = table[name].to_pylist()
        if any(isinstance(value, list) for row in rows if isinstance(row, list) for value in row):
            raise TypeError("it holds lists of lists")
        tensor = torch.tensor(rows)
        if tensor.is_floating_point() != dtype.is_floating_point or tensor.dtype == torch.bool:
            raise TypeError(f"its numbers are {tensor.dtype}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: the column {name} cannot be used: {one_line(error)}") from error
    return tensor.to(dtype)


def _pdd_contents(path: Path, metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """Return fields of `Contents` from the metadata of a file that this package wrote."""
    if _PDD_KEY not in metadata:
        return {}
    own = validate(_PDDMetadata, parse_json(metadata[_PDD_KEY], path), f"{path}: its metadata")
    validate(StoredMetadata, own.about, f"{path}: its metadata")
    return {"learning_rates": tuple(own.learning_rates), "decode_factor": own.decode_factor, "metadata": own.about}


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("Parquet files need pyarrow: pip install 'pdd-lightning[parquet]'") from error
    return pyarrow
