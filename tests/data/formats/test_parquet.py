"""The Parquet format, as Hugging Face's `datasets` sees it; that library itself is not needed."""

import io
import json
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.formats import FORMATS, ImportOptions, open_distilled
from pdd_lightning.errors import ConfigError, DamagedFileError, DataError


@pytest.fixture
def path(tmp_path, even, blobs):
    dataset = DistilledDataset.of(even, blobs.pixels, blobs.class_names, {}, stored=True)
    FORMATS["parquet"].save(tmp_path / "set.parquet", dataset)
    return tmp_path / "set.parquet"


def png(value: int, size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, names=None, **columns):
    """A file as somebody else would write it: three images, in gray steps, of classes 0, 1, 2."""
    given = {"image": [{"bytes": png(60 * number), "path": None} for number in range(3)], "label": [0, 1, 2], **columns}
    table = pyarrow.table({name: values for name, values in given.items() if values is not None})
    if names is not None:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pyarrow.parquet.write_table(table, path)
    return path


def test_the_schema_says_what_the_columns_are(path, soft, blobs, tmp_path):
    features = json.loads(pyarrow.parquet.read_schema(path).metadata[b"huggingface"])["info"]["features"]
    assert features == {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": ["red", "green", "blue"]},
        "stage": {"_type": "Value", "dtype": "int64"},
    }
    dataset = DistilledDataset.of(soft, blobs.pixels, blobs.class_names, {}, stored=True)
    FORMATS["parquet"].save(tmp_path / "soft.parquet", dataset)
    schema = pyarrow.parquet.read_schema(tmp_path / "soft.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["soft_label"]["feature"] == {"_type": "Value", "dtype": "float32"}
    assert schema.names == ["image", "label", "stage", "soft_label"] == list(features)


def test_the_images_are_png_files_in_a_struct(path, even, blobs):
    table = pyarrow.parquet.read_table(path)
    assert table.schema.field("image").type == pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    assert table["label"].to_pylist() == even.labels.tolist() and table["stage"].to_pylist() == [1, 1, 1, 2, 2, 2]
    expected = (blobs.pixels.decode(even.images).clamp(0, 1) * 255).round()
    for row, image in zip(table["image"].to_pylist(), expected, strict=True):
        with Image.open(io.BytesIO(row["bytes"])) as picture:
            assert picture.format == "PNG"
            assert np.array_equal(np.asarray(picture), image.permute(1, 2, 0).numpy())


def test_a_file_of_somebody_else(tmp_path, blobs):
    dataset = open_distilled(write(tmp_path / "a.parquet"), blobs)
    assert dataset.labels.tolist() == [0, 1, 2] and dataset.num_stages == 1
    torch.testing.assert_close(dataset.to_pixels()[:, 0, 0, 0] * 255, torch.tensor([0.0, 60, 120]))
    assert (
        open_distilled(tmp_path / "a.parquet", blobs, ImportOptions(decode_factor=2), stored=False).images.shape[0]
        == 12
    )


def test_classes_go_by_name(tmp_path, blobs):
    path = write(tmp_path / "a.parquet", names=["blue", "red", "green"])
    assert open_distilled(path, blobs).labels.tolist() == [2, 0, 1]
    soft = [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    path = write(tmp_path / "b.parquet", names=["blue", "red", "green"], soft_label=soft)
    assert open_distilled(path, blobs).labels.tolist() == [[0.25, 0.25, 0.5], [1, 0, 0], [0, 1, 0]]
    with pytest.raises(DataError, match=r"does not belong to Blobs: its class names: \['cat', 'dog'\]"):
        open_distilled(write(tmp_path / "c.parquet", names=["cat", "dog"]), blobs)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": None}, "lacks the column label; it has image"),
        ({"label": [0, 1, 3]}, "labels must be between 0 and 2"),
        ({"label": [0, None, 2]}, "the column label cannot be used"),
        ({"label": [0.0, 1.0, 2.0]}, "the column label cannot be used"),
        ({"stage": [1, 1, None]}, "the column stage cannot be used"),
        ({"stage": [0, 1, 2]}, "stages must be 3 integers"),
        ({"stage": [1, 1, 10**12]}, "stages must be 3 integers"),
        ({"soft_label": [[0.5], [1.0], [1.0]]}, "soft labels must have 3 entries"),
        ({"image": [{"bytes": b"no image", "path": None}] * 3}, "cannot read image 0 of .*a.parquet"),
        ({"image": [{"bytes": None, "path": "a.png"}] * 3}, "cannot read image 0 of .*a.parquet"),
        ({"image": [png(1)] * 3}, "the column image cannot be used"),
        ({"image": [None] * 3}, "the column image cannot be used"),
        ({"image": [{"bytes": png(1, size), "path": None} for size in (8, 8, 4)]}, "images of different sizes"),
    ],
)
def test_columns_that_cannot_be_used(tmp_path, blobs, columns, message):
    with pytest.raises(DataError, match=message):
        open_distilled(write(tmp_path / "a.parquet", **columns), blobs)


def test_a_description_that_was_altered(path, blobs):
    table = pyarrow.parquet.read_table(path)
    for own in ({"learning_rates": 3}, {"learning_rates": [], "decode_factor": "x", "about": {}}):
        metadata = {**table.schema.metadata, b"pdd_lightning": json.dumps(own)}
        pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)
        with pytest.raises(DamagedFileError, match="its metadata is damaged"):
            open_distilled(path, blobs)


def test_a_truncated_file(path, blobs):
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedFileError, match=r"set\.parquet is damaged"):
        open_distilled(path, blobs)


def test_without_pyarrow_it_says_what_to_install(path, blobs, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'pdd-lightning\[parquet\]'"):
        open_distilled(path, blobs)
