from dataclasses import replace

import pytest
import torch
from sklearn.cluster import KMeans

from pdd_lightning.augment import DSA
from pdd_lightning.data.splits import to_unit
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import DataError
from pdd_lightning.evaluation import Subject
from pdd_lightning.evaluation.baselines import check_counts, herding_choice, kmeans_set, random_set
from tests.tiny import Blobs


@pytest.fixture
def like(blobs, factory):
    """Makes a subject whose set has one stage per number, with so many images of each of three classes."""

    def make(*per_class, real=blobs, pixels=blobs.pixels):
        synthetic = SyntheticSet.empty((3, 8, 8))
        for count in per_class:
            labels = torch.arange(3).repeat(count)
            synthetic = synthetic.append(torch.zeros(len(labels), 3, 8, 8), labels, 0.02)
        return Subject(synthetic, real, pixels, factory, DSA())

    return make


def indices_of(images, real):
    """Indices of images in the train part."""
    train = real.pixels.encode(to_unit(real.train.images)).flatten(1)
    distances = torch.cdist(images.flatten(1), train, compute_mode="donot_use_mm_for_euclid_dist")
    assert bool((distances.min(1).values < 1e-5).all())
    return distances.argmin(1)


def test_labels_and_stages_are_those_of_the_set(like):
    subject = like(1, 3)
    chosen = random_set(subject, 0)
    assert torch.equal(chosen.labels, subject.synthetic.labels) and torch.equal(chosen.stages, subject.synthetic.stages)
    assert chosen.learning_rates == (None, None)


def test_images_are_training_images_of_the_right_classes_without_repeats(blobs, like):
    chosen = random_set(like(1, 3, 2), 0)
    found = indices_of(chosen.images, blobs)
    assert len(set(found.tolist())) == len(chosen) == 18
    assert torch.equal(blobs.train.labels[found], chosen.labels)


def test_a_whole_class_can_be_taken(blobs, like):
    count = int(blobs.train.class_counts(3)[0])
    subject = like(count)
    check_counts(subject)
    assert sorted(indices_of(random_set(subject, 0).images, blobs).tolist()) == list(range(3 * count))


def test_a_class_that_is_too_small_is_named(blobs, like):
    count = int(blobs.train.class_counts(3)[0])
    with pytest.raises(DataError, match=rf"class 'red' has {count} training images, fewer than the {count + 1} "):
        check_counts(like(count, 1))


def test_the_seed_decides(like):
    images = [random_set(like(2), seed).images for seed in (0, 0, 1)]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_images_lie_in_the_pixel_space_that_is_asked_for(blobs, like):
    other = Blobs(normalization="zca")
    other.setup()
    chosen, standard = random_set(like(2, pixels=other.pixels), 0), random_set(like(2), 0)
    shown, expected = other.pixels.decode(chosen.images), blobs.pixels.decode(standard.images)
    torch.testing.assert_close(shown, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(chosen.images, standard.images, atol=0.1)


def test_soft_labels_count_by_their_likeliest_class(blobs, like):
    labels = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.2, 0.3]])
    soft = SyntheticSet.empty((3, 8, 8)).append(torch.zeros(2, 3, 8, 8), labels)
    chosen = random_set(replace(like(1), synthetic=soft), 0)
    assert chosen.labels.tolist() == [1, 0]
    assert blobs.train.labels[indices_of(chosen.images, blobs)].tolist() == [1, 0]


@pytest.fixture
def five():
    """Five training images of each class."""
    data = Blobs(train_per_class=7)
    data.setup()
    return data


def test_herding_follows_the_class_mean(five, like):
    """Features -3, -1, 0, 1, 8 of mean 1. Means of the chosen: 1, 0.5, 0, then 2 by the 8 rather than -0.75."""
    features = torch.zeros(15, 1)
    for label in range(3):
        features[five.train.images_of_class(label), 0] = torch.tensor([-3.0, -1, 0, 1, 8])
    subject = like(1, 3, real=five)
    chosen, labels = herding_choice(subject, features), subject.synthetic.labels
    for label in range(3):
        member = labels == label
        assert features[chosen[member], 0].tolist() == [1, 0, -1, 8]
        assert torch.equal(five.train.labels[chosen[member]], labels[member])


def test_centres_of_kmeans_are_means_of_clusters_and_the_largest_comes_first(five, like):
    """Three near-black images, and two near-white ones, of each class."""
    levels = torch.tensor([0, 200, 10, 240, 20], dtype=torch.uint8)
    for label in range(3):
        five.train.images[five.train.images_of_class(label)] = levels.view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    subject = like(1, 1, real=five, pixels=five.pixels)
    centres = kmeans_set(subject)
    shown = five.pixels.decode(centres.images).mean((1, 2, 3)) * 255
    torch.testing.assert_close(shown, torch.tensor([10.0] * 3 + [220.0] * 3), atol=1e-2, rtol=0)
    assert centres.labels.tolist() == [0, 1, 2] * 2 and centres.stages.tolist() == [1] * 3 + [2] * 3
    assert torch.equal(kmeans_set(subject).images, centres.images)


def test_each_class_and_seed_has_a_kmeans_of_its_own(five, like, monkeypatch):
    states = []

    def seeded(clusters, random_state):
        states.append(random_state)
        return KMeans(clusters, random_state=random_state)

    monkeypatch.setattr("sklearn.cluster.KMeans", seeded)
    for seed in (0, 1, 0):
        kmeans_set(replace(like(1, 1, real=five, pixels=five.pixels), seed=seed))
    assert len(set(states)) == 6 and states[:3] == states[6:]
