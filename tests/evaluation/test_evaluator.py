import json
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from pdd_lightning.augment import DSA
from pdd_lightning.data.pixels import Standardized
from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation import EvaluationSettings, Subject, evaluate, ranking_scores
from pdd_lightning.evaluation import subject as subject_module
from pdd_lightning.evaluation.evaluator import evaluation_tasks, ranking_tasks
from pdd_lightning.evaluation.plan import PROTOCOLS
from pdd_lightning.evaluation.tasks import run_tasks
from pdd_lightning.experts import ExpertRecorder, ExpertSettings
from pdd_lightning.networks import ConvNet
from pdd_lightning.networks.parameters import flatten
from pdd_lightning.results.result_store import ResultStore, TaskResult, rows_from_results
from tests.tiny import Watched, image_set

SETTINGS = EvaluationSettings(num_networks=3, random_sets=1, epochs=4, lr=0.05, batch_size=16, full_data_epochs=2)
ALONE = replace(SETTINGS, baselines=(), full_data_epochs=0)
ROWS = ["distilled"] * 3 + ["random real"] * 3 + ["full real"] * 3


class Inits:
    """Makes networks and keeps a copy of their initial parameters."""

    def __init__(self, factory):
        self.factory = factory
        self.made = []

    def make(self, in_channels, num_classes, image_size):
        network = self.factory(in_channels, num_classes, image_size)
        self.made.append(flatten(dict(network.named_parameters())).detach().clone())
        return network


@pytest.fixture
def subject(blobs, staged_blobs, factory):
    return Subject(staged_blobs, blobs, blobs.pixels, factory, DSA("color_crop"))


@pytest.fixture
def make_tasks(subject):
    """Makes the tasks of an evaluation; what differs from the usual is the test's choice."""

    def make(settings=SETTINGS, **changes):
        return evaluation_tasks(replace(subject, **changes), settings)

    return make


def run(tasks, store=None):
    """Results without the time that they took."""
    values = run_tasks(list(tasks), store or ResultStore(), progress=False)
    return [TaskResult(**{**value, "seconds": [0.0] * len(value["scores"])}) for value in values]


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
    assert [result.about["row"] for result in results] == ROWS
    assert [result.number for result in results] == [0, 1, 2] * 3
    abouts = [result.about for result in results[::3]]
    assert [(about["protocol"], about["images"]) for about in abouts] == [
        ("progressive", [3, 9]),
        ("progressive", [3, 9]),
        ("all images", [54]),
    ]
    assert [[phase["lr"] for phase in about["phases"]] for about in abouts] == [[0.02, 0.05], [0.05, 0.05], [0.05]]
    assert {(about["part"], about["scored"], about["augment"]) for about in abouts} == {("test", 24, "color_crop")}
    assert all(len(score.per_class) == 3 for result in results for score in result.scores)


def test_the_order_of_the_tasks_does_not_matter(make_tasks, results):
    torch.manual_seed(99)
    assert run(reversed(make_tasks())) == results[::-1]
    assert run(make_tasks()[1::2]) == results[1::2]


def test_the_order_does_not_matter_where_networks_draw_for_themselves(make_tasks, factory):
    def with_dropout(*shape):
        return nn.Sequential(nn.Dropout2d(0.3), factory(*shape))

    settings = replace(SETTINGS, num_networks=2, full_data_epochs=0)
    results = run(make_tasks(settings, factory=with_dropout))
    torch.rand(5)
    assert run(reversed(make_tasks(settings, factory=with_dropout))) == results[::-1]


def test_network_n_begins_alike_in_every_row(make_tasks, factory):
    inits = Inits(factory)
    run(make_tasks(replace(SETTINGS, epochs=1, full_data_epochs=1), factory=inits.make))
    distilled, random_real, full = inits.made[:3], inits.made[3:6], inits.made[6:]
    for number in range(3):
        assert torch.equal(distilled[number], random_real[number]) and torch.equal(distilled[number], full[number])
    assert not torch.equal(distilled[0], distilled[1]) and not torch.equal(distilled[1], distilled[2])


def batches_of_each_network(tasks):
    """By row, the batches that each of its networks is trained on."""
    seen = {}
    for task in tasks:
        Watched.seen.clear()
        (result,) = run([task])
        seen.setdefault(result.about["row"], []).append(list(Watched.seen))
    return seen


WATCHED = replace(SETTINGS, protocols=("union",), epochs=2)


def test_each_network_has_random_images_of_its_own(make_tasks, staged_blobs):
    tasks = make_tasks(WATCHED, factory=Watched, augment=DSA("none"))
    chosen = [image_set(torch.cat(batches)) for batches in batches_of_each_network(tasks)["random real"]]
    assert [len(images) for images in chosen] == [len(staged_blobs)] * 3
    assert chosen[0] != chosen[1] and chosen[1] != chosen[2] and chosen[0] != chosen[2]


def test_each_network_of_a_row_has_an_order_of_its_own(make_tasks):
    """All networks of a row see the same images in each epoch, in other batches."""
    tasks = make_tasks(replace(WATCHED, batch_size=2, baselines=()), factory=Watched, augment=DSA("none"))
    for networks in batches_of_each_network(tasks).values():
        assert len({frozenset(image_set(torch.cat(batches))) for batches in networks}) == 1
        assert len({tuple(batch.numpy().tobytes() for batch in batches) for batches in networks}) == 3


def test_each_network_of_a_row_has_augmentations_of_its_own(make_tasks, staged_blobs):
    """Equal images have no order: what differs is how they are augmented."""
    equal = replace(staged_blobs, images=staged_blobs.images[:1].expand(9, -1, -1, -1).clone())
    settings = replace(ALONE, protocols=("union",), batch_size=9)
    tasks = make_tasks(settings, factory=Watched, synthetic=equal, augment=DSA("color"))
    (networks,) = batches_of_each_network(tasks).values()
    assert len({frozenset(image_set(torch.cat(batches))) for batches in networks}) == 3


def test_another_seed_gives_other_networks(make_tasks, factory):
    made = []
    for seed in (0, 1):
        inits = Inits(factory)
        run(make_tasks(replace(ALONE, epochs=1), factory=inits.make, seed=seed))
        made += [tuple(parameters.tolist()) for parameters in inits.made]
    assert len(set(made)) == 6


def test_all_staged_rows_take_the_same_number_of_steps(make_tasks, staged_blobs, monkeypatch):
    """Whatever the protocol, and though a stored image is four to train on. The progress bar receives as many."""
    taken, reported = [], []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (taken.append(1), step(self)))
    baselines = ("random", "herding", "kmeans")
    settings = replace(SETTINGS, num_networks=1, epochs=3, batch_size=5, protocols=PROTOCOLS, baselines=baselines)
    results = []
    for task in make_tasks(settings, synthetic=replace(staged_blobs, decode_factor=2)):
        needed = [need.compute(lambda _: None) for need in task.needs]
        taken.clear(), reported.clear()
        results.append(TaskResult.model_validate(task.compute(reported.append, *needed)))
        assert len(taken) == sum(reported) == task.steps
    rows = rows_from_results(results, list("abc"))
    staged = [row for row in rows if row["protocol"] != "all images"]
    assert len(staged) == 4 * 3
    assert {row["steps"] for row in staged} == {3 * 3 + 3 * 8}  # 12 and 36 images in batches of 5
    assert (rows[-1]["protocol"], rows[-1]["steps"]) == ("all images", 2 * 11)


def test_accuracies_after_each_stage_are_those_of_a_set_that_ends_there(make_tasks, staged_blobs):
    results = run(make_tasks(ALONE))
    rows = rows_from_results(results, list("abc"), True)
    assert [(row["stage"], row["images"], row["steps"]) for row in rows] == [(1, 3, 4), (2, 9, 8)]
    first = run(make_tasks(ALONE, synthetic=staged_blobs.union(1)))
    assert rows[0]["accuracies"] == [result.scores[-1].accuracy for result in first]


def test_networks_are_scored_on_the_part_that_is_asked_for(make_tasks, blobs, monkeypatch):
    """Without a test part, the validation part can be scored on, but not the test part."""
    train, val, _ = blobs._parts
    monkeypatch.setattr(blobs, "_parts", (train, val, None))
    (result,) = run(make_tasks(replace(ALONE, num_networks=1), part="val"))
    assert (result.about["part"], result.about["scored"]) == ("val", 18)
    with pytest.raises(TypeError):
        run(make_tasks(ALONE, part="test"))


def test_training_on_the_set_helps(make_tasks):
    """Nine real images and thirty epochs are enough to tell the colours apart."""
    settings = replace(SETTINGS, epochs=30)
    accuracies = {result.about["row"]: result.scores[-1].accuracy for result in run(make_tasks(settings))}
    assert accuracies["distilled"] > 0.7 and accuracies["random real"] > 0.7


def test_networks_train_on_decoded_images_and_the_stored_ones_are_counted(make_tasks, blobs, staged_blobs):
    """Nine stored images are 36 to train on; random real images are nine."""
    stored = replace(staged_blobs, decode_factor=2)
    settings = replace(SETTINGS, num_networks=1, epochs=1, protocols=("union",), batch_size=100, full_data_epochs=0)
    Watched.seen.clear()
    results = run(make_tasks(settings, synthetic=stored, factory=Watched, augment=DSA("none")))
    abouts = [result.about for result in results]
    assert [(about["row"], about["images"]) for about in abouts] == [("distilled", [9]), ("random real", [9])]
    # 3 + 9 stored images: as many steps as two phases.
    assert [len(batch) for batch in Watched.seen] == [36, 36, 9, 9]
    assert image_set(Watched.seen[0]) == image_set(stored.decoded(blobs.pixels).images)


@pytest.fixture
def experts(subject, tmp_path):
    """Two experts, recorded with the seed of the evaluation."""
    settings = ExpertSettings(number=2, batch_size=16)
    recorder = ExpertRecorder(
        subject.factory, subject.real, settings, subject.augment, subject.seed, subject.device, progress=False
    )
    return recorder.record(tmp_path / "theta_0", epochs=1)


def test_networks_begin_where_experts_began_if_asked_to_and_nowhere_near_otherwise(make_tasks, experts, monkeypatch):
    begins = []
    train = subject_module.train_network

    def watch(network, *rest):
        begins.append(flatten(dict(network.named_parameters())).detach().clone())
        return train(network, *rest)

    monkeypatch.setattr(subject_module, "train_network", watch)
    settings = replace(ALONE, protocols=("union",), expert_inits=True)
    results = run(make_tasks(settings, experts=experts.folder))
    assert [(result.about["row"], result.about["init"], result.number) for result in results] == [
        *[("distilled", "fresh", number) for number in range(3)],
        *[("distilled, experts' inits", "expert", number) for number in range(2)],  # no more than there are experts
    ]
    starts = [experts.segment(expert, 0, 0)[0] for expert in range(2)]
    assert all(torch.equal(begin, start) for begin, start in zip(begins[3:], starts, strict=True))
    assert min(float((begin - start).norm()) for begin in begins[:3] for start in starts) > 1


def test_experts_that_are_missing_or_of_another_network_are_refused_before_anything_is_trained(
    make_tasks, experts, tmp_path
):
    settings = replace(ALONE, expert_inits=True)
    with pytest.raises(ConfigError, match="name their folder"):
        make_tasks(settings)
    with pytest.raises(ConfigError, match="none holds no expert trajectories"):
        make_tasks(settings, experts=tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot fill a network"):
        make_tasks(settings, experts=experts.folder, factory=partial(ConvNet, depth=1, width=4))


def test_augmentation_is_the_sets_own_unless_another_is_chosen(make_tasks):
    settings = replace(ALONE, num_networks=1)
    own, none = run([*make_tasks(settings), *make_tasks(replace(settings, augment="none"))])
    assert (own.about["augment"], none.about["augment"]) == ("color_crop", "none")
    assert own.scores != none.scores


def test_herding_is_computed_once_and_kept(make_tasks, tmp_path, monkeypatch):
    settings = replace(SETTINGS, num_networks=2, baselines=("herding",))
    trained = []
    train = subject_module.train_network
    monkeypatch.setattr(subject_module, "train_network", lambda *rest: (trained.append(1), train(*rest)))
    path = tmp_path / "results.jsonl"
    first = run(make_tasks(settings)[2:4], ResultStore(path))
    assert len(trained) == 1 + 2 * 2  # herding's network, and two of two phases
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "scores" not in line))
    assert run(make_tasks(settings)[2:4], ResultStore(path)) == first
    assert len(trained) == 1 + 2 * 2 + 2 * 2


def test_finished_networks_are_not_trained_again(make_tasks, results, tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    run(make_tasks()[:5], ResultStore(path))
    assert run(make_tasks(), ResultStore(path)) == results
    monkeypatch.setattr(subject_module, "train_network", None)
    assert run(make_tasks(), ResultStore(path)) == results


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"part": "val"},
        {"augment": DSA("crop")},
        {"factory": partial(ConvNet, depth=1, width=8)},
        {"synthetic": None},
        {"pixels": Standardized([0.5] * 3, [0.2] * 3)},
        {"settings": replace(ALONE, lr=0.06)},
        {"settings": replace(ALONE, batch_size=8)},
        {"settings": replace(ALONE, epochs=5)},
        {"settings": replace(ALONE, weight_decay=0.0)},
        {"settings": replace(ALONE, milestones=(0.25,))},
        {"settings": replace(ALONE, protocols=("union",))},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_depends_on_something_else_is_not_taken(changed, make_tasks, staged_blobs):
    store = ResultStore()
    run(make_tasks(ALONE), store)
    if "synthetic" in changed:
        changed = {"synthetic": replace(staged_blobs, images=staged_blobs.images + 1e-4)}
    tasks = make_tasks(**{"settings": ALONE, **changed})
    assert [store.get(task.depends_on) for task in tasks] == [None] * 3


def test_more_networks_are_added_to_those_that_are_there(make_tasks):
    store = ResultStore()
    run(make_tasks(ALONE), store)
    tasks = make_tasks(replace(SETTINGS, num_networks=4))
    assert [store.get(task.depends_on) is not None for task in tasks[:4]] == [True] * 3 + [False]


def test_the_ranking_trains_what_its_scores_need(subject, staged_blobs):
    soft = torch.full((9, 3), 0.1).scatter_(1, staged_blobs.labels[:, None], 0.8)
    settings = replace(SETTINGS, num_networks=1, protocols=("progressive", "union"))
    tasks = ranking_tasks(replace(subject, synthetic=replace(staged_blobs, labels=soft)), settings)
    abouts = [result.about for result in run(tasks)]
    assert {(about["row"], about["protocol"], about["augment"]) for about in abouts[5:]} == {
        ("distilled, hard labels", "progressive", "color_crop"),
        ("distilled, no augmentation", "progressive", "none"),
        ("random real, no augmentation", "progressive", "none"),
    }
    assert {about["row"]: about["labels"] for about in abouts} == {
        "distilled": "soft",
        "random real": "hard",
        "full real": "hard",
        "distilled, hard labels": "hard",
        "distilled, no augmentation": "soft",
        "random real, no augmentation": "hard",
    }
    with pytest.raises(ConfigError, match="full_data_epochs"):
        evaluate(subject, ALONE, ranking=True)
    plain = replace(subject, augment=DSA("none"))
    with pytest.raises(ConfigError, match="with and without augmentation"):
        evaluate(plain, SETTINGS, ranking=True)
    assert ranking_tasks(plain, replace(SETTINGS, augment="crop"))
    assert ranking_tasks(plain, replace(SETTINGS, cutmix=0.5))


def test_the_ranking_of_hard_labels_needs_no_others(subject):
    rows = [task.depends_on["about"]["row"] for task in ranking_tasks(subject, replace(SETTINGS, num_networks=1))]
    plain = ["distilled, no augmentation", "random real, no augmentation"]
    assert rows == ["distilled", "random real", "full real", *plain]


def test_times_add_up_over_the_phases_and_are_those_of_the_work(make_tasks):
    begin = time.perf_counter()
    (value,) = run_tasks(make_tasks(replace(ALONE, num_networks=1)), ResultStore(), progress=False)
    first, second = value["seconds"]
    assert 0 < first < second < time.perf_counter() - begin


def test_scores_of_the_ranking_come_from_the_rows():
    """IOR 0.7 - 0.4, HLR 0.9 - 0.6: nothing is gained. Augmented 0.3, plain 0.5 - 0.6: 0.1 is gained."""
    accuracies = {
        "distilled": 0.7,
        "distilled, hard labels": 0.6,
        "random real": 0.4,
        "full real": 0.9,
        "distilled, no augmentation": 0.5,
        "random real, no augmentation": 0.6,
    }
    rows = [{"row": row, "mean": mean, "stage": 2, "num_stages": 2} for row, mean in accuracies.items()]
    rows += [{"row": "distilled", "mean": 0.1, "stage": 2, "num_stages": 2}]  # of a second protocol
    rows.insert(0, {"row": "distilled", "mean": 0.2, "stage": 1, "num_stages": 2})
    scores = ranking_scores(rows)
    assert scores["label_robust_score"] == pytest.approx(0.26894, abs=1e-5)
    assert scores["augmentation_robust_score"] == pytest.approx((1.105171 - 0.367879) / 2.350402, abs=1e-5)
    assert json.loads(json.dumps(scores)) == scores
