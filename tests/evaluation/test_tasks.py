from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from pdd_lightning.augment import DSA
from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation import EvaluationSettings, evaluation_tasks

SETTINGS = EvaluationSettings(num_networks=3, epochs=4, lr=0.05, batch_size=16, full_data_epochs=2)
ROWS = ["distilled"] * 3 + ["random real"] * 3 + ["full real"] * 3


class Inits:
    """Makes networks and keeps a copy of their initial parameters."""

    def __init__(self, factory):
        self.factory = factory
        self.made = []

    def __call__(self, in_channels, num_classes, image_size):
        network = self.factory(in_channels, num_classes, image_size)
        self.made.append(torch.cat([parameter.detach().flatten().clone() for parameter in network.parameters()]))
        return network


@pytest.fixture
def make_tasks(blobs, staged_blobs, factory):
    """Makes the tasks of an evaluation; what differs from the usual is the test's choice."""

    def make(settings=SETTINGS, factory=factory, part="test", seed=0, baselines=True):
        augment = DSA("color_crop")
        device = torch.device("cpu")
        return evaluation_tasks(
            staged_blobs, blobs, blobs.pixels, factory, settings, augment, part, seed, device, baselines
        )

    return make


def without_time(results):
    return [replace(result, seconds=0.0) for result in results]


def run(tasks):
    return without_time([task.run() for task in tasks])


@pytest.fixture(scope="module")
def outcome():
    """Filled by the first test that runs all tasks in order."""
    return {}


@pytest.fixture
def results(make_tasks, outcome):
    """What the usual tasks give in order."""
    if not outcome:
        outcome["results"] = run(make_tasks())
    return outcome["results"]


def test_every_row_has_every_network(results):
    assert [result.row for result in results] == ROWS
    assert [result.seed for result in results] == [0, 1, 2] * 3
    assert {(result.row, result.protocol, result.images) for result in results} == {
        ("distilled", "progressive", 9),
        ("random real", "progressive", 9),
        ("full real", "all images", 54),
    }
    assert {result.part for result in results} == {"test"}
    assert all(len(result.score.per_class) == 3 for result in results)


def test_labels_name_row_and_network(make_tasks):
    labels = [task.label for task in make_tasks()]
    assert (labels[0], labels[4], labels[8]) == ("distilled 1/3", "random real 2/3", "full real 3/3")


def test_the_order_of_the_tasks_does_not_matter(make_tasks, results):
    torch.manual_seed(99)
    tasks = make_tasks()
    assert run(reversed(tasks)) == results[::-1]
    assert run(make_tasks()[1::2]) == results[1::2]
    assert without_time([task.result for task in tasks]) == results


def test_the_order_does_not_matter_where_networks_draw_for_themselves(make_tasks, factory):
    def with_dropout(*shape):
        return nn.Sequential(nn.Dropout2d(0.3), factory(*shape))

    settings = replace(SETTINGS, num_networks=2, full_data_epochs=0)
    results = run(make_tasks(settings, with_dropout))
    torch.rand(5)
    assert run(reversed(make_tasks(settings, with_dropout))) == results[::-1]


def test_network_n_begins_alike_in_every_row(make_tasks, factory):
    inits = Inits(factory)
    run(make_tasks(replace(SETTINGS, epochs=1, full_data_epochs=1), inits))
    distilled, random_real, full = inits.made[:3], inits.made[3:6], inits.made[6:]
    for number in range(3):
        assert torch.equal(distilled[number], random_real[number]) and torch.equal(distilled[number], full[number])
    assert not torch.equal(distilled[0], distilled[1]) and not torch.equal(distilled[1], distilled[2])


def test_another_seed_gives_other_networks(make_tasks, factory):
    made = []
    for seed in (0, 1):
        inits = Inits(factory)
        run(make_tasks(replace(SETTINGS, epochs=1), inits, seed=seed, baselines=False))
        made += [tuple(parameters.tolist()) for parameters in inits.made]
    assert len(set(made)) == 6


@pytest.mark.parametrize(("baselines", "epochs", "rows"), [(True, 0, 6), (False, 2, 3), (False, 0, 3), (True, 2, 9)])
def test_rows_that_are_not_asked_for_are_left_out(make_tasks, baselines, epochs, rows):
    tasks = make_tasks(replace(SETTINGS, full_data_epochs=epochs), baselines=baselines)
    assert [task.label.rpartition(" ")[0] for task in tasks] == ROWS[:rows]


def test_networks_are_scored_on_the_part_that_is_asked_for(make_tasks, blobs, monkeypatch):
    """Without a test part, the validation part can be scored on, but not the test part."""
    train, val, _ = blobs._parts
    monkeypatch.setattr(blobs, "_parts", (train, val, None))
    (result,) = run(make_tasks(replace(SETTINGS, num_networks=1), part="val", baselines=False))
    assert result.part == "val"
    with pytest.raises(AttributeError):
        run(make_tasks(part="test", baselines=False))


def test_tasks_run_inside_lightnings_test_loop(make_tasks, results):
    with torch.inference_mode():
        assert run(make_tasks()) == results


def test_training_on_the_set_helps(make_tasks):
    """Nine real images and thirty epochs are enough to tell the colours apart."""
    settings = replace(SETTINGS, epochs=30)
    accuracies = {result.row: result.score.accuracy for result in run(make_tasks(settings))}
    assert accuracies["distilled"] > 0.7 and accuracies["random real"] > 0.7


@pytest.mark.parametrize(
    "bad",
    [
        {"num_networks": 0},
        {"epochs": 0},
        {"full_data_epochs": -1},
        {"protocol": "all"},
        {"lr": -1.0},
        {"batch_size": 0},
        {"momentum": 2.0},
        {"milestones": (0.5, 2.0)},
        {"gamma": -0.1},
        {"cutmix": 1.1},
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        EvaluationSettings(**bad)


def test_schedule_and_mixing_are_those_of_the_settings():
    settings = EvaluationSettings(epochs=60, milestones=(2 / 3, 5 / 6), gamma=0.2, batch_size=64, cutmix=0.5)
    expected = {"epochs": 60, "milestones": (2 / 3, 5 / 6), "gamma": 0.2, "batch_size": 64, "cutmix": 0.5}
    assert expected.items() <= asdict(settings.training).items()


def test_networks_train_on_decoded_images_and_the_stored_ones_are_counted(blobs, staged_blobs, factory):
    """Nine stored images are 36 to train on; random real images are nine."""
    seen = []

    class Watching(nn.Module):
        def __init__(self, *shape):
            super().__init__()
            self.network = factory(*shape)

        def forward(self, images):
            seen.append(images.detach().clone())
            return self.network(images)

    stored = replace(staged_blobs, decode_factor=2)
    settings = EvaluationSettings(num_networks=1, epochs=1, protocol="union", batch_size=100)
    tasks = evaluation_tasks(
        stored, blobs, blobs.pixels, Watching, settings, DSA("none"), "val", 0, torch.device("cpu"), True
    )
    results = run(tasks)
    assert [(result.row, result.images) for result in results] == [("distilled", 9), ("random real", 9)]
    trained = [batch for batch in seen if len(batch) in (36, 9)]
    assert [len(batch) for batch in trained] == [36, 36, 9, 9]  # 3 + 9 stored images: as many steps as two phases
    decoded = stored.decoded(blobs.pixels).images.flatten(1)
    assert (
        float(torch.cdist(trained[0].flatten(1), decoded, compute_mode="donot_use_mm_for_euclid_dist").amin(1).max())
        < 1e-2
    )
