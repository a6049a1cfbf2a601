import io
from dataclasses import replace

import pytest
import torch

from pdd_lightning.augment import decode
from pdd_lightning.data.pixels import Standardized
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import DataError
from pdd_lightning.files import sha256_of_tensors


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
        staged_set = SyntheticSet.empty((3, 4, 4)).append(images, torch.rand(2, 6).softmax(1), 0.1)
    file = io.BytesIO()
    torch.save(staged_set.state_dict(), file)
    file.seek(0)
    loaded = SyntheticSet.from_state_dict(torch.load(file, weights_only=True))
    assert loaded.sha256() == staged_set.sha256()
    assert loaded.learning_rates == staged_set.learning_rates


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


@pytest.fixture
def tiled_set(staged_set):
    """The staged set, each image standing for four."""
    return replace(staged_set, decode_factor=2)


SPACE = Standardized([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])


def test_the_factor_is_kept(tiled_set):
    grown = tiled_set.append(torch.randn(2, 3, 4, 4), torch.tensor([1, 1]))
    kept = (grown, grown.stage(3), grown.union(1), grown.to("cpu"), SyntheticSet.from_state_dict(grown.state_dict()))
    assert [each.decode_factor for each in kept] == [2] * 5
    assert SyntheticSet.empty((3, 4, 4), decode_factor=3).decode_factor == 3


def test_the_factor_counts_in_the_hash_but_one_goes_without_saying(staged_set, tiled_set):
    assert len({staged_set.sha256(), tiled_set.sha256(), replace(staged_set, decode_factor=3).sha256()}) == 3
    tensors = {name: value for name, value in staged_set.state_dict().items() if isinstance(value, torch.Tensor)}
    assert staged_set.sha256() == sha256_of_tensors({**tensors, "learning_rates": staged_set.rates_tensor()})


def test_the_state_of_an_older_checkpoint_has_no_factor(staged_set):
    state = staged_set.state_dict()
    del state["decode_factor"]
    assert SyntheticSet.from_state_dict(state).decode_factor == 1


def test_decoding_gives_what_networks_are_trained_on(tiled_set):
    decoded = tiled_set.decoded(SPACE)
    images, labels = decode(tiled_set.images, tiled_set.labels, 2)
    assert torch.equal(decoded.images, images) and torch.equal(decoded.labels, labels)
    assert decoded.decode_factor == 1 and decoded.decoded(SPACE) is decoded
    assert (decoded.num_stages, decoded.learning_rates) == (2, (0.02, None))
    for stage in (1, 2):
        assert tiled_set.union(stage).decoded(SPACE).sha256() != tiled_set.union(stage).sha256()
        assert tiled_set.stage(stage).decoded(SPACE).sha256() == decoded.stage(stage).sha256()
        assert tiled_set.union(stage).decoded(SPACE).labels.tolist() == decoded.union(stage).labels.tolist()


def test_padding_is_gray_in_model_space():
    """Five pixels are no multiple of three."""
    images, labels = torch.rand(2, 3, 5, 5), torch.tensor([0, 1])
    decoded = SyntheticSet.empty((3, 5, 5), 3).append(SPACE.encode(images), labels).decoded(SPACE)
    unit, _ = decode(images, labels, 3)
    torch.testing.assert_close(SPACE.decode(decoded.images), unit, rtol=1e-5, atol=1e-5)
