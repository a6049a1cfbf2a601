from itertools import chain

import pytest
import torch
from torch import nn

from pdd_lightning.augment import DSA
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation import PROTOCOLS, protocol_phases
from pdd_lightning.training import TrainingSettings, train_network

TRAINING = TrainingSettings(epochs=6, lr=0.05, momentum=0.5, weight_decay=0.01, batch_size=4)


def staged(sizes, rates):
    """Images of one pixel whose value is their stage."""
    synthetic = SyntheticSet.empty((1, 1, 1))
    for stage, (size, rate) in enumerate(zip(sizes, rates, strict=True), 1):
        synthetic = synthetic.append(torch.full((size, 1, 1, 1), float(stage)), torch.arange(size) % 2, rate)
    return synthetic


class Counting(nn.Linear):
    """A network that notes each batch it sees."""

    def __init__(self):
        super().__init__(1, 2)
        self.batches = []

    def forward(self, images):
        self.batches.append(images.flatten().tolist())
        return super().forward(images.flatten(1))


def flat(batches):
    return list(chain.from_iterable(batches))


def batches(synthetic, protocol, training=TRAINING):
    """What a network sees phase by phase."""
    seen = []
    for phase in protocol_phases(synthetic, protocol, training):
        network = Counting()
        train_network(network, phase.images.images, phase.images.labels, phase.training, DSA("none"), torch.Generator())
        seen.append(network.batches)
    return seen


@pytest.mark.parametrize("sizes", [(4, 4, 4), (2, 2, 2), (8, 4), (3, 5), (6,)])
def test_all_protocols_take_the_same_number_of_steps(sizes):
    synthetic = staged(sizes, [None] * len(sizes))
    steps = {protocol: sum(len(phase) for phase in batches(synthetic, protocol)) for protocol in PROTOCOLS}
    assert steps["progressive"] == sum(6 * -(-sum(sizes[: stage + 1]) // 4) for stage in range(len(sizes)))
    assert set(steps.values()) == {steps["progressive"]}


@pytest.mark.parametrize("size", [20, 100, 200, 400, 1000, 2000])
def test_steps_are_equal_for_the_sets_of_the_paper(size):
    """Five stages of 2 or 10 images for each of 10, 100 or 200 classes, 500 epochs."""
    synthetic, training = staged([size] * 5, [None] * 5), TrainingSettings(epochs=500)
    phases = [protocol_phases(synthetic, protocol, training) for protocol in PROTOCOLS]
    assert len({sum(phase.training.steps(len(phase.images)) for phase in each) for each in phases}) == 1


@pytest.mark.parametrize("protocol", ["union", "sequential"])
def test_steps_that_are_no_whole_epochs_are_rounded_up(protocol):
    """Three stages of 5 at batches of 4: 2 + 3 + 4 steps an epoch; 5 epochs are 45 steps."""
    synthetic, training = staged((5, 5, 5), (None,) * 3), TrainingSettings(epochs=5, batch_size=4)
    steps = sum(len(phase) for phase in batches(synthetic, protocol, training))
    assert steps == {"union": 48, "sequential": 10 + 16 + 20}[protocol]


def test_progressive_training_sees_the_unions_in_turn():
    seen = batches(staged((2, 2, 2), (None,) * 3), "progressive")
    stages = [set(flat(phase)) for phase in seen]
    assert stages == [{1.0}, {1.0, 2.0}, {1.0, 2.0, 3.0}]
    assert [len(flat(phase)) for phase in seen] == [6 * 2, 6 * 4, 6 * 6]


def test_sequential_training_sees_each_stage_alone_and_the_union_all_at_once():
    synthetic = staged((4, 2, 2), (None,) * 3)
    assert [set(flat(phase)) for phase in batches(synthetic, "sequential")] == [{1.0}, {2.0}, {3.0}]
    (union,) = batches(synthetic, "union")
    assert sorted(flat(union[:2])) == [1, 1, 1, 1, 2, 2, 3, 3]


def rates(synthetic, protocol):
    return [phase.training.lr for phase in protocol_phases(synthetic, protocol, TRAINING)]


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [("progressive", [0.3, 0.2, 0.1]), ("sequential", [0.3, 0.2, 0.1]), ("union", [0.1])],
)
def test_each_phase_uses_the_rate_learned_last(protocol, expected):
    assert rates(staged((2, 2, 2), (0.3, 0.2, 0.1)), protocol) == expected


def test_the_given_rate_is_used_where_none_was_learned():
    assert rates(staged((2, 2), (None, None)), "progressive") == [0.05, 0.05]
    assert rates(staged((2, 2), (0.3, None)), "progressive") == [0.3, 0.05]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_else_is_as_given(protocol):
    for phase in protocol_phases(staged((2, 2), (0.3, None)), protocol, TRAINING):
        kept = (phase.training.momentum, phase.training.weight_decay, phase.training.batch_size)
        assert kept == (0.5, 0.01, 4)
        assert phase.training.milestones == TRAINING.milestones


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ConfigError, match="'progresive': choose one of progressive, union, sequential"):
        protocol_phases(staged((2,), (None,)), "progresive", TRAINING)
