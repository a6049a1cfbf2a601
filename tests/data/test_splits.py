import pytest
import torch

from pdd_lightning.data import ClassSampler, EncodedImages, ImageSplit, Standardized, by_class, splits
from pdd_lightning.data.splits import stratified_holdout
from pdd_lightning.errors import DataError

NAMES = ["a", "b"]


def make_split(counts):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).flip(0)
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImageSplit.in_order(images, labels)


def test_a_holdout_is_stratified_and_disjoint():
    split = make_split([40, 20])
    kept, held = stratified_holdout(split, 0.25, seed=3, class_names=NAMES, purpose="validation")
    assert held.class_counts(2).tolist() == [10, 5]
    assert torch.cat([kept.indices, held.indices]).sort().values.tolist() == list(range(60))
    for part in (kept, held):
        assert part.images.flatten().tolist() == part.indices.tolist()
        assert torch.equal(part.labels, split.labels[part.indices])


def test_every_class_is_on_both_sides_however_small():
    kept, held = stratified_holdout(make_split([2, 3]), 0.01, 0, NAMES, "validation")
    assert held.class_counts(2).tolist() == [1, 1]
    kept, held = stratified_holdout(make_split([2, 3]), 0.99, 0, NAMES, "validation")
    assert kept.class_counts(2).tolist() == [1, 1]


def test_the_seed_decides_the_holdout():
    def held(seed):
        return stratified_holdout(make_split([30, 30]), 0.2, seed, NAMES, "test")[1].indices.tolist()

    assert held(1) == held(1) != held(2)


@pytest.mark.parametrize("count", [0, 1])
def test_a_class_too_small_to_cut_is_named_with_its_count(count):
    with pytest.raises(DataError, match=rf"'b' has {count} image.*validation"):
        stratified_holdout(make_split([5, count]), 0.1, 0, NAMES, "validation")


def test_images_of_a_class_are_found_by_their_indices_in_the_part():
    part = make_split([3, 4]).subset(torch.tensor([6, 0, 5]))
    assert part.images_of_class(0).tolist() == [0, 2]
    assert part.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize("encoded_once", [True, False])
def test_encoded_images_equal_encoding_the_batch(encoded_once, monkeypatch):
    monkeypatch.setattr(splits, "_CHUNK_SIZE", 4)
    if not encoded_once:
        monkeypatch.setattr(splits, "_MAX_ENCODED_BYTES", 0)
    calls = []

    class Counting(Standardized):
        def encode(self, images):
            calls.append(len(images))
            return super().encode(images)

    images = torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8)
    space = Counting([0.5, 0.5, 0.5], [0.2, 0.3, 0.4])
    resident = EncodedImages(images, space)
    wanted = torch.tensor([9, 0, 9])
    batch = resident[wanted]
    expected = Standardized(space.mean, space.std).encode(images[wanted].float() / 255)
    torch.testing.assert_close(batch, expected, atol=1e-6, rtol=0)
    assert len(resident) == 10
    assert calls == ([4, 4, 2] if encoded_once else [3])


def shuffled(counts):
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    return ImageSplit.in_order(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), labels)


def test_rows_are_different_images_of_their_class():
    part = shuffled([6, 2, 4])
    drawn = ClassSampler(part, 3, Standardized([0.5], [0.5])).draw(4, torch.Generator().manual_seed(1))
    assert drawn.counts == [4, 2, 4] and drawn.indices.shape == (3, 4)
    for label in range(3):
        row = drawn.of_class(label)
        assert len(set(row.tolist())) == drawn.counts[label]
        assert (part.labels[drawn.indices[label]] == label).all()
    torch.testing.assert_close(drawn.weights()[1], torch.tensor([0.5, 0.5, 0.0, 0.0]))
    torch.testing.assert_close(drawn.weights().sum(1), torch.ones(3))
    assert part.labels[drawn.joint(3)].tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


def test_other_generators_draw_others():
    sampler = ClassSampler(shuffled([50, 50]), 2, Standardized([0.5], [0.5]))
    first, second = (sampler.draw(5, torch.Generator().manual_seed(seed)).indices for seed in (1, 2))
    assert not torch.equal(first, second)


def test_synthetic_images_are_sorted_by_class_in_their_order():
    images = torch.arange(6.0).view(6, 1, 1, 1)
    sorted_images = by_class(images, torch.tensor([0, 1, 2, 0, 1, 2]), 3)
    assert sorted_images.flatten(1).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert by_class(images[:0], torch.zeros(0, dtype=torch.int64), 3).shape == (3, 0, 1, 1, 1)
