import io

import pytest
import torch

from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import DataError


def test_a_new_set_is_empty():
    empty = SyntheticSet.empty((3, 4, 4))
    assert (len(empty), empty.num_stages, empty.images.shape) == (0, 0, (0, 3, 4, 4))


def test_appending_adds_a_stage_and_leaves_the_old_set_alone(staged_set):
    images, labels = torch.randn(2, 3, 4, 4), torch.tensor([1, 1])
    grown = staged_set.append(images, labels, learning_rate=0.5)
    assert (staged_set.num_stages, grown.num_stages) == (2, 3)
    assert grown.stages.tolist() == [1, 1, 1, 2, 2, 2, 3, 3]
    assert grown.learning_rates == (0.02, None, 0.5)
    assert torch.equal(grown.images[:6], staged_set.images)
    assert torch.equal(grown.stage(3).images, images)


def test_appended_images_are_copies_without_a_graph():
    images = torch.randn(1, 3, 4, 4, requires_grad=True)
    labels = torch.ones(1, 5)
    grown = SyntheticSet.empty((3, 4, 4)).append(images, labels)
    before = grown.sha256()
    with torch.no_grad():
        images.zero_()
        labels.zero_()
    assert not grown.images.requires_grad
    assert grown.sha256() == before


def test_stage_and_union(staged_set):
    first, second = staged_set.stage(1), staged_set.stage(2)
    assert torch.equal(first.images, staged_set.images[:3]) and first.learning_rates == (0.02,)
    assert torch.equal(second.labels, staged_set.labels[3:]) and second.learning_rates == (0.02, None)
    assert second.stages.tolist() == [2, 2, 2]
    assert staged_set.union(1).sha256() == first.sha256()
    assert staged_set.union(2).sha256() == staged_set.sha256()


@pytest.mark.parametrize("index", [0, 3, -1])
@pytest.mark.parametrize("method", ["stage", "union"])
def test_a_stage_that_does_not_exist_is_an_index_error(staged_set, method, index):
    with pytest.raises(IndexError, match=f"stage {index} does not exist.*stages 1 to 2"):
        getattr(staged_set, method)(index)


def test_an_empty_set_has_no_stage():
    with pytest.raises(IndexError, match="no stage yet"):
        SyntheticSet.empty((3, 4, 4)).union(1)


@pytest.mark.parametrize("soft", [False, True])
def test_the_state_survives_a_checkpoint(staged_set, soft):
    if soft:
        images = torch.randn(2, 3, 4, 4)
        staged_set = SyntheticSet.empty((3, 4, 4)).append(images, torch.rand(2, 6), 0.1)
    file = io.BytesIO()
    torch.save(staged_set.state_dict(), file)
    file.seek(0)
    loaded = SyntheticSet.from_state_dict(torch.load(file, weights_only=True))
    assert loaded.sha256() == staged_set.sha256()
    assert loaded.learning_rates == staged_set.learning_rates


def test_a_state_without_an_entry_is_refused(staged_set):
    state = staged_set.state_dict()
    del state["stages"]
    with pytest.raises(DataError, match="lacks stages"):
        SyntheticSet.from_state_dict(state)


def test_the_empty_set_survives_a_checkpoint():
    empty = SyntheticSet.empty((1, 8, 8))
    assert SyntheticSet.from_state_dict(empty.state_dict()).images.shape == (0, 1, 8, 8)


def test_the_hash_sees_every_field(staged_set):
    def variant(**changes):
        return SyntheticSet(**{**staged_set.state_dict(), **changes}).sha256()

    variants = {
        variant(learning_rates=(0.02, 0.02)),
        variant(images=staged_set.images + 1),
        variant(labels=staged_set.labels + 1),
        variant(stages=staged_set.stages.flip(0)),
    }
    assert variant() == staged_set.sha256()
    assert len(variants - {staged_set.sha256()}) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_set_on_a_gpu_has_the_same_content(staged_set):
    moved = staged_set.to("cuda")
    assert moved.images.is_cuda and moved.labels.is_cuda and moved.stages.is_cuda
    assert moved.sha256() == staged_set.sha256()
    assert moved.append(staged_set.images, staged_set.labels).stage(3).images.is_cuda


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 5, 5), torch.zeros(2, dtype=torch.int64), r"shape \[3, 4, 4\], got \[3, 5, 5\]"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(3, dtype=torch.int64), "like the 2 images"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2), "labels must be"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 5), "labels of earlier stages are torch.int64"),
        (torch.zeros(2, 3, 4, 4).double(), torch.zeros(2, dtype=torch.int64), "float32"),
        (torch.zeros(0, 3, 4, 4), torch.zeros(0, dtype=torch.int64), "at least one image"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(staged_set, images, labels, message):
    with pytest.raises(DataError, match=message):
        staged_set.append(images, labels)


def test_stages_must_agree_with_the_learning_rates(staged_set):
    state = staged_set.state_dict()
    for change in ({"learning_rates": (0.1,)}, {"stages": staged_set.stages - 1}):
        with pytest.raises(DataError, match="learning rates need images of stages"):
            SyntheticSet(**{**state, **change})
