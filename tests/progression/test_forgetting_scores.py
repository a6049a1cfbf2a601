import torch

from pdd_lightning.experts import TrajectoryStore
from pdd_lightning.metrics import Forgetting
from pdd_lightning.progression.examples import forgetting_scores

RECORD = {"accuracies": [], "start_accuracy": 0.3, "end_accuracy": 0.6, "start_seconds": 0.0, "record_seconds": 2.5}


def write(store, expert, forgetting, epochs=7):
    store.write(expert, torch.zeros(epochs + 1, 2), forgetting, losses=[1.0] * epochs, **RECORD)


def forgetting(counts, learned, errors):
    columns = (torch.tensor(counts, dtype=torch.int32), torch.tensor(learned))
    return Forgetting(*columns, torch.zeros(len(counts), dtype=torch.int32), torch.tensor(errors, dtype=torch.int32))


def test_scores_are_means_over_experts(tmp_path):
    """Seven epochs: an example can be forgotten three times; the third expert never learned example 1, nobody 2."""
    store = TrajectoryStore(tmp_path, 3, {})
    write(store, 0, forgetting([0, 2, 0], [True, True, False], [1, 4, 7]))
    write(store, 1, forgetting([1, 1, 0], [True, True, False], [2, 5, 7]))
    write(store, 2, forgetting([2, 0, 0], [True, False, False], [3, 6, 7]))
    store.missing()
    scores = forgetting_scores(store, torch.tensor([5, 0, 8]))
    assert scores is not None
    assert scores.indices.tolist() == [5, 0, 8]
    assert scores.scores.tolist() == [1.0, 2.0, float("inf")]
    assert scores.counts.tolist() == [1.0, 1.0, 0.0]
    assert scores.errors.tolist() == [2.0, 5.0, 7.0]
    torch.testing.assert_close(scores.learned, torch.tensor([1, 2 / 3, 0], dtype=torch.float64))


def test_experts_of_earlier_versions_have_no_scores(tmp_path):
    store = TrajectoryStore(tmp_path, 2, {})
    write(store, 0, forgetting([0], [True], [1]))
    write(store, 1, None)
    store.missing()
    assert store.forgetting(0) is not None and store.forgetting(1) is None
    assert forgetting_scores(store, torch.tensor([0])) is None
    assert store.segment(1, 0, 1)[0].shape == (2,)
