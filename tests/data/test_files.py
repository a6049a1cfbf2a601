import json
import os
import stat

import pytest
import torch

from pdd_lightning import files
from pdd_lightning.files import atomic_write_bytes, atomic_write_json, sha256_of_tensors


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new folder" / "result.bin"
    atomic_write_bytes(path, b"old")
    assert atomic_write_bytes(str(path), b"new") == path
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_a_crash_while_writing_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "result.bin"
    atomic_write_bytes(path, b"old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX systems")
def test_a_written_file_has_the_permissions_of_any_other_file(tmp_path):
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    written = atomic_write_bytes(tmp_path / "written", b"")
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_json_is_readable_by_others(tmp_path):
    content = {"class": "étoile", "accuracy": [0.5, None]}
    path = atomic_write_json(tmp_path / "report.json", content)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert "étoile" in text and text.endswith("\n")


def test_json_that_cannot_be_written_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        atomic_write_json(tmp_path / "report.json", {"image": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_the_hash_depends_on_content_alone():
    matrix = torch.arange(6.0).view(2, 3)
    same = {"b": torch.ones(2), "a": matrix.T.contiguous().T}
    assert sha256_of_tensors({"a": matrix, "b": torch.ones(2)}) == sha256_of_tensors(same)


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1, 2, 4])},
        {"b": torch.tensor([1, 2, 3])},
        {"a": torch.tensor([[1, 2, 3]])},
        {"a": torch.tensor([1, 2, 3], dtype=torch.int32)},
        {"a": torch.tensor([1, 2, 3]), "b": torch.zeros(0)},
    ],
    ids=["value", "name", "shape", "dtype", "further tensor"],
)
def test_any_difference_changes_the_hash(other):
    assert sha256_of_tensors({"a": torch.tensor([1, 2, 3])}) != sha256_of_tensors(other)


def test_equal_bytes_of_another_type_are_another_content():
    integers, floats = torch.zeros(2, dtype=torch.int32), torch.zeros(2)
    assert sha256_of_tensors({"a": integers}) != sha256_of_tensors({"a": floats})


def test_text_counts_in_the_hash():
    tensors = {"scalar": torch.tensor(1.0), "half": torch.ones(2, dtype=torch.bfloat16)}
    hashes = {sha256_of_tensors(tensors, text) for text in (None, {"x": "1"}, {"x": "2"}, {"y": "1"})}
    assert len(hashes) == 4


def test_a_file_that_another_process_takes_for_a_leftover_is_written_again(tmp_path, monkeypatch):
    """Between its creation and the moment when it is held."""
    hold, taken = files._lock_temporary, []

    def late(descriptor):
        if not taken:
            taken.extend(tmp_path.glob(".*.tmp"))
            files._remove_leftover(taken[0])
        return hold(descriptor)

    monkeypatch.setattr(files, "_lock_temporary", late)
    files.atomic_write_bytes(tmp_path / "a.json", b"content")
    assert len(taken) == 1 and not taken[0].exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == b"content"
