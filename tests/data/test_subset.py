import pytest
import torch

from pdd_lightning.data.standard_sets import Digits
from pdd_lightning.data.subset import ClassSubset, ClassTask, split_classes
from pdd_lightning.errors import ConfigError
from tests.tiny import Blobs


def loaded(data):
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture(scope="module")
def subset(blobs):
    return loaded(ClassSubset(blobs, ["blue", "red"]))


PARTS = ("train", "val", "test")


def test_classes_are_renumbered_in_the_order_given(subset):
    assert subset.class_names == ["blue", "red"] and subset.num_classes == 2
    blue = subset.train.images[subset.train.labels == 0].float().mean((0, 2, 3))
    red = subset.train.images[subset.train.labels == 1].float().mean((0, 2, 3))
    assert blue.argmax() == 2 and red.argmax() == 0


@pytest.mark.parametrize("part", PARTS)
def test_images_stay_in_the_part_that_they_have_in_the_whole(blobs, subset, part):
    whole, some = getattr(blobs, part), getattr(subset, part)
    members = (whole.labels != 1).nonzero().flatten()
    assert torch.equal(some.indices, whole.indices[members])
    assert torch.equal(some.images, whole.images[members])
    assert torch.equal(some.labels, (whole.labels[members] == 0).long())


def test_the_pixel_space_is_that_of_the_subset(blobs, subset):
    encoded = subset.pixels.encode(subset.train.images.float() / 255)
    torch.testing.assert_close(encoded.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    assert not torch.allclose(subset.pixels.mean, blobs.pixels.mean)


def test_the_normalization_of_the_whole_is_kept():
    assert loaded(ClassSubset(Blobs(normalization="zca"), [0, 1])).pixels.kind == "zca"


def test_published_statistics_are_kept(monkeypatch):
    monkeypatch.setattr(Blobs, "PUBLISHED_MEAN", (0.1, 0.2, 0.3))
    monkeypatch.setattr(Blobs, "PUBLISHED_STD", (1.0, 2.0, 3.0))
    assert loaded(ClassSubset(Blobs(), [0, 1])).pixels.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_labels_and_names_mean_the_same(blobs, subset):
    assert loaded(ClassSubset(blobs, [2, 0])).fingerprint == subset.fingerprint


def test_each_choice_has_a_fingerprint_of_its_own(blobs, subset):
    others = [["red", "blue"], ["red", "green"], ["red", "green", "blue"]]
    prints = {subset.fingerprint, blobs.fingerprint, *(loaded(ClassSubset(blobs, o)).fingerprint for o in others)}
    assert len(prints) == 4  # all classes in their own order are the whole set


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["red"], "at least two"),
        (["red", "violet"], "no class 'violet': the classes are red, green, blue"),
        (["red", 3], "no class 3"),
        (["red", 0], "twice"),
    ],
)
def test_classes_that_cannot_be_picked_are_refused(blobs, classes, message):
    with pytest.raises(ConfigError, match=message):
        loaded(ClassSubset(blobs, classes))


@pytest.mark.parametrize(("count", "tasks"), [(10, 5), (10, 3), (7, 3), (2, 1)])
def test_tasks_share_the_classes_out(count, tasks):
    parts = split_classes(count, tasks, 0)
    assert len(parts) == tasks and sorted(label for part in parts for label in part) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_seed_decides_on_the_order():
    assert split_classes(10, 5, 0) == split_classes(10, 5, 0) != split_classes(10, 5, 1)


def test_too_many_tasks_are_refused(blobs):
    with pytest.raises(ConfigError, match="2 tasks of at least two classes need 4 classes, there are 3"):
        loaded(ClassTask(blobs, 2, 1))


@pytest.mark.parametrize("task", [0, 3])
def test_a_task_that_does_not_exist_is_refused(blobs, task):
    with pytest.raises(ConfigError, match="from 1 to 2"):
        ClassTask(blobs, 2, task)


def test_a_task_has_its_share():
    task = loaded(ClassTask(Digits(), 5, 2, order_seed=3))
    assert task.class_names == [str(label) for label in split_classes(10, 5, 3)[1]]
    assert task.name == "Digits, task 2 of 5"
