import pytest
from PIL import Image

from pdd_lightning.data.standard_sets import TinyImageNet
from pdd_lightning.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """Two classes in the official layout; the grey level tells which image it is."""
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
