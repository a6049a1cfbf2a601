import pytest
import torch

from pdd_lightning.data.splits import to_unit
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import DataError
from pdd_lightning.evaluation.baselines import random_real_set


def like(*per_class, shape=(3, 8, 8)):
    """A set of one stage per number, with so many images of each of three classes."""
    synthetic = SyntheticSet.empty(shape)
    for count in per_class:
        labels = torch.arange(3).repeat(count)
        synthetic = synthetic.append(torch.zeros(len(labels), *shape), labels, 0.02)
    return synthetic


def positions(images, real, pixels):
    """Where each image stands in the train part."""
    train = pixels.encode(to_unit(real.train.images)).flatten(1)
    distances = torch.cdist(images.flatten(1), train, compute_mode="donot_use_mm_for_euclid_dist")
    assert bool((distances.min(1).values < 1e-5).all())
    return distances.argmin(1)


def test_labels_and_stages_are_those_of_the_set(blobs):
    wanted = like(1, 3)
    chosen = random_real_set(blobs, blobs.pixels, wanted, 0)
    assert torch.equal(chosen.labels, wanted.labels) and torch.equal(chosen.stages, wanted.stages)
    assert chosen.learning_rates == (None, None)


def test_images_are_training_images_of_the_right_classes_without_repeats(blobs):
    chosen = random_real_set(blobs, blobs.pixels, like(1, 3, 2), 0)
    found = positions(chosen.images, blobs, blobs.pixels)
    assert len(set(found.tolist())) == len(chosen) == 18
    assert torch.equal(blobs.train.labels[found], chosen.labels)


def test_a_whole_class_can_be_taken(blobs):
    count = int(blobs.train.class_counts(3)[0])
    chosen = random_real_set(blobs, blobs.pixels, like(count), 0)
    assert sorted(positions(chosen.images, blobs, blobs.pixels).tolist()) == list(range(3 * count))


def test_the_seed_decides(blobs):
    images = [random_real_set(blobs, blobs.pixels, like(2), seed).images for seed in (0, 0, 1)]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_images_lie_in_the_pixel_space_that_is_asked_for(blobs):
    from tests.tiny import Blobs

    other = Blobs(normalization="zca")
    other.setup()
    chosen = random_real_set(blobs, other.pixels, like(2), 0)
    standard = random_real_set(blobs, blobs.pixels, like(2), 0)
    torch.testing.assert_close(
        other.pixels.decode(chosen.images), blobs.pixels.decode(standard.images), atol=1e-4, rtol=0
    )
    assert not torch.allclose(chosen.images, standard.images, atol=0.1)


def test_soft_labels_count_by_their_likeliest_class(blobs):
    labels = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.2, 0.3]])
    soft = SyntheticSet.empty((3, 8, 8)).append(torch.zeros(2, 3, 8, 8), labels)
    chosen = random_real_set(blobs, blobs.pixels, soft, 0)
    assert chosen.labels.tolist() == [1, 0]
    assert blobs.train.labels[positions(chosen.images, blobs, blobs.pixels)].tolist() == [1, 0]


def test_a_class_that_is_too_small_is_named(blobs):
    count = int(blobs.train.class_counts(3)[0])
    with pytest.raises(DataError, match=rf"class 'red' has {count} training images, fewer than the {count + 1} "):
        random_real_set(blobs, blobs.pixels, like(count, 1), 0)
