from dataclasses import asdict

import pytest

from pdd_lightning.augment import DSA
from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation import EvaluationSettings, Subject
from pdd_lightning.evaluation.plan import PROTOCOLS, plan_rows, protocol_phases, stage_steps
from pdd_lightning.training import TrainingSettings

TRAINING = TrainingSettings(epochs=6, lr=0.05, momentum=0.5, weight_decay=0.01, batch_size=4)


def phases(protocol, counts, rates=None, training=TRAINING, steps=None):
    rates = [None] * len(counts) if rates is None else rates
    return protocol_phases(protocol, counts, rates, training, steps or stage_steps(counts, training))


@pytest.mark.parametrize("counts", [(4, 4, 4), (2, 2, 2), (5, 5, 5), (8, 4), (3, 5), (6,), (20,) * 5, (1000,) * 5])
def test_all_protocols_take_the_same_number_of_steps(counts):
    steps = {protocol: sum(phase.steps for phase in phases(protocol, counts)) for protocol in PROTOCOLS}
    assert steps["progressive"] == sum(6 * -(-sum(counts[: stage + 1]) // 4) for stage in range(len(counts)))
    assert set(steps.values()) == {steps["progressive"]}


def test_steps_that_are_no_whole_epochs_begin_another_epoch():
    """Three stages of 5 at batches of 4 and 5 epochs: 10 + 15 + 20 steps."""
    training = TrainingSettings(epochs=5, batch_size=4)
    (union,) = phases("union", (5, 5, 5), training=training)
    assert (union.steps, union.training.epochs) == (45, 12)  # 4 steps an epoch
    sequential = phases("sequential", (5, 5, 5), training=training)
    assert [(phase.steps, phase.training.epochs) for phase in sequential] == [(10, 5), (15, 8), (20, 10)]


def test_a_set_of_fewer_images_takes_the_steps_it_is_given():
    """Nine images beside 36: as many steps, in more epochs."""
    steps = stage_steps((12, 24), TRAINING)
    assert steps == [18, 54]
    few = phases("progressive", (3, 6), steps=steps)
    assert [(phase.steps, phase.training.epochs) for phase in few] == [(18, 18), (54, 18)]


@pytest.mark.parametrize(
    ("protocol", "stages"),
    [("progressive", [(1, 1), (1, 2), (1, 3)]), ("sequential", [(1, 1), (2, 2), (3, 3)]), ("union", [(1, 3)])],
)
def test_a_protocol_says_which_stages_are_trained_on_in_turn(protocol, stages):
    assert [phase.stages for phase in phases(protocol, (4, 2, 2))] == stages


@pytest.mark.parametrize(
    ("protocol", "learned", "expected"),
    [
        ("progressive", (0.3, 0.2, 0.1), [0.3, 0.2, 0.1]),
        ("sequential", (0.3, 0.2, 0.1), [0.3, 0.2, 0.1]),
        ("union", (0.3, 0.2, 0.1), [0.1]),
        ("progressive", (None, None), [0.05, 0.05]),
        ("progressive", (0.3, None), [0.3, 0.05]),
    ],
)
def test_each_phase_uses_the_rate_of_its_last_stage_or_else_the_given_one(protocol, learned, expected):
    assert [phase.training.lr for phase in phases(protocol, (2,) * len(learned), learned)] == expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_else_is_as_given(protocol):
    for phase in phases(protocol, (2, 2), (0.3, None)):
        kept = (phase.training.momentum, phase.training.weight_decay, phase.training.batch_size)
        assert kept == (0.5, 0.01, 4)
        assert phase.training.milestones == TRAINING.milestones


@pytest.mark.parametrize(
    ("baselines", "epochs", "rows"),
    [
        (("random",), 0, ["distilled", "random real"]),
        ((), 2, ["distilled", "full real"]),
        ((), 0, ["distilled"]),
        (("kmeans", "herding"), 2, ["distilled", "k-means centres", "herding", "full real"]),
    ],
)
def test_rows_are_those_that_are_asked_for(blobs, staged_blobs, factory, baselines, epochs, rows):
    subject = Subject(staged_blobs, blobs, blobs.pixels, factory, DSA("none"))
    settings = EvaluationSettings(num_networks=1, full_data_epochs=epochs, baselines=baselines)
    assert [row.row for row in plan_rows(subject, settings)] == rows


def test_no_more_experts_are_asked_for_than_networks(blobs, staged_blobs, factory):
    subject = Subject(staged_blobs, blobs, blobs.pixels, factory, DSA("none"))
    settings = EvaluationSettings(num_networks=2, expert_inits=True, full_data_epochs=3, batch_size=16)
    rows = plan_rows(subject, settings, experts=[4, 5, 6])
    assert [row.inits for row in rows] == [(None, None), (4, 5), (None,) * 10, (None, None)]
    full = rows[-1].about()
    assert full["phases"] == [{"stages": [1, 1], "steps": 3 * 4, "epochs": 3, "lr": 0.01}]
    assert (full["images"], full["init"], rows[1].about()["init"]) == ([54], "fresh", "expert")


@pytest.mark.parametrize(
    "bad",
    [
        {"num_networks": 0},
        {"epochs": 0},
        {"full_data_epochs": -1},
        {"protocols": ()},
        {"protocols": ("all",)},
        {"protocols": ("union", "union")},
        {"baselines": ("nearest",)},
        {"baselines": ("herding",), "full_data_epochs": 0},
        {"augment": "colour"},
        {"lr": -1.0},
        {"batch_size": 0},
        {"momentum": 2.0},
        {"milestones": (0.5, 2.0)},
        {"gamma": -0.1},
        {"cutmix": 1.1},
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(bad):
    with pytest.raises(ConfigError, match=r"unknown operation" if "augment" in bad else next(iter(bad))):
        EvaluationSettings(**bad)


def test_schedule_and_mixing_are_those_of_the_settings():
    settings = EvaluationSettings(epochs=60, milestones=(2 / 3, 5 / 6), gamma=0.2, batch_size=64, cutmix=0.5)
    expected = {"epochs": 60, "milestones": (2 / 3, 5 / 6), "gamma": 0.2, "batch_size": 64, "cutmix": 0.5}
    assert expected.items() <= asdict(settings.training).items()
