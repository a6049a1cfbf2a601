import hashlib
import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from pdd_lightning.data.standard_sets import (
    CIFAR10,
    CIFAR100,
    MNIST,
    SVHN,
    Digits,
    FashionMNIST,
    TinyImageNet,
    TorchvisionData,
)
from pdd_lightning.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def data():
    data = Digits(test_fraction=0.2, val_fraction=0.1)
    data.setup()
    return data


def test_the_parts_cover_all_digits_once(data):
    parts = (data.train, data.val, data.test)
    assert sorted(i for part in parts for i in part.indices.tolist()) == list(range(1797))
    assert len(data.test) == pytest.approx(0.2 * 1797, abs=5)
    assert len(data.val) == pytest.approx(0.08 * 1797, abs=5)
    assert (data.class_names, data.image_shape) == ([str(i) for i in range(10)], (1, 8, 8))


def test_images_and_labels_are_those_of_scikit_learn(data):
    source = load_digits()
    assert data.test.labels.tolist() == source.target[data.test.indices].tolist()
    levels = data.test.images[:, 0].numpy() * (16 / 255)
    assert np.abs(levels - source.images[data.test.indices]).max() < 0.04
    assert (int(data.train.images.min()), int(data.train.images.max())) == (0, 255)


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="test_fraction"):
        Digits(test_fraction=0)


PER_PART = 40


class OldArray:
    """Pickles like an array that an old NumPy wrote, as in the official CIFAR files (dtype with align=0)."""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        return np.ndarray, (self.array.shape, OldType(), self.array.tobytes())


class OldType:
    def __reduce__(self):
        return np.dtype, ("u1", 0, 1)


@pytest.fixture
def cifar_files(tmp_path, monkeypatch):
    """Five training batches and one test batch in CIFAR-10's own format; returns the written batches."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name, content):
        data = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    batches, sums = [], []
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = rng.integers(0, 256, (PER_PART, 3072), dtype=np.uint8)
        labels = (np.arange(PER_PART) % 10).tolist()
        sums.append(write(name, {"data": OldArray(pixels), "labels": labels}))
        batches.append((pixels, labels))
    names = [f"class {i}" for i in range(10)]
    meta_name, meta_sum = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", sums[5:])
    meta = {"filename": meta_name, "key": "label_names", "md5": meta_sum}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return tmp_path, batches


def test_cifar_is_read_from_its_official_files(cifar_files):
    root, batches = cifar_files
    data = CIFAR10(str(root))
    data.prepare_data()  # finds the files: no download
    data.setup()
    pixels = np.concatenate([batch[0] for batch in batches[:5]]).reshape(-1, 3, 32, 32)
    assert np.array_equal(data.train.images, pixels[data.train.indices])
    assert np.array_equal(data.test.images, batches[5][0].reshape(-1, 3, 32, 32))
    assert data.test.labels.tolist() == batches[5][1]
    assert (len(data.train), len(data.val), data.class_names[3]) == (180, 20, "class 3")
    torch.testing.assert_close(data.pixels.tensors()["mean"], torch.tensor([0.4914, 0.4822, 0.4465]))


@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_unusable_cifar_files_are_reported_with_the_remedy(cifar_files, damage):
    root, _ = cifar_files
    batch = root / "cifar-10-batches-py" / "data_batch_3"
    if damage == "missing":
        batch.unlink()
    else:
        batch.write_bytes(batch.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"CIFAR10 was not found.*prepare_data\(\)"):
        CIFAR10(str(root)).setup()


def idx_file(path, array):
    """Write an array in the IDX format of the MNIST files."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_mnist_and_its_sister_are_read_from_their_official_files(tmp_path, kind):
    folder = tmp_path / kind.__name__ / "raw"
    folder.mkdir(parents=True)
    images = np.random.default_rng(1).integers(0, 256, (PER_PART, 28, 28), dtype=np.uint8)
    labels = np.arange(PER_PART, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        idx_file(folder / f"{part}-images-idx3-ubyte", images)
        idx_file(folder / f"{part}-labels-idx1-ubyte", labels)
    data = kind(str(tmp_path))
    data.setup()
    assert data.image_shape == (1, 28, 28)
    assert np.array_equal(data.test.images[:, 0], images)
    assert data.test.labels.tolist() == labels.tolist()


def test_svhn_is_stored_channels_first_with_its_own_names(monkeypatch):
    images = np.random.default_rng(2).integers(0, 256, (PER_PART, 3, 32, 32), dtype=np.uint8)
    asked = []

    def read(root, download, split):
        asked.append(split)
        return SimpleNamespace(data=images, labels=np.arange(PER_PART) % 10)

    monkeypatch.setattr(datasets, "SVHN", read)
    data = SVHN()
    data.setup()
    assert asked == ["train", "test"]
    assert np.array_equal(data.test.images, images)
    assert data.class_names == [str(digit) for digit in range(10)]


def test_cifar100_has_its_own_reader_and_statistics(monkeypatch):
    pixels = np.zeros((200, 32, 32, 3), dtype=np.uint8)
    pixels[:, 5, 6] = (1, 2, 3)
    names = [f"fine {i}" for i in range(100)]

    def read(root, download, train):
        return SimpleNamespace(data=pixels, targets=[i % 100 for i in range(200)], classes=names)

    monkeypatch.setattr(datasets, "CIFAR100", read)
    data = CIFAR100()
    data.setup()
    assert data.num_classes == 100 and data.class_names == names
    assert data.test.images[0, :, 5, 6].tolist() == [1, 2, 3]
    assert data.pixels.tensors()["std"][1].item() == pytest.approx(0.2564)


def test_numpys_remark_on_old_files_is_not_passed_on(cifar_files, monkeypatch):
    load = pickle.load

    def remarking_load(*args, **options):
        warnings.warn("dtype(): align should be passed as Python or NumPy boolean", stacklevel=1)
        return load(*args, **options)

    monkeypatch.setattr(pickle, "load", remarking_load)
    CIFAR10(str(cifar_files[0])).setup()


def test_a_missing_set_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"SVHN was not found.*set download to true"):
        SVHN(str(tmp_path), download=False).setup()


def test_without_download_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "CIFAR10", lambda *_, **__: pytest.fail("opened"))
    CIFAR10(str(tmp_path), download=False).prepare_data()


def test_a_failed_download_is_reported(tmp_path, monkeypatch):
    def unreachable(root, download, train):
        assert download
        raise OSError("Name or service not known")

    monkeypatch.setattr(datasets, "CIFAR10", unreachable)
    with pytest.raises(DataError, match=r"could not download CIFAR10.*Name or service"):
        CIFAR10(str(tmp_path)).prepare_data()


@pytest.mark.parametrize("kind", TorchvisionData.__subclasses__())
def test_published_statistics_are_complete(kind):
    assert hasattr(datasets, kind.READER)
    assert len(kind.PUBLISHED_MEAN) == len(kind.PUBLISHED_STD) in (1, 3)


@pytest.fixture
def folder(tmp_path):
    """Two classes in the official layout; the gray level tells which image it is."""
    base = tmp_path / "tiny-imagenet-200"
    for start, wnid in [(100, "n02"), (0, "n01")]:
        images = base / "train" / wnid / "images"
        images.mkdir(parents=True)
        for i in range(4):
            Image.new("L", (64, 64), start + 10 * i).save(images / f"{wnid}_{i}.JPEG")
    images = base / "val" / "images"
    images.mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (64, 64), (200 + i,) * 3).save(images / f"val_{i}.JPEG")
    rows = [f"val_{i}.JPEG\t{wnid}\t0\t0\t9\t9\n" for i, wnid in enumerate(["n02", "n01", "n02"])]
    (base / "val" / "val_annotations.txt").write_text("".join(rows))
    (base / "wnids.txt").write_text("n02\nn01\n")
    (base / "words.txt").write_text("n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tox\n")
    return base


@pytest.mark.parametrize("inner", [True, False])
def test_the_official_folder_is_read(folder, inner):
    data = TinyImageNet(str(folder if inner else folder.parent))
    data.setup()
    assert data.class_names == ["goldfish, Carassius auratus", "ox"]
    assert data.image_shape == (3, 64, 64)
    source = data.load()[0]
    assert source.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 100, 110, 120, 130]
    assert source.labels.tolist() == [0] * 4 + [1] * 4
    assert data.test.images[:, 0, 0, 0].tolist() == [200, 201, 202]
    assert data.test.labels.tolist() == [1, 0, 1]
    assert data.pixels.tensors()["mean"][0].item() == pytest.approx(0.4802)


def test_a_missing_set_says_where_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"lacks wnids.txt.*cs231n.stanford.edu/tiny-imagenet-200.zip"):
        TinyImageNet(str(tmp_path)).setup()


def test_an_incomplete_folder_says_what_is_missing(folder):
    (folder / "words.txt").unlink()
    with pytest.raises(DataError, match=r"lacks words.txt;"):
        TinyImageNet(str(folder)).setup()


def test_an_annotation_of_an_unknown_class_is_quoted(folder):
    path = folder / "val" / "val_annotations.txt"
    path.write_text(path.read_text() + "val_9.JPEG\tn99\t0\t0\t9\t9\n")
    with pytest.raises(DataError, match=r"without a known class.*n99"):
        TinyImageNet(str(folder)).setup()


def test_a_missing_image_is_named(folder):
    (folder / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(DataError, match=r"cannot read image .*val_1\.JPEG"):
        TinyImageNet(str(folder)).setup()
