"""A Parquet file that the Hugging Face library `datasets` reads as images, classes and stages."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.folder import bombs_refused, decode_image
from pdd_lightning.data.formats.foreign import Contents, ForeignFormat, hard_labels
from pdd_lightning.data.formats.image_folder import png_files
from pdd_lightning.data.formats.registry import register
from pdd_lightning.data.splits import to_unit
from pdd_lightning.errors import ConfigError, DamagedFileError, DataError
from pdd_lightning.files import atomic_write_bytes

if TYPE_CHECKING:
    from pdd_lightning.data.real import RealDataModule

_OWN, _FEATURES = b"pdd_lightning", b"huggingface"


@register
class Parquet(ForeignFormat):
    """Columns `image` (PNG), `label` and `stage`, `soft_label` where labels are soft, and the rest as metadata."""

    name, title, files = "parquet", "Parquet", "a Parquet file"
    suffix = ".parquet"
    eight_bits = True
    keeps = ("soft labels", "stages", "rates", "decode factor")

    def sniff(self, path: Path, content: Any) -> bool:
        """Whether the file begins as such files do."""
        return isinstance(content, bytes) and content.startswith(b"PAR1")

    def contents(self, path: Path, real: RealDataModule) -> Contents:
        """Return the columns, of which `image` and `label` are needed; classes go by name where the file has names."""
        arrow = _pyarrow()
        try:
            table = arrow.parquet.read_table(path)
        except (arrow.ArrowException, OSError) as error:
            raise DamagedFileError(f"{path} is damaged, or not a Parquet file: {error}") from error
        columns, metadata = table.column_names, table.schema.metadata or {}
        if missing := {"image", "label"} - set(columns):
            raise DataError(f"{path} lacks the column {' and '.join(sorted(missing))}; it has {', '.join(columns)}")
        return Contents(
            images=_images(path, table["image"].to_pylist(), grayscale=real.image_shape[0] == 1),
            labels=_labels(path, table, metadata, real),
            stages=_tensor(path, table, "stage", torch.int64) if "stage" in columns else None,
            **_description(path, metadata),
        )

    def write(self, path: Path, dataset: DistilledDataset) -> None:
        """Write the set, and all that it says about itself."""
        arrow, soft = _pyarrow(), dataset.labels.dim() == 2
        images = [{"bytes": png, "path": name} for name, png in png_files(dataset)]
        columns: dict[str, Any] = {
            "image": arrow.array(images, arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])),
            "label": arrow.array(hard_labels(dataset.labels).tolist(), arrow.int64()),
            "stage": arrow.array(dataset.stages.tolist(), arrow.int64()),
        }
        # What `datasets` makes of the columns, in the words that its files use.
        features: dict[str, Any] = {
            "image": {"_type": "Image"},
            "label": {"names": dataset.class_names, "_type": "ClassLabel"},
            "stage": {"dtype": "int64", "_type": "Value"},
        }
        if soft:
            columns["soft_label"] = arrow.array(dataset.labels.tolist(), arrow.list_(arrow.float32()))
            # Older versions know no other name for lists, and newer ones still take it.
            features["soft_label"] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
        own = {
            "learning_rates": dataset.learning_rates,
            "decode_factor": dataset.synthetic.decode_factor,
            "about": dataset.about(),
        }
        metadata = {_FEATURES: json.dumps({"info": {"features": features}}), _OWN: json.dumps(own)}
        sink = arrow.BufferOutputStream()
        arrow.parquet.write_table(arrow.table(columns).replace_schema_metadata(metadata), sink)
        atomic_write_bytes(path, sink.getvalue().to_pybytes())


def _labels(path: Path, table: Any, metadata: dict[bytes, bytes], real: RealDataModule) -> Tensor:
    """Return labels `[N]`, or soft ones `[N, classes]`, in the numbering of the real data."""
    try:
        names = [str(name) for name in json.loads(metadata[_FEATURES])["info"]["features"]["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        names = real.class_names
    if not set(names) <= set(real.class_names):
        raise DataError(
            f"{path} does not belong to {real.name}: its class names: {names}, the data's: {real.class_names}"
        )
    indices = torch.tensor([real.class_names.index(name) for name in names])
    if "soft_label" in table.column_names:
        soft = _tensor(path, table, "soft_label", torch.float32)
        if soft.dim() != 2 or soft.shape[1] != len(names):
            raise DataError(f"{path}: soft labels must have {len(names)} entries each, one per class")
        return torch.zeros(len(soft), real.num_classes).index_copy(1, indices, soft)
    labels = _tensor(path, table, "label", torch.int64)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
        raise DataError(f"{path}: labels must lie between 0 and {len(names) - 1}, for it has {len(names)} classes")
    return indices[labels]


def _images(path: Path, rows: list[Any], grayscale: bool) -> Tensor:
    """Return images `[N, C, H, W]` in [0, 1]."""
    try:
        files = [io.BytesIO(row["bytes"]) for row in rows]
    except (TypeError, KeyError) as error:
        raise DataError(f"{path}: the column image cannot be used: {error}") from error
    with bombs_refused():
        images = [decode_image(file, None, grayscale, f"{number} of {path}") for number, file in enumerate(files)]
    if len({image.shape for image in images}) != 1:
        raise DataError(f"{path} holds no images, or images of different sizes")
    return to_unit(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous())


def _tensor(path: Path, table: Any, name: str, dtype: torch.dtype) -> Tensor:
    """Return a column of numbers, or of lists of as many numbers."""
    try:
        tensor = torch.tensor(table[name].to_pylist())
        if tensor.is_floating_point() != dtype.is_floating_point:
            raise TypeError(f"its numbers are {tensor.dtype}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: the column {name} cannot be used: {error}") from error
    return tensor.to(dtype)


def _description(path: Path, metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """Return what a file that was written here says beside its columns."""
    if _OWN not in metadata:
        return {}
    try:
        own = json.loads(metadata[_OWN])
        rates = tuple(None if rate is None else float(rate) for rate in own["learning_rates"])
        return {"learning_rates": rates, "decode_factor": int(own["decode_factor"]), "metadata": dict(own["about"])}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} was altered: its own description cannot be read ({error})") from error


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("Parquet files need pyarrow: pip install 'pdd-lightning[parquet]'") from error
    return pyarrow
