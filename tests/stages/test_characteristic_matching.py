import pytest
import torch

from pdd_lightning.augment import decode
from pdd_lightning.augment.multiformation import GREY
from pdd_lightning.errors import ConfigError
from pdd_lightning.networks import flatten, load_flat
from pdd_lightning.objectives import characteristic_distance
from pdd_lightning.randomness import generator_for
from pdd_lightning.stages import CharacteristicFunctionMatching
from pdd_lightning.stages.characteristic_matching import FrequencySampler
from tests.tiny import change, started

SETTINGS = {"ipc": 2, "factor": 2, "frequencies": 30, "epochs": 3, "real_batch": 5, "width": 4, "augment": "none"}


class Trajectories:
    """One expert, whose start and end differ."""

    number = 1

    def __init__(self, start, end):
        self.start, self.end = start, end

    def segment(self, expert, first, last):
        assert (expert, first, last) == (0, 0, 3)
        return self.start, self.end


@pytest.fixture
def make(blobs, factory, monkeypatch):
    def build(union=None, **changes):
        stage = CharacteristicFunctionMatching(factory, **{**SETTINGS, **changes})
        data = started(blobs, stage.factor)
        monkeypatch.setattr(CharacteristicFunctionMatching, "data", property(lambda self: data))
        torch.manual_seed(0)
        start, end = (flatten(dict(factory(3, 3, 8).named_parameters())).detach() for _ in range(2))
        change(data, union=data.union if union is None else union, trajectories=Trajectories(start, end))
        stage.setup("fit")
        stage.restart(generator_for(0, "images"))
        return stage

    return build


def test_the_loss_is_the_distance_of_real_and_union_at_learned_frequencies(make, factory, staged_blobs, monkeypatch):
    """By plain means, with images of an earlier stage, each of which stands for four."""
    used = []
    climb = FrequencySampler.climb
    monkeypatch.setattr(FrequencySampler, "climb", lambda *args: used.append(climb(*args)) or used[-1])
    union = staged_blobs.__class__(
        staged_blobs.images, staged_blobs.labels, staged_blobs.stages, staged_blobs.learning_rates, 2
    )
    stage = make(union)
    batch = stage.draw_batch(0, generator_for(0, "batch"))
    loss = stage.matching_loss(batch)

    network = factory(3, 3, 8)
    load_flat(network, batch.params)
    images = torch.cat([union.images, stage.images.detach()])
    labels = torch.cat([union.labels, stage.labels])
    whole, classes = decode(images, labels, 2, stage.data.real.pixels.level(GREY))
    real = [stage.data.class_sampler(stage.device).images[batch.real.of_class(c)] for c in range(3)]
    sides = [(network.features(whole[classes == c]), network.features(real[c])) for c in range(3)]
    length = torch.cat([target for _, target in sides]).norm(dim=1).mean()
    expected = [characteristic_distance(one / length, target / length, used[0]) for one, target in sides]
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-4, atol=1e-6)


def test_networks_lie_between_start_and_end(make):
    stage = make()
    start, end = stage.state.trajectories.segment(0, 0, 3)
    shares = []
    for number in range(20):
        params = stage.draw_batch(0, generator_for(0, "batch", number)).params
        shares.append(float(((params - start) / (end - start)).nanmean()))
        torch.testing.assert_close(params, start.lerp(end, shares[-1]), rtol=1e-3, atol=1e-4)
    assert min(shares) < 0.3 and max(shares) > 0.7 and min(shares) >= 0 and max(shares) <= 1


def test_steps_of_the_sampling_network_increase_the_distance():
    """Features differ in one entry alone: its frequencies become larger than those of the others."""
    torch.manual_seed(0)
    sampler = FrequencySampler(4, 8, 0.01, torch.device("cpu"))
    real = torch.zeros(10, 4)
    synthetic = real + torch.tensor([0.2, 0, 0, 0])
    found = [sampler.climb(lambda at: characteristic_distance(synthetic, real, at), 200) for _ in range(60)]
    distances = [float(characteristic_distance(synthetic, real, at)) for at in found]
    assert sum(distances[-10:]) > 1.5 * sum(distances[:10])
    sizes = found[-1].abs().mean(0)
    assert sizes[0] > 1.5 * sizes[1:].max()


def test_each_stage_begins_with_a_new_sampling_network(make):
    stage = make()
    for iteration in range(2):
        stage.matching_loss(stage.draw_batch(iteration, generator_for(0, "batch", iteration)))
    former = stage._sampler
    stage.restart(generator_for(0, "images", 2))
    stage.matching_loss(stage.draw_batch(0, generator_for(0, "batch")))
    assert stage._sampler is not former
    assert stage._sampler.optimizer.state_dict()["state"][0]["step"] == 1


def test_the_gradient_reaches_every_new_image_and_nothing_else(make, staged_blobs):
    stage = make()
    stage.matching_loss(stage.draw_batch(0, generator_for(0, "batch"))).backward()
    assert stage.images.grad.abs().amax(dim=(1, 2, 3)).gt(0).all()
    assert {name for name, _ in stage.named_parameters()} == {"images"}


@pytest.mark.parametrize(
    "bad",
    [
        {"frequencies": 0},
        {"epochs": 0},
        {"width": 0},
        {"alpha": -1.0},
        {"alpha": 0.0, "beta": 0.0},
        {"lr_sampler": 0.0},
    ],
)
def test_settings_that_cannot_work_are_refused(factory, bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        CharacteristicFunctionMatching(factory, **bad)
