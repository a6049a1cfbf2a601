"""Files that cannot be used: hostile, damaged, or of something else."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from pdd_lightning.data.formats import ImportOptions, open_distilled
from pdd_lightning.errors import ConfigError, DamagedFileError, DataError, PDDError


class Hostile:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["alone", "in DC's format", "in MTT's labels"])
def test_code_in_a_file_does_not_run(tmp_path, blobs, zipped, place):
    trace = tmp_path / "it_ran"
    folder = tmp_path / "set"
    folder.mkdir()
    hostile = Hostile(trace)
    images = torch.zeros(3, 3, 8, 8)
    content = {"alone": hostile, "in DC's format": {"data": [[images, hostile]]}, "in MTT's labels": images}[place]
    torch.save(content, folder / "images_best.pt", _use_new_zipfile_serialization=zipped)
    torch.save(hostile, folder / "labels_best.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match=r"_best\.pt is refused: it holds \w+\.mkdir, .* could run code") as caught:
        open_distilled(folder / "images_best.pt", blobs)
    assert "weights_only" not in str(caught.value)
    assert not trace.exists()
    torch.load(folder / "labels_best.pt", weights_only=False)
    assert trace.exists(), "the file would have run code: otherwise nothing is shown"


def test_a_bare_pickle_does_not_run(tmp_path, blobs):
    trace = tmp_path / "it_ran"
    (tmp_path / "data.pt").write_bytes(pickle.dumps(Hostile(trace)))
    with pytest.raises(PDDError, match=r"data\.pt"):
        open_distilled(tmp_path / "data.pt", blobs)
    assert not trace.exists()


def write(tmp_path, name, images, labels):
    if name == "mtt":
        torch.save(images, tmp_path / "images_best.pt")
        torch.save(labels, tmp_path / "labels_best.pt")
        return tmp_path / "images_best.pt"
    path = tmp_path / "file.pt"
    torch.save([images, labels] if name == "idc" else {"data": [[images, labels]]}, path)
    return path


GOOD, LABELS = torch.full((3, 3, 8, 8), 0.5), torch.arange(3)


@pytest.mark.parametrize("name", ["mtt", "idc", "dc"])
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (GOOD.double(), LABELS, r"images: expected \[N, C, H, W\] float32, got \[3, 3, 8, 8\] torch\.float64"),
        (GOOD[0], LABELS, r"images: expected .* got \[3, 8, 8\]"),
        (GOOD[:0], LABELS[:0], "holds no images"),
        (GOOD[:1, :1, :1, :1].expand(10**4, 10**3, 10**3, 10**3), LABELS, "more numbers than the file holds"),
        (GOOD, LABELS[:1].expand(10**13), "more numbers than the file holds"),
        (GOOD * float("nan"), LABELS, "infinite or not a number"),
        (GOOD, LABELS[:2], r"labels must be \[3\] integers .* got \[2\] torch\.int64"),
        (GOOD, LABELS.float(), r"labels: expected .* got \[3\] torch\.float32"),
        (GOOD, LABELS > 0, r"labels: expected .* got \[3\] torch\.bool"),
        (GOOD, LABELS + 1, "labels are between 1 and 3, but the data has 3 classes"),
        (GOOD, LABELS - 1, "labels are between -1 and 1"),
        (GOOD, torch.zeros(3, 4), r"labels must be \[3\] integers or \[3, 3\] float32 .* got \[3, 4\]"),
        (GOOD, torch.eye(3) * 2, "soft labels are not probabilities"),
        (GOOD, torch.tensor([[1.5, -0.5, 0]]).repeat(3, 1), "soft labels are not probabilities"),
        (GOOD, torch.eye(3) * float("nan"), "labels: numbers are infinite or not a number"),
        (GOOD, [0, 1, 2], "labels: Input should be an instance of Tensor"),
        (GOOD.to("meta"), LABELS, "images: expected .* torch.float32 .*on meta"),
        (GOOD, LABELS.to("meta"), "labels: expected .* torch.int64 .*on meta"),
        pytest.param(
            *(GOOD, torch.eye(3).to_sparse(), "labels: expected .* torch.float32 torch.sparse_coo"),
            marks=pytest.mark.filterwarnings("ignore:Validating sparse"),  # of torch
        ),
    ],
)
def test_images_and_labels_that_form_no_set(tmp_path, blobs, name, images, labels, message):
    with pytest.raises(PDDError, match=message):
        open_distilled(write(tmp_path, name, images, labels), blobs, ImportOptions(decode_factor=1))


def test_idc_images_outside_the_unit_range(tmp_path, blobs):
    with pytest.raises(DataError, match=r"pixels are between 0\.5 and 1\.5"):
        open_distilled(write(tmp_path, "idc", GOOD + torch.eye(8), LABELS), blobs, ImportOptions(decode_factor=1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "no distilled set of a known format"),
        ([1, 2, 3], "no distilled set of a known format"),
        ({"data": []}, "'data' should be a list of"),
        ([[[torch.zeros(2)], [torch.zeros(2)]]], "expert trajectories, not a distilled set"),
        (torch.zeros(3), r"not called images_"),
    ],
)
def test_tensors_of_something_else(tmp_path, blobs, content, message):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(DataError, match=message):
        open_distilled(tmp_path / "other.pt", blobs)


def test_mtt_images_without_labels(tmp_path, blobs):
    torch.save(GOOD, tmp_path / "images_best.pt")
    with pytest.raises(DataError, match=r"lacks its labels: expected them in .*labels_best\.pt"):
        open_distilled(tmp_path, blobs)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file(tmp_path, blobs, zipped):
    path = tmp_path / "data.pt"
    torch.save([GOOD, LABELS], path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for length in (0, 1, 7, 60, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises((DamagedFileError, DataError), match=r"data\.pt") as caught:
            open_distilled(path, blobs, ImportOptions(decode_factor=1))
        assert "weights_only" not in str(caught.value)


def test_an_archive_of_something_else(tmp_path, blobs):
    with zipfile.ZipFile(tmp_path / "set.bin", "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(DamagedFileError, match=r"set\.bin is damaged: it is no file of tensors"):
        open_distilled(tmp_path / "set.bin", blobs)


@pytest.mark.parametrize("name", ["notes.txt", "none.pt", "none.safetensors", "."])
def test_what_is_not_there_or_no_set_at_all(tmp_path, blobs, name):
    (tmp_path / "notes.txt").write_text("some text that is no set")
    with pytest.raises(DataError, match=r"known format|cannot read"):
        open_distilled(tmp_path / name, blobs)


def test_files_that_do_not_say_their_space_need_the_data(tmp_path):
    with pytest.raises(ConfigError, match=r"neither its pixel space nor its classes: name its data with --data"):
        open_distilled(write(tmp_path, "mtt", GOOD, LABELS))
