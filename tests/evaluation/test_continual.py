import json
import math
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from matplotlib.figure import Figure

from pdd_lightning.data import ImageSplit, RealDataModule
from pdd_lightning.data.distilled import DistilledDataset, save_distilled
from pdd_lightning.data.pixels import Standardized
from pdd_lightning.data.splits import to_unit
from pdd_lightning.data.subset import ClassSubset
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.evaluation import continual
from pdd_lightning.evaluation import subject as subject_module
from pdd_lightning.evaluation.continual import ContinualSettings, learn_tasks, summarize
from pdd_lightning.evaluation.learning_tasks import join_memories, stored_tasks
from pdd_lightning.networks import ConvNet
from pdd_lightning.networks.spec import network_spec
from pdd_lightning.results.plots import draw_continual
from pdd_lightning.results.result_store import ResultStore
from pdd_lightning.results.tables import continual_table
from pdd_lightning.training import TrainingSettings

NAMES = ["north", "south", "west", "east"]
SETTINGS = ContinualSettings(
    memories=("distilled", "random", "herding", "none"),
    num_networks=2,
    gdumb=TrainingSettings(epochs=50, lr=0.05),
    replay=TrainingSettings(epochs=8, lr=0.05, batch_size=16),
)
SHORT = replace(SETTINGS, num_networks=1, gdumb=TrainingSettings(epochs=1), replay=TrainingSettings(epochs=1))


class Sides(RealDataModule):
    """Four classes, which differ in the bright half of a gray image of 8 pixels."""

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
def save(sides, factory, tmp_path):
    """Saves a set of two stages of one real image per class of a task."""

    def write(classes, rates=(0.05, None), soft=False, stages=2, name=None, **others):
        part = ClassSubset(sides, classes)
        part.setup()
        synthetic = SyntheticSet.empty((1, 8, 8))
        for stage in range(stages):
            chosen = torch.stack([part.train.images_of_class(label)[stage] for label in range(len(classes))])
            labels = torch.arange(len(classes))
            kept = torch.nn.functional.one_hot(labels).float() if soft else labels
            synthetic = synthetic.append(part.pixels.encode(to_unit(part.train.images[chosen])), kept, rates[stage])
        path = tmp_path / f"{name or '-'.join(classes)}.safetensors"
        about = {"network": network_spec(factory), "settings": {"augment": "none"}, **others}
        return save_distilled(path, synthetic, part.pixels, classes, about)

    return write


@pytest.fixture
def tasks(save, sides):
    return stored_tasks([save(["east", "north"]), save(["south", "west"])], sides)


def learn(tasks, settings=SETTINGS, **changes):
    return learn_tasks([replace(task, **changes) for task in tasks], settings, progress=False)


def without_time(rows):
    return [{**row, "seconds": 0} for row in rows]


def test_each_set_makes_a_task_of_its_classes(tasks):
    assert [(task.real.class_names, task.first) for task in tasks] == [(["east", "north"], 0), (["south", "west"], 2)]
    assert tasks[-1].seen == 4


def test_all_memories_come_into_the_space_of_the_first_task(tasks, save):
    second = DistilledDataset(save(["south", "west"]), stored=True)
    first = tasks[0].real.pixels
    assert isinstance(first, Standardized) and all(torch.equal(task.pixels.mean, first.mean) for task in tasks)
    images = tasks[0].pixels.decode(tasks[1].synthetic.images)
    torch.testing.assert_close(images, second.pixels.decode(second.images))
    assert not torch.allclose(tasks[1].synthetic.images, second.images)


def test_network_and_augmentation_are_those_of_the_first_set(save, sides, factory):
    other = partial(ConvNet, depth=1, width=4)
    second = save(["south", "west"], network=network_spec(other), settings={"augment": "crop"})
    tasks = stored_tasks([save(["east", "north"]), second], sides)
    assert [network_spec(task.factory) for task in tasks] == [network_spec(factory)] * 2
    assert [task.augment.strategy for task in tasks] == ["none"] * 2


def test_memories_are_joined_stage_by_stage_with_labels_among_all_classes(save, sides):
    tasks = stored_tasks([save(["east", "north"], (0.01, 0.02)), save(["south", "west"], (0.04, None))], sides)
    memory = join_memories([task.synthetic for task in tasks], tasks)
    assert memory.labels.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    assert memory.stages.tolist() == [1, 1, 2, 2, 1, 1, 2, 2]
    assert memory.learning_rates == pytest.approx((0.02, 0.02))
    assert torch.equal(join_memories([tasks[0].synthetic], tasks).images, tasks[0].synthetic.images)


def test_soft_labels_are_probabilities_of_all_classes(save, sides):
    tasks = stored_tasks([save(["east", "north"]), save(["south", "west"], soft=True)], sides)
    memory = join_memories([task.synthetic for task in tasks], tasks)
    assert torch.equal(memory.labels, torch.eye(4)[[0, 1, 0, 1, 2, 3, 2, 3]])


def test_images_that_stand_for_several_are_joined_decoded(tasks):
    kept = [replace(task.synthetic, decode_factor=2) for task in tasks]
    assert len(join_memories(kept, tasks)) == 4 * sum(map(len, kept))


def test_memory_prevents_forgetting(tasks):
    rows = {(row["protocol"], row["row"]): row for row in learn(tasks)}
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


def test_nothing_of_a_task_is_used_before_its_turn(save, sides):
    """Another second task leaves the accuracies after the first as they were."""
    short = replace(SETTINGS, gdumb=TrainingSettings(epochs=8), replay=TrainingSettings(epochs=1))
    first = save(["east", "north"])
    tables = [stored_tasks([first, save(second)], sides) for second in (["south", "west"], ["west", "south"])]
    pairs = list(zip(*(learn(tasks, short) for tasks in tables), strict=True))
    assert all(one["accuracy_matrix"][0] == other["accuracy_matrix"][0] for one, other in pairs)
    assert any(one["accuracy_matrix"][1] != other["accuracy_matrix"][1] for one, other in pairs)


def test_the_seed_decides(tasks):
    rows = [without_time(learn(tasks, replace(SHORT, memories=("random",)), seed=seed)) for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


def test_learning_that_was_interrupted_is_continued(tasks, tmp_path, monkeypatch):
    """Networks of memories: 2 of herding, and one for each of 7 rows, each trained for 2 tasks (of 2 stages)."""
    trained = []
    train = subject_module.train_network

    def interrupted(*rest):
        if len(trained) == 7:
            raise KeyboardInterrupt
        trained.append(train(*rest))

    straight = learn(tasks, SHORT)
    path = tmp_path / "rows.networks.jsonl"
    monkeypatch.setattr(subject_module, "train_network", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learn(tasks, SHORT, store=ResultStore(path))
    assert len(path.read_text().splitlines()) == 3  # 2 + 4 trainings, and one of the next 4
    monkeypatch.setattr(subject_module, "train_network", lambda *rest: trained.append(train(*rest)))
    assert without_time(learn(tasks, SHORT, store=ResultStore(path))) == without_time(straight)
    assert len(trained) == 7 + 2 * 4 + 4 * 2
    learn(tasks, replace(SHORT, gdumb=TrainingSettings(epochs=2)), store=ResultStore(path))
    assert len(trained) == 23 + 3 * 4  # "replay" and herding's choice do not depend on it


@pytest.fixture
def replayed(monkeypatch):
    """Labels that a network is trained on with replay of the distilled memory, task by task."""

    def labels(tasks):
        seen = []
        monkeypatch.setattr(subject_module, "train_network", lambda _, images, labels, *rest: seen.append(labels))
        learn(tasks, replace(SETTINGS, protocols=("replay",), memories=("distilled",), num_networks=1))
        return seen

    return labels


def test_half_of_what_is_replayed_is_memory(tasks, replayed):
    first, second = replayed(tasks)
    current = len(tasks[0].real.train)
    assert len(first) == current and set(first.tolist()) == {0, 1}
    assert set(second[:current].tolist()) == {2, 3} and set(second[current:].tolist()) == {0, 1}
    assert abs(len(second) - 2 * current) <= len(tasks[0].synthetic) / 2


def test_a_memory_that_is_larger_than_a_task_is_replayed_once(tasks, replayed):
    large = [replace(task, synthetic=replace(task.synthetic, decode_factor=8)) for task in tasks]
    assert [len(labels) for labels in replayed(large)] == [36, 36 + 4 * 8**2]


def test_soft_labels_are_replayed_beside_hard_ones(tasks, replayed):
    soft = torch.tensor([[0.9, 0.1], [0.2, 0.8]] * 2)
    mixed = [replace(tasks[0], synthetic=replace(tasks[0].synthetic, labels=soft)), tasks[1]]
    first, second = replayed(mixed)
    real, memory = second[: len(first)], second[len(first) :]
    assert torch.equal(real, torch.eye(4)[tasks[1].real.train.labels + 2])
    assert torch.equal(memory.unique(dim=0), torch.tensor([[0.2, 0.8, 0, 0], [0.9, 0.1, 0, 0]]))


@pytest.mark.parametrize("memory", ["random", "herding"])
def test_memories_of_real_images_are_of_the_task_alone(tasks, memory, monkeypatch):
    seen = []
    monkeypatch.setattr(continual, "join_memories", lambda kept, tasks: seen.append(kept) or join_memories(kept, tasks))
    learn(tasks, replace(SHORT, memories=(memory,), protocols=("gdumb",), num_networks=2))
    _, one, _, other = seen  # of two networks, after the first and after the second task
    assert torch.equal(one[0].images, other[0].images) == (memory == "herding")
    for task, kept in zip(tasks, one, strict=True):
        own = task.pixels.encode(to_unit(task.real.train.images))
        indices = [int((own == image).all((1, 2, 3)).nonzero()) for image in kept.images]
        assert len(set(indices)) == len(kept) == len(task.synthetic)
        assert torch.equal(task.real.train.labels[indices], kept.labels)


def test_too_few_real_images_are_refused_before_the_work(tasks):
    labels, stages = torch.arange(2).repeat(50), torch.arange(1, 3).repeat(50)
    large = replace(tasks[1].synthetic, images=torch.zeros(100, 1, 8, 8), labels=labels, stages=stages)
    with pytest.raises(DataError, match="fewer than the 50"):
        learn([tasks[0], replace(tasks[1], synthetic=large)])


def test_memory_is_trained_on_progressively_at_the_learned_rate(tasks, monkeypatch):
    seen = []

    def watch(network, images, labels, training, *rest):
        seen.append((len(labels), training.lr, training.epochs))

    monkeypatch.setattr(subject_module, "train_network", watch)
    training = TrainingSettings(epochs=30, lr=0.3, batch_size=4)
    learn(
        tasks, replace(SETTINGS, gdumb=training, memories=("distilled", "random"), protocols=("gdumb",), num_networks=1)
    )
    counts, rates, epochs = zip(*seen, strict=True)
    assert counts == (2, 4, 4, 8) * 2
    assert rates == pytest.approx((0.05, 0.3, 0.05, 0.3, 0.3, 0.3, 0.3, 0.3))
    # One, one, one and two steps an epoch; 30 steps on the first task's memory, 60 on that of both.
    assert epochs == (15, 15, 30, 15) * 2


def test_all_memories_are_trained_on_for_as_many_steps(tasks, monkeypatch):
    """Though a distilled image is four to train on, and the steps of a stage are no whole epochs."""
    taken, counts = [], {}
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (taken.append(1), step(self)))

    def watch(work, *_):
        for task in work:
            needed = [need.compute(lambda _: None) for need in task.needs]
            taken.clear()
            reported = []
            yield task.compute(reported.append, *needed)
            assert len(taken) == sum(reported) == task.steps, "the progress bar receives other steps"
            counts[task.label] = len(taken)

    monkeypatch.setattr(continual, "run_tasks", watch)
    training = TrainingSettings(epochs=3, batch_size=5)
    settings = replace(SHORT, gdumb=training, replay=training)
    learn([replace(task, synthetic=replace(task.synthetic, decode_factor=2)) for task in tasks], settings)
    # 16 and 32 decoded images in batches of 5; 36 real images, with 2 x 16 decoded or 8 x 4 stored ones
    on_memory = [steps for label, steps in counts.items() if label.startswith("gdumb")]
    assert on_memory == [3 * 4 + 3 * 7] * 3 and len(counts) == 6


def test_rows_are_means_over_networks_of_each_matrix():
    nan = math.nan
    one = torch.tensor([[1.0, nan], [0.5, 0.9]])
    other = torch.tensor([[0.8, nan], [0.6, 0.6]])
    row = summarize([one, other])
    assert (row["accuracies"], row["mean"]) == (pytest.approx([0.7, 0.6]), pytest.approx(0.65))
    assert row["forgetting"] == pytest.approx((0.5 + 0.2) / 2)
    assert row["average_accuracy"] == pytest.approx([0.9, 0.65])
    assert row["accuracy_matrix"] == [[pytest.approx(0.9), None], [pytest.approx(0.55), pytest.approx(0.75)]]
    assert (row["std"], row["n"]) == (pytest.approx(0.1 / 2**0.5), 2)
    assert json.loads(json.dumps(row)) == row
    assert row["forgetting_std"] == pytest.approx(0.3 / 2**0.5)
    alone = summarize([one])
    assert (alone["std"], alone["forgetting_std"], alone["n"]) == (0.0, 0.0, 1)


def test_times_are_those_of_each_network(tasks):
    begin = time.perf_counter()
    rows = learn(tasks, replace(SHORT, num_networks=2, memories=("random",)))
    passed = time.perf_counter() - begin
    assert all(row["seconds"] > 0 for row in rows) and sum(row["seconds"] for row in rows) < passed


def test_table_and_figure_show_each_row():
    matrix = torch.tensor([[1.0, math.nan], [0.5, 0.9]])
    facts = {"part": "val", "images": 8, "seconds": 1.0, **summarize([matrix])}
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
        stored_tasks([save(names) for names in classes], sides)


def test_sets_of_other_images_classes_or_stages_are_refused(save, sides, blobs):
    paths = [save(["east", "north"]), save(["south", "west"], stages=1)]
    with pytest.raises(DataError, match=r"south-west.* has 1 stages, the first set 2"):
        stored_tasks(paths, sides)
    with pytest.raises(DataError, match=r"does not belong to Blobs: its images are \(1, 8, 8\)"):
        stored_tasks(paths, blobs)
    known = ClassSubset(sides, ["east", "south", "west"])
    known.setup()
    with pytest.raises(ConfigError, match="no class 'north'"):
        stored_tasks(paths, known)


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
