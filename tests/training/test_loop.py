import copy
import math
from itertools import chain

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pdd_lightning.augment import DSA
from pdd_lightning.data.splits import EncodedImages
from pdd_lightning.errors import ConfigError
from pdd_lightning.training import EpochRecord, TrainingSettings, train_network

PLAIN = DSA("none")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def toy():
    """Ten images of three classes and a linear network, all in float64."""
    images = torch.randn(10, 1, 4, 4, dtype=torch.float64, generator=generator(1))
    labels = torch.randint(3, (10,), generator=generator(2))
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double(), images, labels


class Seen:
    """Images that remember which of them were asked for."""

    def __init__(self, images):
        self.images = images
        self.batches = []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, indices):
        self.batches.append(indices.tolist())
        return self.images[indices]


def parameters(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_the_rate_drops_after_each_milestone():
    settings = TrainingSettings(epochs=9, lr=1.0, milestones=(2 / 3, 5 / 6), gamma=0.1)
    assert [settings.lr_at(epoch) for epoch in range(9)] == pytest.approx([1] * 6 + [0.1] * 2 + [0.01])
    assert [TrainingSettings(epochs=4, lr=2.0).lr_at(epoch) for epoch in range(4)] == pytest.approx([2, 2, 0.2, 0.2])
    assert TrainingSettings(epochs=1, lr=2.0).lr_at(0) == 2
    assert {TrainingSettings(epochs=5, lr=2.0, milestones=()).lr_at(epoch) for epoch in range(5)} == {2.0}


@pytest.mark.parametrize(("max_steps", "batches"), [(5, [4, 4, 2, 4, 4]), (6, [4, 4, 2] * 2), (99, [4, 4, 2] * 3)])
def test_training_can_end_within_an_epoch(toy, max_steps, batches):
    network, images, labels = toy
    seen, epochs = Seen(images), []
    settings = TrainingSettings(epochs=3, batch_size=4)
    on_epoch = lambda epoch, _: epochs.append(epoch)  # noqa: E731
    train_network(network, seen, labels, settings, PLAIN, generator(), on_epoch, max_steps)
    assert [len(batch) for batch in seen.batches] == batches
    assert epochs == list(range(1, -(-len(batches) // 3) + 1))


@pytest.mark.parametrize(("count", "steps"), [(1, 3), (16, 3), (17, 6), (32, 6), (33, 9)])
def test_steps_are_the_batches_of_all_epochs(toy, count, steps):
    settings = TrainingSettings(epochs=3, batch_size=16)
    images = Seen(torch.randn(count, 1, 4, 4, dtype=torch.float64))
    train_network(toy[0], images, torch.zeros(count, dtype=torch.int64), settings, PLAIN, generator())
    assert settings.steps(count) == len(images.batches) == steps


def test_every_epoch_shows_every_image_once_in_a_new_order(toy):
    network, images, labels = toy
    seen = Seen(images)
    train_network(network, seen, labels, TrainingSettings(epochs=2, batch_size=4), PLAIN, generator())
    assert [len(batch) for batch in seen.batches] == [4, 4, 2, 4, 4, 2]
    epochs = [list(chain.from_iterable(batches)) for batches in (seen.batches[:3], seen.batches[3:])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1] != sorted(epochs[1])


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0},
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
        {"lr": 0.3, "momentum": 0.5, "weight_decay": 0.01, "milestones": (0.25, 0.75), "gamma": 0.2},
    ],
)
def test_it_is_the_plain_loop_of_torch(toy, options):
    network, images, labels = toy
    other = copy.deepcopy(network)
    settings = TrainingSettings(epochs=4, batch_size=4, **options)
    seen = Seen(images)
    curve = train_network(network, seen, labels, settings, PLAIN, generator())
    rules = {name: options[name] for name in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(other.parameters(), **rules)
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [int(4 * fraction) for fraction in settings.milestones], settings.gamma
    )
    for epoch, record in enumerate(curve):
        losses, right = [], torch.zeros(10, dtype=torch.bool)
        for batch in seen.batches[3 * epoch : 3 * epoch + 3]:
            logits = other(images[batch])
            loss = F.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += [loss.item()] * len(batch)
            right[batch] = logits.argmax(1) == labels[batch]
        schedule.step()
        assert record[:2] == pytest.approx((sum(losses) / 10, int(right.sum()) / 10), rel=1e-5)
        assert torch.equal(record.correct, right)
    torch.testing.assert_close(parameters(network), parameters(other), rtol=1e-12, atol=0)


def test_probabilities_as_labels(toy):
    """One-hot labels are the classes; soft ones count by their likeliest class."""
    network, images, labels = toy
    settings = TrainingSettings(epochs=3, batch_size=4, lr=0.1)
    networks = [copy.deepcopy(network) for _ in range(3)]
    one_hot = F.one_hot(labels, 3).double()
    curves = [
        train_network(net, images, targets, settings, PLAIN, generator())
        for net, targets in zip(networks, (labels, one_hot, 0.8 * one_hot + 0.2 / 3), strict=True)
    ]
    torch.testing.assert_close(parameters(networks[0]), parameters(networks[1]))
    hard, same, soft = (torch.tensor([record[:2] for record in curve]) for curve in curves)
    torch.testing.assert_close(hard, same)
    assert soft[0, 0] != pytest.approx(hard[0, 0]) and soft[-1, 1] == 1


def test_on_epoch_is_told_of_each_epoch(toy):
    told = []

    def on_epoch(done: int, record: EpochRecord) -> None:
        told.append((done, record, parameters(toy[0])))

    curve = train_network(*toy, TrainingSettings(epochs=3, batch_size=4), PLAIN, generator(), on_epoch)
    assert [(done, record) for done, record, _ in told] == list(enumerate(curve, 1))
    assert not torch.equal(told[0][2], told[1][2])
    assert torch.equal(told[2][2], parameters(toy[0]))


def test_no_epochs_change_nothing(toy):
    before = parameters(toy[0])
    assert train_network(*toy, TrainingSettings(epochs=0), PLAIN, generator()) == []
    assert torch.equal(parameters(toy[0]), before)


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_it_trains_inside_evaluation_hooks(toy, context):
    network, images, labels = toy
    other = copy.deepcopy(network)
    settings = TrainingSettings(epochs=2, batch_size=4)
    train_network(other, images, labels, settings, PLAIN, generator())
    with context():
        train_network(network, images, labels, settings, PLAIN, generator())
        assert not torch.is_grad_enabled()
    assert torch.equal(parameters(network), parameters(other))
    assert network.training and not any(parameter.is_inference() for parameter in network.parameters())


@pytest.mark.parametrize("strategy", ["none", "color_crop_cutout_flip_scale_rotate"])
def test_blobs_are_learned(blobs, factory, strategy):
    torch.manual_seed(0)
    images = EncodedImages(blobs.train.images, blobs.pixels)
    settings = TrainingSettings(epochs=15, lr=0.05, batch_size=16)
    curve = train_network(factory(3, 3, 8), images, blobs.train.labels, settings, DSA(strategy), generator())
    assert curve[-1].accuracy > 0.85 > curve[0].accuracy
    assert curve[-1].loss < 0.3 * curve[0].loss


def test_each_batch_is_augmented_anew(toy):
    """Whatever is drawn, `cutout` leaves zeros, and not the same ones in every batch."""
    _, images, labels = toy
    seen = []

    class Watching(nn.Linear):
        def forward(self, batch):
            seen.append(batch.detach().clone())
            return super().forward(batch.flatten(1))

    network = Watching(16, 3).double()
    train_network(network, images, labels, TrainingSettings(epochs=3), DSA("cutout"), generator())
    removed = [(batch == 0).flatten(1) for batch in seen]
    assert all(bool(zeros.any(1).all()) for zeros in removed)
    assert not torch.equal(removed[0], removed[1])


@pytest.mark.parametrize("strategy", ["none", "color_crop_cutout_flip_scale_rotate"])
def test_the_result_depends_on_the_generator_alone(toy, strategy):
    """Also where the network draws for itself, by dropout."""
    _, images, labels = toy
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 20), nn.Dropout(), nn.Linear(20, 3)).double()
    results = []
    for global_seed, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        trained = copy.deepcopy(network)
        settings = TrainingSettings(epochs=2, batch_size=10)
        train_network(trained, images, labels, settings, DSA(strategy), generator(seed))
        assert torch.equal(torch.get_rng_state(), before)
        results.append(parameters(trained))
    assert torch.equal(results[0], results[1]) and not torch.allclose(results[0], results[2])


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": -1},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"weight_decay": -1e-4},
        {"milestones": (0.5, 1.0)},
        {"milestones": (0.0,)},
        {"gamma": 0.0},
        {"cutmix": 1.5},
        {"cutmix": -0.1},
        {"cutmix": 0.5, "rho": 0.1},
    ],
)
def test_settings_that_cannot_work_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        TrainingSettings(**{"epochs": 1, **bad})


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_batches_are_mixed_as_often_as_asked_for(toy, probability):
    """Without augmentation, a batch that is not a part of the images was mixed."""
    _, images, labels = toy
    shown = []

    class Watching(nn.Linear):
        def forward(self, batch):
            shown.append(batch.detach().clone())
            return super().forward(batch.flatten(1))

    settings = TrainingSettings(epochs=60, batch_size=10, cutmix=probability)
    train_network(Watching(16, 3).double(), images, labels, settings, PLAIN, generator())
    originals = {tuple(image.flatten().tolist()) for image in images}
    mixed = [any(tuple(image.flatten().tolist()) not in originals for image in batch) for batch in shown]
    # Some boxes are empty, so that not every mixed batch shows it.
    assert sum(mixed) == 0 if probability == 0 else 20 * probability < sum(mixed) <= 60 * min(1, probability + 0.25)


def test_mixing_leaves_training_without_it_as_it_was(toy):
    """Nothing is drawn for a probability of zero: runs of older settings repeat bit for bit."""
    network, images, labels = toy
    source = generator()
    train_network(network, images, labels, TrainingSettings(epochs=1), PLAIN, source)
    other = generator()
    torch.randperm(10, generator=other)
    assert torch.equal(source.get_state(), other.get_state())


def test_the_least_and_largest_settings_work(toy):
    """With them nothing is learned, or next to nothing, but that may be asked for."""
    least = {"momentum": 0.0, "weight_decay": 0.0, "batch_size": 1, "rho": 0.0, "alpha": 0.0}
    train_network(*toy, TrainingSettings(epochs=1, cutmix=1.0, **least), PLAIN, generator())
    assert TrainingSettings(epochs=0, **least).steps(10) == 0


def test_images_need_not_be_square(toy):
    sizes = []

    class Watching(DSA):
        def draw(self, count, size, source):
            sizes.append((count, size))
            return super().draw(count, size, source)

    images, network = torch.zeros(10, 1, 2, 8, dtype=torch.float64), toy[0]
    train_network(network, images, toy[2], TrainingSettings(epochs=1, batch_size=6), Watching("crop"), generator())
    assert sizes == [(6, (2, 8)), (4, (2, 8))]
