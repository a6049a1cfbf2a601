"""How clearly images show their class to a network, and how far they are from real ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def centroid_silhouette(features: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    """Simplified silhouette of each example `[N]` in [-1, 1]: clear of its class is 1, between two classes 0.

    With a the Euclidean distance to the centroid of its own class and b that to the nearest other one,
    (b - a) / max(a, b); 0 where both are 0. Negative: nearest-centroid classification gets it wrong. The centroids are
    given, so that sets with a single example per class can be judged by those of a large one.

    Args:
        features: `[N, F]`.
        labels: Classes `[N]`.
        centroids: Mean features of each class `[classes, F]`, at least two classes.

    Reference:
        Rousseeuw, "Silhouettes: A Graphical Aid to the Interpretation and Validation of Cluster Analysis", Journal of
        Computational and Applied Mathematics, 1987; with centroids: Hruschka, de Castro and Campello, "Evolutionary
        Algorithms for Clustering Gene-Expression Data", ICDM 2004.
    """
    distances = torch.cdist(features, centroids, compute_mode="donot_use_mm_for_euclid_dist")
    own = distances.gather(1, labels[:, None]).squeeze(1)
    other = distances.scatter(1, labels[:, None], torch.inf).amin(1)
    larger = torch.maximum(own, other)
    return torch.where(larger > 0, (other - own) / larger, 0.0)


def label_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Probability `[N]` that a network gives each example's label: softmax of its logits at the label.

    Args:
        logits: `[N, classes]`.
        labels: Classes `[N]`.
    """
    return logits.softmax(1).gather(1, labels[:, None]).squeeze(1)


def nearest_distance(images: Tensor, labels: Tensor, references: Tensor, reference_labels: Tensor) -> Tensor:
    """Distance `[N]` of each image to the nearest reference of its class: root mean square difference per pixel.

    Args:
        images: `[N, ...]`.
        labels: Classes `[N]`.
        references: `[M, ...]`, in the same space.
        reference_labels: Classes `[M]`.

    Returns:
        min over references y of the class of sqrt(mean((x - y)^2)); infinite where the class has no reference.
    """
    flat, flat_references = images.flatten(1), references.flatten(1)
    nearest = flat.new_full((len(flat),), torch.inf)
    for label in labels.unique().tolist():
        members, candidates = labels == label, flat_references[reference_labels == label]
        if len(candidates):
            # The fast form by matrix products loses small distances.
            distances = torch.cdist(flat[members], candidates, compute_mode="donot_use_mm_for_euclid_dist")
            nearest[members] = distances.amin(1)
    return nearest / math.sqrt(flat.shape[1])
