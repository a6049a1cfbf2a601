"""A set that is written in a format and opened again."""

import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from pdd_lightning import endings, files
from pdd_lightning.data import Digits, DistilledDataset, save_distilled
from pdd_lightning.data.formats import (
    FORMATS,
    ImportOptions,
    find_format,
    open_distilled,
    target_format,
    writable_formats,
)
from pdd_lightning.errors import ConfigError, DataError

METADATA = {"network": {"class_path": "pdd_lightning.networks.ConvNet", "init_args": {"width": 8}}, "method": "IDC"}
NAMES = {
    "safetensors": "set.safetensors",
    "mtt": "mtt",
    "idc": "data.pt",
    "dc": "res_DM.pt",
    "ddranking": "ranking",
    "folder": "images",
    "parquet": "set.parquet",
}
# What each format leaves to the options, for a set of two stages.
MISSING = {"idc": {"num_stages": 2, "decode_factor": 1}, "dc": {"num_stages": 2}, "ddranking": {"num_stages": 2}}


@pytest.fixture
def dataset(even, blobs):
    return DistilledDataset.of(even, blobs.pixels, blobs.class_names, METADATA, stored=True)


def there_and_back(tmp_path, name, dataset, real, **options):
    path = tmp_path / NAMES[name]
    FORMATS[name].save(path, dataset)
    assert find_format(path).name == name
    options = options or MISSING.get(name, {})
    return open_distilled(path, real, ImportOptions(**options), stored=True)


@pytest.mark.parametrize("name", ["safetensors", "mtt", "dc"])
def test_formats_of_numbers_keep_every_bit(tmp_path, dataset, blobs, name):
    back = there_and_back(tmp_path, name, dataset, blobs)
    order = [0, 1, 2, 3, 4, 5] if name != "dc" else torch.argsort(dataset.stages * 3 + dataset.labels).tolist()
    assert torch.equal(back.images, dataset.images[order])
    assert torch.equal(back.labels, dataset.labels[order]) and torch.equal(back.stages, dataset.stages)
    assert back.learning_rates == ((None, None) if name == "dc" else (0.02, 0.013))


@pytest.mark.parametrize("name", ["idc", "folder", "parquet"])
def test_formats_of_pixels_keep_what_can_be_seen(tmp_path, dataset, blobs, name):
    back = there_and_back(tmp_path, name, dataset, blobs)
    order = torch.argsort(dataset.stages * 3 + dataset.labels)
    if name == "parquet":
        order = torch.arange(6)
    assert torch.equal(back.labels, dataset.labels[order]) and torch.equal(back.stages, dataset.stages)
    expected = dataset.to_pixels()[order]
    bound = 1e-6 if name == "idc" else 0.5 / 255 + 1e-6
    assert float((back.to_pixels() - expected).abs().max()) <= bound
    assert back.learning_rates == ((0.02, 0.013) if name == "parquet" else (None, None))


@pytest.mark.parametrize("name", ["mtt", "safetensors", "parquet"])
def test_soft_labels_that_are_kept(tmp_path, soft, blobs, name):
    dataset = DistilledDataset.of(soft, blobs.pixels, blobs.class_names, {}, stored=True)
    back = there_and_back(tmp_path, name, dataset, blobs, num_stages=None)
    assert torch.equal(back.labels, soft.labels)
    assert back.num_stages == (1 if name == "mtt" else 2), "stages of unequal size cannot be told apart"


@pytest.mark.parametrize("name", ["idc", "dc", "folder"])
def test_soft_labels_that_are_not_kept(tmp_path, soft, blobs, name):
    dataset = DistilledDataset.of(soft, blobs.pixels, blobs.class_names, {}, stored=True)
    notes = FORMATS[name].save(tmp_path / NAMES[name], dataset)
    assert "soft labels are not stored: each image has its most probable class" in notes
    back = open_distilled(tmp_path / NAMES[name], blobs, ImportOptions(decode_factor=1))
    assert back.labels.bincount(minlength=3).tolist() == soft.labels.argmax(1).bincount(minlength=3).tolist()


@pytest.mark.parametrize("name", ["mtt", "idc", "dc", "folder"])
def test_what_is_lost_is_said(tmp_path, even, blobs, name):
    tiled = replace(even, decode_factor=2)
    dataset = DistilledDataset.of(tiled, blobs.pixels, blobs.class_names, {}, stored=True)
    notes = " / ".join(FORMATS[name].save(tmp_path / NAMES[name], dataset))
    assert ("learned rates are not stored: 0.02, 0.013" in notes) == (name != "mtt")
    assert ("read it with --num_stages 2" in notes) == (name in ("idc", "dc"))
    assert "read it with --decode_factor 2" in notes
    assert ("8 bits" in notes) == (name == "folder")
    assert ("read it with data of mean [" in notes) == (name in ("mtt", "dc"))


def test_a_whitened_set_says_that_it_is(tmp_path, even, whitened):
    dataset = DistilledDataset.of(even, whitened.pixels, whitened.class_names, {}, stored=True)
    (note, *_) = FORMATS["mtt"].save(tmp_path / "mtt", dataset)
    assert "ZCA-whitened" in note and "normalization zca" in note
    assert FORMATS["safetensors"].save(tmp_path / "set.safetensors", dataset) == []


def test_pixels_outside_the_range_are_clipped_and_counted(tmp_path, even, blobs):
    images = blobs.pixels.encode(torch.full((6, 3, 8, 8), 0.5))
    images[:3] = blobs.pixels.encode(torch.full((3, 3, 8, 8), 1.25))
    dataset = DistilledDataset.of(replace(even, images=images), blobs.pixels, blobs.class_names, {}, stored=True)
    notes = FORMATS["idc"].save(tmp_path / "data.pt", dataset)
    assert "50.0% of the pixel values were outside [0, 1] and were clipped" in notes
    pixels, _ = torch.load(tmp_path / "data.pt", weights_only=True)
    assert float(pixels.max()) == 1.0


def test_stages_of_unequal_size_cannot_be_told_apart(tmp_path, staged_blobs, blobs):
    dataset = DistilledDataset.of(staged_blobs, blobs.pixels, blobs.class_names, {}, stored=True)
    for name in ("mtt", "idc", "dc"):
        notes = FORMATS[name].save(tmp_path / name, dataset)
        assert "stages are not stored, and differ in size" in notes
        assert "learned rates are not stored: 0.02, none" in notes
        assert open_distilled(tmp_path / name, blobs, ImportOptions(decode_factor=1)).num_stages == 1


@pytest.mark.parametrize("name", ["safetensors", "parquet"])
def test_formats_that_say_themselves_what_they_hold(tmp_path, even, blobs, name):
    tiled = replace(even, decode_factor=2)
    dataset = DistilledDataset.of(tiled, blobs.pixels, blobs.class_names, METADATA, stored=True)
    back = there_and_back(tmp_path, name, dataset, blobs)
    assert back.synthetic.decode_factor == 2 and METADATA.items() <= back.metadata.items()
    path = tmp_path / NAMES[name]
    assert len(open_distilled(path, blobs)) == 24
    assert open_distilled(path, blobs, ImportOptions(num_stages=2, decode_factor=2)).num_stages == 2
    for wrong in ({"num_stages": 3}, {"decode_factor": 3}):
        with pytest.raises(ConfigError, match="leave out " + next(iter(wrong))):
            open_distilled(path, blobs, ImportOptions(**wrong))


def test_the_plain_files_hold_what_the_methods_code_expects(tmp_path, dataset, blobs):
    """Read by hand, as that code does."""
    for name in ("mtt", "idc", "dc"):
        FORMATS[name].save(tmp_path / NAMES[name], dataset)
    labels = torch.load(tmp_path / "mtt" / "labels_best.pt", weights_only=True)
    assert labels.dtype == torch.int64 and labels.tolist() == dataset.labels.tolist()
    assert torch.load(tmp_path / "mtt" / "syn_lr_best.pt", weights_only=True).tolist() == [0.02, 0.013]
    pixels, labels = torch.load(tmp_path / "data.pt", weights_only=True)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2] and pixels.dtype == torch.float32
    first, second = (dataset.images[(dataset.labels == 0) & (dataset.stages == stage)] for stage in (1, 2))
    torch.testing.assert_close(blobs.pixels.encode(pixels[:2]), torch.cat([first, second]))
    images, labels = torch.load(tmp_path / "res_DM.pt", weights_only=True)["data"][-1]
    assert torch.equal(images[:2], torch.cat([first, second])) and labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_image_files_lie_by_class_and_name_their_stage(tmp_path, dataset):
    FORMATS["folder"].save(tmp_path / "set", dataset)
    files = sorted(path.relative_to(tmp_path / "set").as_posix() for path in (tmp_path / "set").rglob("*.png"))
    assert len(files) == 6 and [name.split("/")[:2] for name in files[:2]] == [["train", "blue"]] * 2
    assert ["stage01_" in files[0], "stage02_" in files[1]] == [True, True]
    with Image.open(tmp_path / "set" / files[0]) as picture:
        assert (picture.mode, picture.size) == ("RGB", (8, 8))


def test_gray_images(tmp_path, blobs, even):
    digits = Digits()
    digits.setup()
    images = digits.pixels.encode(torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    dataset = DistilledDataset.of(replace(even, images=images), digits.pixels, digits.class_names, {}, stored=True)
    for name in ("folder", "parquet"):
        back = there_and_back(tmp_path, name, dataset, digits)
        assert back.images.shape == (6, 1, 8, 8) and set(back.labels.tolist()) == {0, 1, 2}


def test_image_files_of_any_other_name_are_one_stage(tmp_path, dataset, blobs):
    FORMATS["folder"].save(tmp_path / "set", dataset)
    for number, path in enumerate(sorted((tmp_path / "set").rglob("*.png"))):
        path.rename(path.with_name(f"{number}.png"))
    assert open_distilled(tmp_path / "set", blobs).num_stages == 1
    assert open_distilled(tmp_path / "set", blobs, ImportOptions(num_stages=2)).num_stages == 2


def test_a_folder_of_no_class_is_refused(tmp_path, dataset, blobs):
    FORMATS["folder"].save(tmp_path / "set", dataset)
    (tmp_path / "set" / "train" / "red").rename(tmp_path / "set" / "train" / "violet")
    with pytest.raises(DataError, match="folders that are no classes of Blobs: violet"):
        open_distilled(tmp_path / "set", blobs)


def test_class_names_with_slashes(tmp_path, even, blobs):
    real = type(blobs)()
    real.setup()
    real._class_names = ["top/shirt", "bag", "coat"]
    dataset = DistilledDataset.of(even, real.pixels, real.class_names, {}, stored=True)
    back = there_and_back(tmp_path, "folder", dataset, real)
    assert sorted(back.labels.tolist()) == [0, 0, 1, 1, 2, 2] and (tmp_path / "images/train/top_shirt").is_dir()


@pytest.mark.parametrize("name", writable_formats())
def test_what_is_there_is_replaced_only_when_asked_to(tmp_path, dataset, even, blobs, name):
    path = tmp_path / NAMES[name]
    FORMATS[name].save(path, dataset)
    first = DistilledDataset.of(even.stage(1).union(1), blobs.pixels, blobs.class_names, {}, stored=True)
    with pytest.raises(ConfigError, match="exists: choose another name, or replace it with --overwrite true"):
        FORMATS[name].save(path, first)
    assert len(open_distilled(path, blobs, ImportOptions(decode_factor=1))) == 6
    FORMATS[name].save(path, first, overwrite=True)
    assert len(open_distilled(path, blobs, ImportOptions(decode_factor=1))) == 3


def test_rates_of_a_former_set_do_not_stay(tmp_path, dataset, even, blobs):
    FORMATS["mtt"].save(tmp_path, dataset)
    without = replace(even, learning_rates=(None, None))
    FORMATS["mtt"].save(
        tmp_path, DistilledDataset.of(without, blobs.pixels, blobs.class_names, {}, True), overwrite=True
    )
    assert open_distilled(tmp_path, blobs, ImportOptions(num_stages=2)).learning_rates == (None, None)
    assert open_distilled(tmp_path, blobs).num_stages == 1


@pytest.mark.parametrize("name", ["mtt", "folder"])
@pytest.mark.parametrize("exchange", [True, False], ids=["in one step", "in two"])
def test_a_folder_is_replaced_as_a_whole(tmp_path, dataset, blobs, monkeypatch, name, exchange):
    """Killed at any step, the old set is there or the new one; other files in the folder stay."""
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    path, kind = tmp_path / "set", FORMATS[name]
    kind.save(path, dataset)
    (path / "notes.txt").write_text("mine")
    for step in range(100):
        killed = kill_at(step, monkeypatch, lambda: kind.save(path, dataset.union(1), overwrite=True))
        with suppress(DataError):  # between two renames, and until the next start
            assert len(open_distilled(path, blobs)) in (3, 6)
        kind.save(path, dataset, overwrite=True)
        assert len(open_distilled(path, blobs)) == 6
        assert not list(path.rglob(".*"))
        assert [entry.name for entry in tmp_path.iterdir()] == ["set"] and (path / "notes.txt").read_text() == "mine"
        if not killed:
            break
    assert step > 5


class Killed(BaseException):
    """In place of SIGKILL."""


def kill_at(step, monkeypatch, work):
    """Works until the file operation of that number; whether there was one. Nothing is cleaned up after it."""
    left = iter(range(step))

    def killing(operation):
        def or_killed(*args, **kwargs):
            if next(left, None) is None:
                raise Killed
            return operation(*args, **kwargs)

        return or_killed

    with monkeypatch.context() as patch:
        for owner, names in {Path: ("mkdir", "rename", "replace", "write_bytes"), os: ("fsync", "link")}.items():
            for name in names:
                patch.setattr(owner, name, killing(getattr(owner, name)))
        patch.setattr(endings, "_remove", lambda path: None)
        patch.setattr(shutil, "rmtree", killing(shutil.rmtree))
        with suppress(Killed):
            work()
            return False
    return True


def test_other_peoples_images_are_not_replaced(tmp_path, dataset):
    photo = tmp_path / "train" / "red" / "holiday.png"
    photo.parent.mkdir(parents=True)
    photo.touch()
    with pytest.raises(ConfigError, match=r"such as .*holiday\.png"):
        FORMATS["folder"].save(tmp_path, dataset, overwrite=True)
    assert photo.exists()


@pytest.mark.parametrize("name", writable_formats())
def test_a_file_is_no_folder_and_the_other_way_round(tmp_path, dataset, name):
    path = tmp_path / "target"
    path.touch() if FORMATS[name].is_folder else path.mkdir()
    with pytest.raises(ConfigError, match=r"target (is a|exists)"):
        FORMATS[name].save(path, dataset, overwrite=True)


def test_the_name_says_the_format_or_it_is_given():
    assert target_format("a.safetensors").name == "safetensors" and target_format("a.parquet").name == "parquet"
    assert target_format("a.parquet", "idc").name == "idc"
    for name in (None, "trajectories"):  # which can only be read
        with pytest.raises(ConfigError, match=r"a\.pt does not determine .* with --format"):
            target_format("a.pt", name)


def test_sets_of_this_package_need_no_data(tmp_path, even, blobs):
    path = save_distilled(tmp_path / "a.safetensors", even, blobs.pixels, blobs.class_names, {})
    assert open_distilled(path).synthetic.sha256() == even.sha256()
