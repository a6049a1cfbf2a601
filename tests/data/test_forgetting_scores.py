import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pdd_lightning.data import ForgettingScores
from pdd_lightning.errors import DataError, PDDError

INF = float("inf")


def scores(values, indices=None, errors=None):
    values = torch.tensor(values, dtype=torch.float64)
    indices = torch.arange(len(values)) if indices is None else torch.tensor(indices)
    errors = torch.zeros_like(values) if errors is None else torch.tensor(errors, dtype=torch.float64)
    return ForgettingScores(indices, values, values, errors, values.isfinite().double())


def test_hardest_come_first_and_errors_decide_between_equals():
    ranking = scores([1, 3, INF, 1, 1, INF], errors=[5, 0, 2, 7, 5, 3]).ranking()
    assert ranking.tolist() == [5, 2, 1, 3, 0, 4]


def test_scores_are_found_by_index_in_the_source():
    found = scores([1, 2, 3, 4], indices=[7, 0, 9, 4]).of(torch.tensor([9, 7, 4]))
    assert found.indices.tolist() == [9, 7, 4] and found.scores.tolist() == [3, 1, 4]


@pytest.mark.parametrize("missing", [5, 100])
def test_examples_without_a_score_are_counted(missing):
    with pytest.raises(DataError, match="1 of 2 training examples have no forgetting score"):
        scores([1, 2], indices=[0, 9]).of(torch.tensor([missing, 9]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"values": [1, -1]}, "must be >= 0"),
        ({"values": [1, float("nan")]}, "must be >= 0"),
        ({"values": [1, 2], "indices": [3, 3]}, "twice"),
        ({"values": [1, 2], "indices": [3]}, "one value per example"),
        ({"values": []}, "one value per example"),
    ],
)
def test_scores_that_make_no_sense_are_refused(bad, message):
    with pytest.raises(DataError, match=message):
        scores(**bad)


def test_what_was_saved_is_read_back(tmp_path):
    saved = scores([1.5, INF, 0], indices=[4, 2, 8], errors=[1, 2, 0.5])
    saved.save(tmp_path / "scores.npz")
    read = ForgettingScores.load(tmp_path / "scores.npz")
    assert read.sha256() == saved.sha256()
    assert all(torch.equal(column, saved.tensors()[name]) for name, column in read.tensors().items())


ORIGINAL = {"indices": np.array([3, 0, 2]), "forgetting counts": np.array([0.0, 2.0, 9.0])}


def check_original(read):
    assert read.indices.tolist() == [3, 0, 2] and read.scores.tolist() == [0, 2, 9]
    assert read.indices.dtype == torch.int64 and read.scores.dtype == torch.float64


def test_the_original_form_is_read_as_npz(tmp_path):
    np.savez(tmp_path / "scores.npz", **ORIGINAL)
    check_original(ForgettingScores.load(tmp_path / "scores.npz"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("form", ["arrays", "lists", "numbers of numpy"])
def test_the_original_form_is_read_as_pickle(form, protocol, tmp_path):
    content = {
        "arrays": ORIGINAL,
        "lists": {name: column.tolist() for name, column in ORIGINAL.items()},
        "numbers of numpy": {name: list(column) for name, column in ORIGINAL.items()},
    }[form]
    (tmp_path / "scores.pkl").write_bytes(pickle.dumps(content, protocol))
    check_original(ForgettingScores.load(tmp_path / "scores.pkl"))


def test_pickles_of_older_and_newer_versions_of_numpy_are_read(tmp_path):
    data = pickle.dumps(ORIGINAL, 2)
    older = data.replace(b"numpy._core", b"numpy.core")
    for content in (older, older.replace(b"numpy.core", b"numpy._core")):
        (tmp_path / "scores.pkl").write_bytes(content)
        check_original(ForgettingScores.load(tmp_path / "scores.pkl"))


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["instead", "inside", "in an array"])
def test_a_hostile_pickle_is_refused_and_runs_nothing(place, tmp_path):
    hostile = Hostile(tmp_path / "ran")
    content = {
        "instead": hostile,
        "inside": {**ORIGINAL, "more": hostile},
        "in an array": {**ORIGINAL, "indices": np.array([hostile], dtype=object)},
    }[place]
    path = tmp_path / "scores.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="which has no place in numpy arrays"):
        ForgettingScores.load(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "ran").exists(), "the pickle was not hostile"


def test_an_npz_with_pickled_objects_is_refused(tmp_path):
    hostile = np.array([Hostile(tmp_path / "ran")], dtype=object)
    np.savez(tmp_path / "scores.npz", **{**ORIGINAL, "indices": hostile})
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        ForgettingScores.load(tmp_path / "scores.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([1, 2]), "holds no dictionary"),
        (pickle.dumps({}), "holds nothing, but"),
        (pickle.dumps({"indices": [0], "counts": [1]}), "holds 'indices', 'counts', but forgetting scores are"),
        (pickle.dumps({"indices": [0], "scores": [1]}), "holds 'indices', 'scores', but"),
        (pickle.dumps({"indices": ["a"], "forgetting counts": [1]}), "indices: invalid literal"),
        (pickle.dumps({"indices": [[0]], "forgetting counts": [[1]]}), "one value per example"),
        (pickle.dumps(ORIGINAL)[:-20], "was not read as forgetting scores"),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    (tmp_path / "scores.pkl").write_bytes(content)
    with pytest.raises(PDDError, match=message):
        ForgettingScores.load(tmp_path / "scores.pkl")


def test_a_missing_or_truncated_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"correct stages\.discard\.scores"):
        ForgettingScores.load(tmp_path / "scores.npz")
    scores([1, 2]).save(tmp_path / "scores.npz")
    data = bytearray((tmp_path / "scores.npz").read_bytes())
    data[60:90] = bytes(30)
    (tmp_path / "scores.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        ForgettingScores.load(tmp_path / "scores.npz")
