import json
import math
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure
from pdd_lightning.evaluation.memory import joined, tasks_of

from pdd_lightning.augment import DSA
from pdd_lightning.data import ImageSplit, RealDataModule
from pdd_lightning.data.distilled import DistilledDataset, save_distilled
from pdd_lightning.data.pixels import Standardized
from pdd_lightning.data.splits import to_unit
from pdd_lightning.data.subset import ClassSubset
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.evaluation import continual
from pdd_lightning.evaluation.continual import ContinualSettings, learn_tasks, summary
from pdd_lightning.results.plots import draw_continual
from pdd_lightning.results.tables import continual_table
from pdd_lightning.training import TrainingSettings

NAMES = ["north", "south", "west", "east"]
SETTINGS = ContinualSettings(
    memories=("distilled", "random", "herding", "none"),
    num_networks=2,
    gdumb=TrainingSettings(epochs=50, lr=0.05),
    replay=TrainingSettings(epochs=8, lr=0.05, batch_size=16),
)


class Sides(RealDataModule):
    """Four classes, told apart by the bright half of a grey image of 8 pixels."""

    def load(self):
        generator = torch.Generator().manual_seed(0)
        return self._part(20, generator), self._part(10, generator), list(NAMES)

    def _part(self, per_class, generator):
        labels = torch.arange(4).repeat(per_class)
        images = 0.5 * torch.rand(len(labels), 1, 8, 8, generator=generator)
        halves = [
            (slice(0, 4), slice(None)),
            (slice(4, 8), slice(None)),
            (slice(None), slice(0, 4)),
            (slice(None), slice(4, 8)),
        ]
        for image, label in zip(images, labels.tolist(), strict=True):
            image[0][halves[label]] += 0.5
        return ImageSplit.in_order((images * 255).to(torch.uint8), labels)


@pytest.fixture(scope="module")
def sides():
    data = Sides()
    data.setup()
    return data


@pytest.fixture
def save(sides, tmp_path):
    """Saves a set of two stages of one real image per class of a task."""

    def write(classes, rates=(0.05, None), soft=False, stages=2, name=None):
        part = ClassSubset(sides, classes)
        part.setup()
        synthetic = SyntheticSet.empty((1, 8, 8))
        for stage in range(stages):
            chosen = torch.stack([part.train.images_of_class(label)[stage] for label in range(len(classes))])
            labels = torch.arange(len(classes))
            kept = torch.nn.functional.one_hot(labels).float() if soft else labels
            synthetic = synthetic.append(part.pixels.encode(to_unit(part.train.images[chosen])), kept, rates[stage])
        path = tmp_path / f"{name or '-'.join(classes)}.safetensors"
        return save_distilled(path, synthetic, part.pixels, classes, {})

    return write


def read(paths, real):
    return tasks_of(paths, [DistilledDataset(path, stored=True) for path in paths], real)


@pytest.fixture
def tasks(save, sides):
    return read([save(["east", "north"]), save(["south", "west"])], sides)


def learn(tasks, factory, settings=SETTINGS, **options):
    return learn_tasks(tasks, factory, settings, DSA("none"), **options)


def without_time(rows):
    return [{**row, "seconds": 0} for row in rows]


def test_each_set_makes_a_task_of_its_classes(tasks):
    assert [(task.real.class_names, task.first) for task in tasks.tasks] == [
        (["east", "north"], 0),
        (["south", "west"], 2),
    ]
    assert tasks.num_classes == 4


def test_all_memories_come_into_the_space_of_the_first_task(tasks, save):
    second = DistilledDataset(save(["south", "west"]), stored=True)
    first = tasks.tasks[0].real.pixels
    assert isinstance(first, Standardized) and torch.equal(tasks.pixels.mean, first.mean)
    images = tasks.pixels.decode(tasks.tasks[1].distilled.images)
    torch.testing.assert_close(images, second.pixels.decode(second.images))
    assert not torch.allclose(tasks.tasks[1].distilled.images, second.images)


def test_memories_are_joined_stage_by_stage_with_labels_among_all_classes(save, sides):
    tasks = read([save(["east", "north"], (0.01, 0.02)), save(["south", "west"], (0.04, None))], sides)
    memory = joined([task.distilled for task in tasks.tasks], tasks)
    assert memory.labels.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    assert memory.stages.tolist() == [1, 1, 2, 2, 1, 1, 2, 2]
    assert memory.learning_rates == pytest.approx((0.02, 0.02))
    assert torch.equal(joined([tasks.tasks[0].distilled], tasks).images, tasks.tasks[0].distilled.images)


def test_soft_labels_are_probabilities_of_all_classes(save, sides):
    tasks = read([save(["east", "north"]), save(["south", "west"], soft=True)], sides)
    memory = joined([task.distilled for task in tasks.tasks], tasks)
    assert torch.equal(memory.labels, torch.eye(4)[[0, 1, 0, 1, 2, 3, 2, 3]])


def test_images_that_stand_for_several_are_joined_decoded(tasks):
    kept = [replace(task.distilled, decode_factor=2) for task in tasks.tasks]
    assert len(joined(kept, tasks)) == 4 * sum(map(len, kept))


def test_memory_prevents_forgetting(tasks, factory):
    rows = {(row["protocol"], row["row"]): row for row in learn(tasks, factory)}
    assert list(rows) == [
        ("gdumb", "distilled"),
        ("gdumb", "random"),
        ("gdumb", "herding"),
        ("replay", "distilled"),
        ("replay", "random"),
        ("replay", "herding"),
        ("replay", "none"),
    ]
    forgetful = rows.pop(("replay", "none"))
    assert forgetful["images"] == 0 and forgetful["forgetting"] > 0.8
    assert forgetful["accuracy_matrix"][0][0] > 0.9 and forgetful["accuracy_matrix"][1][1] > 0.9
    assert all(row["images"] == 8 and row["mean"] > 0.75 and row["forgetting"] < 0.4 for row in rows.values())


def test_nothing_of_a_task_is_used_before_its_turn(save, sides, factory):
    """Another second task leaves the accuracies after the first as they were."""
    short = replace(SETTINGS, gdumb=TrainingSettings(epochs=8), replay=TrainingSettings(epochs=1))
    first = save(["east", "north"])
    tables = [read([first, save(second)], sides) for second in (["south", "west"], ["west", "south"])]
    pairs = list(zip(*(learn(tasks, factory, short) for tasks in tables), strict=True))
    assert all(one["accuracy_matrix"][0] == other["accuracy_matrix"][0] for one, other in pairs)
    assert any(one["accuracy_matrix"][1] != other["accuracy_matrix"][1] for one, other in pairs)


def test_the_seed_decides(tasks, factory):
    few = replace(SETTINGS, num_networks=1, memories=("random",), replay=TrainingSettings(epochs=1))
    few = replace(few, gdumb=TrainingSettings(epochs=1))
    rows = [without_time(learn(tasks, factory, few, seed=seed)) for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


def test_half_of_what_is_replayed_is_memory(tasks, factory, monkeypatch):
    seen = []

    def watch(network, images, labels, training, augment, generator):
        seen.append(labels)

    monkeypatch.setattr(continual, "train_network", watch)
    learn(tasks, factory, replace(SETTINGS, protocols=("replay",), memories=("distilled",), num_networks=1))
    first, second = seen
    current = len(tasks.tasks[0].real.train)
    assert len(first) == current and set(first.tolist()) == {0, 1}
    assert set(second[:current].tolist()) == {2, 3} and set(second[current:].tolist()) == {0, 1}
    assert abs(len(second) - 2 * current) <= len(tasks.tasks[0].distilled) / 2


def test_memories_of_real_images_are_of_the_task_alone(tasks, factory):
    settings = replace(SETTINGS, replay=TrainingSettings(epochs=1))
    learner = continual._Learner(tasks, factory, settings, DSA("none"), "val", 0, torch.device("cpu"))
    random, other = (learner._kept("random", number) for number in (0, 1))
    herded = learner._kept("herding", 0)
    assert not torch.equal(random[0].images, other[0].images)
    assert torch.equal(herded[0].images, learner._kept("herding", 1)[0].images)
    for task, memory in [*zip(tasks.tasks, random, strict=True), *zip(tasks.tasks, herded, strict=True)]:
        own = tasks.pixels.encode(to_unit(task.real.train.images))
        places = [int((own == image).all((1, 2, 3)).nonzero()) for image in memory.images]
        assert len(set(places)) == len(memory) == len(task.distilled)
        assert torch.equal(task.real.train.labels[places], memory.labels)


def test_too_few_real_images_are_refused_before_the_work(save, sides, factory):
    tasks = read([save(["east", "north"]), save(["south", "west"])], sides)
    large = tasks.tasks[1].distilled
    images = torch.zeros(100, 1, 8, 8)
    large = replace(large, images=images, labels=torch.arange(2).repeat(50), stages=torch.arange(1, 3).repeat(50))
    tasks.tasks[1] = tasks.tasks[1]._replace(distilled=large)
    with pytest.raises(DataError, match="fewer than the 50"):
        learn(tasks, factory)


def test_memory_is_trained_on_progressively_at_the_learned_rate(tasks, factory, monkeypatch):
    seen = []

    def watch(network, images, labels, training, augment, generator, max_steps):
        seen.append((len(labels), training.lr, training.epochs))

    monkeypatch.setattr(continual, "train_network", watch)
    training = TrainingSettings(epochs=30, lr=0.3, batch_size=4)
    settings = replace(SETTINGS, gdumb=training, memories=("distilled", "random"), protocols=("gdumb",), num_networks=1)
    learn(tasks, factory, settings)
    counts, rates, epochs = zip(*seen, strict=True)
    assert counts == (2, 4, 4, 8) * 2
    assert rates == pytest.approx((0.05, 0.3, 0.05, 0.3, 0.3, 0.3, 0.3, 0.3))
    # One, one, one and two steps an epoch; 30 steps on the first task's memory, 60 on that of both.
    assert epochs == (15, 15, 30, 15) * 2


def test_all_memories_are_trained_on_for_as_many_steps(tasks, factory, monkeypatch):
    """Though a distilled image is four to train on, and the steps of a stage are no whole epochs."""
    for number, task in enumerate(tasks.tasks):
        tasks.tasks[number] = task._replace(distilled=replace(task.distilled, decode_factor=2))
    taken = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (taken.append(1), step(self)))
    training = TrainingSettings(epochs=3, batch_size=5)
    counts = []
    for memory in ("distilled", "random"):
        taken.clear()
        settings = ContinualSettings(protocols=("gdumb",), memories=(memory,), num_networks=1, gdumb=training)
        learn(tasks, factory, settings)
        counts.append(len(taken))
    assert counts == [3 * 4 + 3 * 7] * 2  # 16 and 32 decoded images in batches of 5


def test_rows_are_means_over_networks_of_each_matrix():
    nan = math.nan
    one = torch.tensor([[1.0, nan], [0.5, 0.9]])
    other = torch.tensor([[0.8, nan], [0.6, 0.6]])
    row = summary([one, other])
    assert (row["accuracies"], row["mean"]) == (pytest.approx([0.7, 0.6]), pytest.approx(0.65))
    assert row["forgetting"] == pytest.approx((0.5 + 0.2) / 2)
    assert row["average_accuracy"] == pytest.approx([0.9, 0.65])
    assert row["accuracy_matrix"] == [[pytest.approx(0.9), None], [pytest.approx(0.55), pytest.approx(0.75)]]
    assert (row["std"], row["n"]) == (pytest.approx(0.1 / 2**0.5), 2)
    assert json.loads(json.dumps(row)) == row


def test_table_and_figure_show_each_row():
    matrix = torch.tensor([[1.0, math.nan], [0.5, 0.9]])
    facts = {"part": "val", "images": 8, "seconds": 1.0, **summary([matrix])}
    rows = [{**facts, "row": memory, "protocol": protocol} for protocol, memory in SETTINGS.arms]
    assert len(continual_table(rows).lines) == len(rows)
    figure = Figure()
    draw_continual(figure, rows, "sides")
    lines = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes]
    assert lines == [["distilled", "random", "herding"], ["distilled", "random", "herding", "none"]]
    assert list(figure.axes[0].lines[0].get_ydata()) == pytest.approx([100, 70])


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        ([["east", "north"]], DataError, "two distilled sets or more, got 1"),
        ([["east", "north"], ["west", "north"]], DataError, r"'north' is in .*east-north.* and in .*west-north"),
    ],
)
def test_tasks_that_are_none_are_refused(save, sides, classes, error, message):
    with pytest.raises(error, match=message):
        read([save(names) for names in classes], sides)


def test_sets_of_other_images_classes_or_stages_are_refused(save, sides, blobs):
    paths = [save(["east", "north"]), save(["south", "west"], stages=1)]
    with pytest.raises(DataError, match=r"south-west.* has 1 stages, the first set 2"):
        read(paths, sides)
    with pytest.raises(DataError, match=r"does not belong to Blobs: its images are \(1, 8, 8\)"):
        read(paths, blobs)
    known = ClassSubset(sides, ["east", "south", "west"])
    known.setup()
    with pytest.raises(ConfigError, match="no class 'north'"):
        read(paths, known)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_networks": 0}, "num_networks"),
        ({"protocols": ()}, "protocols must name some of gdumb, replay"),
        ({"memories": ("random", "random")}, "memories must name"),
        ({"memories": ("nothing",)}, "memories must name"),
        ({"protocols": ("gdumb",), "memories": ("none",)}, "add another memory or protocol"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ContinualSettings(**options)
