import itertools
from functools import partial

import pytest
import torch

from pdd_lightning import distributed
from pdd_lightning.errors import ConfigError
from pdd_lightning.experts import ExpertSettings
from pdd_lightning.networks import ConvNet, flatten
from pdd_lightning.progression import StageAdvance
from pdd_lightning.randomness import generator_for
from pdd_lightning.stages import GradientMatching, gradient_matching
from pdd_lightning.stages.gradient_matching import published_loops
from pdd_lightning.training import TrainingSettings
from tests.tiny import Watched, change, image_set, started


class Theta:
    """One trained network, as the pool of a later stage."""

    number = 1

    def __init__(self, params):
        self.params = params

    def segment(self, expert, first, last):
        assert (expert, first, last) == (0, 0, 0)
        return self.params, self.params


class Held:
    """Stands for the trainer: holds the data."""

    def __init__(self, data):
        self.datamodule = data


@pytest.fixture
def make(blobs, monkeypatch):
    """Makes a stage that is set up, with initial images, after the finished stages of a union."""

    def build(union=None, norm="instance", network=None, **options):
        stage = GradientMatching(network or partial(ConvNet, depth=2, width=4, norm=norm), **options)
        data = started(blobs)
        if union is not None:
            change(data, union=union, trajectories=Theta(torch.linspace(-0.3, 0.3, parameter_count(stage))))
        monkeypatch.setattr(GradientMatching, "data", property(lambda self: data))
        stage.setup("fit")
        stage.restart(generator_for(0, "images"))
        return stage, data

    return build


def parameter_count(stage):
    return sum(parameter.numel() for parameter in stage.network(3, 3, 8).parameters())


def params_of(stage):
    return flatten(dict(stage._network[0].named_parameters())).detach().clone()


def step(stage, data, iteration):
    """The loss of one iteration; returns the batch and the network's parameters too."""
    change(data, iteration=iteration)
    batch = stage.draw_batch(iteration, generator_for(0, "batch", iteration))
    loss = stage.matching_loss(batch)
    return loss, batch, params_of(stage)


@pytest.mark.parametrize(
    ("ipc", "loops"),
    [(1, (1, 1)), (5, (1, 1)), (6, (10, 50)), (10, (10, 50)), (15, (20, 25)), (24, (20, 25)), (500, (50, 10))],
)
def test_loop_counts_are_those_of_the_nearest_published_ipc(ipc, loops):
    assert published_loops(ipc) == loops


def test_loop_counts_follow_the_union_unless_given():
    network = partial(ConvNet, depth=2, width=4)
    assert [GradientMatching(network, ipc=2).loops(stage)[0] for stage in range(1, 6)] == [1, 1, 10, 10, 10]
    assert GradientMatching(network, ipc=2, outer=7).loops(5) == (7, 50)
    assert GradientMatching(network, ipc=2, inner=3).loops(5) == (10, 3)


def test_a_network_lives_for_outer_steps_and_is_trained_between_them(make):
    stage, data = make(outer=3, inner=2, lr_net=0.1)
    states, due = [], []
    for iteration in range(6):
        _, batch, params = step(stage, data, iteration)
        states.append(params)
        due.append(batch.start is not None)
    assert due == [True, False, False] * 2
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(states))
    # The second network is another one, not the first trained further.
    assert (states[3] - states[2]).norm() > 5 * (states[2] - states[1]).norm()


def test_the_network_is_trained_on_the_images_as_they_are_then(make):
    results = []
    for shift in (0.0, 1.0):
        stage, data = make(outer=2, inner=2, lr_net=0.1)
        step(stage, data, 0)
        with torch.no_grad():
            stage.images.add_(shift)
        results.append(step(stage, data, 1)[2])
    assert not torch.equal(*results)


def test_the_network_is_trained_on_frozen_and_new_images_together(make, staged_blobs):
    stage, data = make(staged_blobs, network=Watched, outer=2, inner=3, augment="none")
    step(stage, data, 0)
    Watched.seen.clear()
    step(stage, data, 1)
    assert [len(batch) for batch in Watched.seen] == [12] * 3
    for batch in Watched.seen:
        assert image_set(batch) == image_set(staged_blobs.images) | image_set(stage.images)


def test_the_network_is_trained_by_plain_steps(make, monkeypatch):
    """As published: without momentum, weight decay or a schedule."""
    asked = []
    monkeypatch.setattr(gradient_matching, "train_network", lambda *words: asked.append(words[3]))
    stage, data = make(outer=3, inner=7, lr_net=0.2, batch_net=5)
    for iteration in range(3):
        step(stage, data, iteration)
    plain = {"momentum": 0.0, "weight_decay": 0.0, "milestones": ()}
    assert asked == [TrainingSettings(epochs=7, lr=0.2, batch_size=5, **plain)] * 2


def test_later_stages_start_from_trained_networks(make, staged_blobs):
    stage, data = make(staged_blobs, outer=2)
    assert torch.equal(step(stage, data, 0)[2], data.state.trajectories.params)
    assert not torch.equal(step(stage, data, 1)[2], data.state.trajectories.params)


def test_later_stages_need_trained_networks(make, staged_blobs):
    stage, data = make(staged_blobs)
    change(data, trajectories=None)
    with pytest.raises(ConfigError, match="stage 3 starts from trained networks"):
        step(stage, data, 0)


def test_the_global_generator_does_not_matter(make):
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        stage, data = make(outer=2, inner=1)
        losses.append([float(step(stage, data, iteration)[0].detach()) for iteration in range(2)])
    assert losses[0] == losses[1]


def test_batch_norms_take_their_statistics_from_real_images_of_all_classes(make, blobs):
    stage, data = make(norm="batch", real_batch=4)
    _, batch, _ = step(stage, data, 0)
    norm = stage._network[0].features[1]
    assert not stage._network[0].training
    positions = torch.cat([batch.real.of_class(label) for label in range(3)])
    assert len(positions) == 12
    maps = stage._network[0].features[0](stage.data.class_sampler(stage.device).images[positions])
    torch.testing.assert_close(norm.running_mean, maps.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(norm.running_var, maps.transpose(0, 1).flatten(1).var(dim=1))


def test_both_sides_of_a_class_share_one_draw(make, monkeypatch):
    stage, _ = make(augment="crop")
    stage.outer = 1
    seen = []
    draw_batch = stage.draw_batch(0, generator_for(0, "batch"))
    apply = stage.augment.__class__.__call__
    monkeypatch.setattr(stage.augment.__class__, "__call__", lambda self, x, d: seen.append(d) or apply(self, x, d))
    stage.matching_loss(draw_batch)
    assert len(draw_batch.draws) == 3
    for label, draw in enumerate(draw_batch.draws):
        assert all(parameter.shape == (1,) for parameter in draw.parameters)
        assert all(used is draw for used in seen[3 * label : 3 * label + 3])


def test_checkpoints_hold_one_network_per_process(make, monkeypatch):
    stage, data = make(outer=3, inner=1)
    _, _, params = step(stage, data, 0)
    checkpoint = {"state_dict": {"images": stage.images}}
    stage.on_save_checkpoint(checkpoint)
    (stored,) = checkpoint["matching_networks"]
    assert torch.equal(stored, params)
    checkpoint["matching_networks"] = [params + 1, params]
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    fresh, _ = make(outer=3, inner=1)
    fresh.on_load_checkpoint(checkpoint)
    fresh.on_save_checkpoint(checkpoint)  # before any iteration
    assert torch.equal(checkpoint["matching_networks"][0], params)
    expected = step(stage, data, 1)[2]
    with torch.no_grad():
        fresh.images.copy_(stage.images)
    assert torch.equal(step(fresh, data, 1)[2], expected)


@pytest.mark.parametrize(
    "bad",
    [
        {"outer": 0},
        {"inner": 0},
        {"real_batch": 0},
        {"batch_net": 0},
        {"lr_net": 0.0},
        {"metric": "l"},
    ],
)
def test_settings_that_cannot_work_are_refused(bad, factory):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        GradientMatching(factory, **bad)


def test_stage_advance_records_nothing_before_the_first_stage_and_says_so(make):
    stage, _ = make()
    trainer = type("T", (), {"fast_dev_run": True, "precision": "32-true"})()
    for useless in ({"epochs": 3}, {"folder": "x"}):
        with pytest.raises(ConfigError, match="GradientMatching follows no trajectories"):
            StageAdvance(experts=ExpertSettings(number=1, **useless)).setup(trainer, stage, "fit")
