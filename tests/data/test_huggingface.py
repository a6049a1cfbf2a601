"""Data sets of the Hugging Face library, from files made here."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pdd_lightning.data import HuggingFaceImages
from pdd_lightning.errors import DataError

datasets = pytest.importorskip("datasets")
NAMES = ["cat", "dog"]


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def png(number: int) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.fromarray(pixels(number)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{number}.png"}


def made(numbers: range, labels: list[object], kind: object) -> object:
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    return datasets.Dataset.from_dict({"image": [png(number) for number in numbers], "label": labels}, features)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def labelled() -> object:
    return made(range(20), [1, 0] * 10, datasets.ClassLabel(names=NAMES))


def loaded(source: Path, **options: object) -> HuggingFaceImages:
    real = HuggingFaceImages(str(source), val_fraction=0.2, **options)  # type: ignore[arg-type]
    real.prepare_data()
    real.setup()
    return real


def check_all_images_are_there(real: HuggingFaceImages) -> None:
    """Every image of `labelled` is in one part, with its class."""
    found = {}
    for part in (real.train, real.val, real.test):
        found |= {image.numpy().tobytes(): int(label) for image, label in zip(part.images, part.labels, strict=True)}
    expected = {pixels(number).transpose(2, 0, 1).tobytes(): 1 - number % 2 for number in range(20)}
    assert found == expected


def test_parquet(labelled: object, tmp_path: Path) -> None:
    labelled.to_parquet(tmp_path / "animals.parquet")
    real = loaded(tmp_path / "animals.parquet", test_fraction=0.2)
    assert (real.name, real.class_names, real.image_shape) == ("animals", NAMES, (3, 8, 8))
    check_all_images_are_there(real)


def test_saved_splits(labelled: object, tmp_path: Path) -> None:
    parts = {"train": labelled.select(range(12)), "test": labelled.select(range(12, 20))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    real = loaded(tmp_path / "saved")
    assert len(real.test) == 8
    check_all_images_are_there(real)


def test_classes_as_text_and_numbers(tmp_path: Path) -> None:
    for kind, labels, names in (("string", ["dog", "cat"], NAMES), ("int64", [7, 3], ["3", "7"])):
        made(range(20), labels * 10, datasets.Value(kind)).to_parquet(tmp_path / f"{kind}.parquet")
        real = loaded(tmp_path / f"{kind}.parquet")
        assert real.class_names == names
        check_all_images_are_there(real)


def test_image_size_and_gray(labelled: object, tmp_path: Path) -> None:
    labelled.to_parquet(tmp_path / "animals.parquet")
    assert loaded(tmp_path / "animals.parquet", image_size=4, grayscale=True).image_shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"image_column": "picture"}, "has no column picture: .*image, label"),
        ({"train_split": "training"}, "has no split training; it has train"),
    ],
)
def test_what_is_missing_is_named(options: dict[str, str], expected: str, labelled: object, tmp_path: Path) -> None:
    datasets.DatasetDict({"train": labelled}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=expected):
        loaded(tmp_path / "saved", **options)


def test_formats_that_start_programs_are_refused(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=NAMES)})
    rows = {"image": [{"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "path": "x.png"}], "label": [0]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "hostile.parquet")
    with pytest.raises(DataError, match="cannot read image 0 of"):
        loaded(tmp_path / "hostile.parquet")
    with pytest.raises(DataError, match="cannot read the data set"):
        (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
        loaded(tmp_path / "broken.parquet")
