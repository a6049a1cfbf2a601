import pytest
import torch

from pdd_lightning.data import DiscardSettings, ForgettingScores
from pdd_lightning.errors import ConfigError, DataError

SCORES = torch.tensor([0.0, 3.0, 1.0, float("inf"), 2.0, 0.0], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 1, 0, 1, 1])
FORGETTING = ForgettingScores(torch.arange(6), SCORES, SCORES, torch.zeros(6).double(), torch.ones(6).double())


def kept(stage, least=1, **settings):
    return DiscardSettings(**settings).kept(stage, FORGETTING, LABELS, least).tolist()


def test_examples_from_a_score_on_are_kept():
    assert kept(1, min_score=(0, 1, 2.5)) == [0, 1, 2, 3, 4, 5]
    assert kept(2, min_score=(0, 1, 2.5)) == [1, 2, 3, 4]
    assert kept(3, min_score=(0, 1, 1.5)) == [1, 3, 4]


def test_the_hardest_share_is_kept():
    assert kept(1, keep=(1.0, 0.5)) == [0, 1, 2, 3, 4, 5]
    assert kept(2, keep=(1.0, 0.5)) == [1, 3, 4]
    assert kept(1, keep=(0.66,)) == [1, 2, 3, 4]


def test_every_class_keeps_its_hardest():
    assert kept(1, keep=(0.01,)) == [3, 4]
    assert kept(1, keep=(0.01,), least=2) == [1, 2, 3, 4]
    assert kept(1, min_score=(100.0,), least=2) == [1, 2, 3, 4]


def test_ties_are_broken_by_errors():
    tied = ForgettingScores(
        *(torch.arange(4), *[torch.ones(4).double()] * 2), torch.tensor([1.0, 3, 2, 0]), torch.ones(4)
    )
    assert DiscardSettings(keep=(0.5,)).kept(1, tied, torch.zeros(4), 1).tolist() == [1, 2]


def test_stages_that_drop_nothing_are_known():
    assert [DiscardSettings(keep=(1.0, 0.5)).drops(stage) for stage in range(4)] == [False, False, True, False]
    assert [DiscardSettings(min_score=(0.0, 0.5)).drops(stage) for stage in range(4)] == [False, False, True, False]
    assert not DiscardSettings().drops(1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"keep": (1.0,), "min_score": (0.0,)}, "exclude each other"),
        ({"keep": (0.0,)}, r"in \(0, 1\]"),
        ({"keep": (1.5,)}, r"in \(0, 1\]"),
        ({"min_score": (-1.0,)}, "min_score must be >= 0"),
        ({"min_score": (float("inf"),)}, "min_score must be >= 0 and finite"),
        ({"min_per_class": 0}, "min_per_class must be >= 1"),
        ({"networks": 0}, "networks must be >= 1"),
        ({"epochs": 1}, "epochs must be >= 2"),
        ({"scores": "some.npz"}, "has no effect"),
    ],
)
def test_settings_that_cannot_work_are_refused(bad, message):
    with pytest.raises(ConfigError, match=message):
        DiscardSettings(**bad)


@pytest.mark.parametrize("name", ["keep", "min_score"])
def test_every_stage_needs_a_value(name):
    settings = DiscardSettings(**{name: (1.0, 1.0)})
    settings.check_stages(2)
    with pytest.raises(ConfigError, match=rf"discard\.{name} has 2 values, one per stage, but there are 3 stages"):
        settings.check_stages(3)
    DiscardSettings().check_stages(3)


def test_no_class_may_have_fewer_examples_than_every_stage_keeps(blobs):
    count = int(blobs.train.class_counts(3).min())
    DiscardSettings(keep=(0.5,)).check_classes(blobs, count)
    DiscardSettings(min_per_class=count + 1).check_classes(blobs, count + 1)  # nothing is left out
    for settings, images in (
        (DiscardSettings(keep=(0.5,), min_per_class=count + 1), 1),
        (DiscardSettings(keep=(0.5,)), count + 1),
    ):
        with pytest.raises(DataError, match=rf"class 'red' has {count} training images, fewer than the {count + 1}"):
            settings.check_classes(blobs, images)
