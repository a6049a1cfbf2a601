import math

import pytest
import torch

from pdd_lightning.metrics.separability import centroid_silhouette, label_confidence, nearest_distance

CENTROIDS = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 100.0]])


@pytest.mark.parametrize(
    ("point", "label", "expected"),
    [
        ([0.0, 0.0], 0, 1.0),
        ([2.0, 0.0], 0, 0.0),
        ([1.0, 0.0], 0, 2 / 3),
        ([1.0, 0.0], 1, -2 / 3),
        ([0.0, 0.0], 2, -1.0),
    ],
)
def test_silhouettes_by_hand(point, label, expected):
    value = centroid_silhouette(torch.tensor([point]), torch.tensor([label]), CENTROIDS)
    assert float(value) == pytest.approx(expected)


def test_classes_on_the_same_spot_are_not_told_apart():
    assert float(centroid_silhouette(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(2, 2))) == 0


def test_silhouettes_are_those_of_scikit_learn_where_classes_are_points():
    """With each class in one spot, distances to centroids are distances to all members."""
    from sklearn.metrics import silhouette_samples

    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    expected = silhouette_samples(CENTROIDS[labels].numpy(), labels.numpy())
    value = centroid_silhouette(CENTROIDS[labels], labels, CENTROIDS)
    assert value.tolist() == pytest.approx(expected.tolist())


def test_confidence_is_the_probability_of_the_label():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    assert label_confidence(logits, torch.tensor([0, 1])).tolist() == pytest.approx([0.75, 0.5])
    assert label_confidence(logits, torch.tensor([1, 1])).tolist() == pytest.approx([0.25, 0.5])


def test_the_nearest_of_the_same_class_counts_per_pixel():
    references = torch.stack([torch.full((3, 2, 2), value) for value in (0.0, 0.4, 0.9)])
    images = torch.stack([torch.full((3, 2, 2), value) for value in (0.8, 0.8, 0.4)])
    distances = nearest_distance(images, torch.tensor([0, 1, 0]), references, torch.tensor([0, 0, 1]))
    assert distances.tolist() == pytest.approx([0.4, 0.1, 0.0])


def test_a_class_without_references_is_infinitely_far():
    assert nearest_distance(torch.ones(1, 4), torch.tensor([2]), torch.ones(1, 4), torch.tensor([0])).isinf().all()
