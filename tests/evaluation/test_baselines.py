import pytest
import torch
from torch import nn

from pdd_lightning.data.splits import to_unit
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.evaluation.baselines import (
    check_counts,
    chosen_set,
    features_before_classifier,
    herding_choice,
    kmeans_set,
    random_choice,
)
from tests.tiny import Blobs


def random_real_set(real, pixels, wanted, seed):
    return chosen_set(real, pixels, wanted, random_choice(real, wanted, seed))


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
        check_counts(blobs, like(count, 1))
    check_counts(blobs, like(count))


@pytest.fixture(scope="module")
def five():
    """Five training images of each class."""
    data = Blobs(train_per_class=7)
    data.setup()
    return data


def test_herding_follows_the_class_mean(five):
    """Features -3, -1, 0, 1, 8 of mean 1. Means of the chosen: 1, 0.5, 0, then 2 by the 8 rather than -0.75."""
    features = torch.zeros(15, 1)
    for label in range(3):
        features[five.train.images_of_class(label), 0] = torch.tensor([-3.0, -1, 0, 1, 8])
    wanted = like(1, 3)
    chosen = herding_choice(five, wanted, features)
    for label in range(3):
        places = wanted.labels == label
        assert features[chosen[places], 0].tolist() == [1, 0, -1, 8]
        assert torch.equal(five.train.labels[chosen[places]], wanted.labels[places])


def test_centres_of_kmeans_are_means_of_clusters_and_the_largest_comes_first():
    """Three near-black images, and two near-white ones, of each class."""
    data = Blobs(train_per_class=7)
    data.setup()
    levels = torch.tensor([0, 200, 10, 240, 20], dtype=torch.uint8)
    for label in range(3):
        data.train.images[data.train.images_of_class(label)] = levels.view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    wanted = like(1, 1)
    centres = kmeans_set(data, data.pixels, wanted, 0)
    shown = data.pixels.decode(centres.images).mean((1, 2, 3)) * 255
    torch.testing.assert_close(shown, torch.tensor([10.0] * 3 + [220.0] * 3), atol=1e-2, rtol=0)
    assert centres.labels.tolist() == [0, 1, 2] * 2 and centres.stages.tolist() == [1] * 3 + [2] * 3
    assert torch.equal(kmeans_set(data, data.pixels, wanted, 0).images, centres.images)


def test_features_are_what_the_classifier_is_given(blobs, factory):
    network = factory(3, 3, 8)
    images = torch.rand(5, 3, 8, 8)
    features = features_before_classifier(network, images, batch_size=2)
    torch.testing.assert_close(network.classifier(features), network(images))
    with pytest.raises(ConfigError, match="Flatten has no linear layer"):
        features_before_classifier(nn.Flatten(), images)
