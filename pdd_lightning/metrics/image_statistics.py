"""Statistics of images, of their features in a network, and of their distance to real images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LEVELS = 255
_MIN_VARIANCE = 1e-12
"""Images of smaller variance count as constant up to rounding."""


def colorfulness(images: Tensor) -> Tensor:
    """Return the colorfulness of each image `[N]`: 0 for gray, about 33 for moderate and 109 for extreme colors.

    With rg = R - G and yb = (R + G) / 2 - B on the scale 0..255, over the pixels of an image,
    sqrt(std(rg)^2 + std(yb)^2) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2).

    Args:
        images: Pixels in [0, 1], `[N, 3, H, W]`; images of one channel are gray.

    Reference:
        Hasler and Suesstrunk, "Measuring Colourfulness in Natural Images", Human Vision and Electronic Imaging VIII,
        2003, the measure called M(3).
    """
    red, green, blue = (images * _LEVELS).expand(-1, 3, -1, -1).flatten(2).unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue])
    spread = opponents.var(2, correction=0).sum(0).sqrt()
    return spread + 0.3 * opponents.mean(2).square().sum(0).sqrt()


def spectral_bands(images: Tensor, edges: tuple[float, ...] = (1 / 3, 2 / 3)) -> Tensor:
    """Return the share of each image's power in radial frequency bands `[N, bands]`, lowest band first.

    The power spectrum is that of the two-dimensional discrete Fourier transform of the image minus its mean, summed
    over channels. Radii are in units of the Nyquist frequency (half a cycle per pixel), so that the corners of the
    spectrum, with radii up to sqrt(2), belong to the last band. Shares sum to 1, or are all 0 for a constant image. In
    natural images power falls about as 1 / radius^2.

    Args:
        images: Pixels in [0, 1], `[N, C, H, W]`.
        edges: Radii between the bands, ascending; each belongs to the band above it.

    Reference:
        Field, "Relations between the Statistics of Natural Images and the Response Properties of Cortical Cells",
        Journal of the Optical Society of America A, 1987.
    """
    height, width = images.shape[2:]
    centered = images.double() - images.double().mean((2, 3), keepdim=True)
    power = torch.fft.fft2(centered).abs().square().sum(1)
    rows, columns = (torch.fft.fftfreq(size, dtype=torch.float64) * 2 for size in (height, width))
    radius = (rows[:, None].square() + columns.square()).sqrt()
    band = torch.bucketize(radius, torch.tensor(edges, dtype=torch.float64), right=True).flatten().to(images.device)
    shares = power.new_zeros(len(images), len(edges) + 1).index_add_(1, band, power.flatten(1))
    total = shares.sum(1, keepdim=True)
    varies = total > _MIN_VARIANCE * (height * width) ** 2
    return torch.where(varies, shares / total.clamp_min(torch.finfo(total.dtype).tiny), 0).to(images.dtype)


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighboring pixels of each image `[N]`: 0 for constant images.

    This is the average of the means over vertical and over horizontal pairs, the anisotropic total variation per pair,
    which can be compared between images of different sizes.

    Args:
        images: Pixels in [0, 1], `[N, C, H, W]`, of at least 2x2 pixels.

    Reference:
        Rudin, Osher and Fatemi, "Nonlinear Total Variation Based Noise Removal Algorithms", Physica D, 1992.
    """
    vertical = images.diff(dim=2).abs().mean((1, 2, 3))
    return (vertical + images.diff(dim=3).abs().mean((1, 2, 3))) / 2


def centroid_silhouette(features: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    """Return the simplified silhouette of each example `[N]` in [-1, 1].

    With a the Euclidean distance to the centroid of its own class and b that to the nearest other one, it is
    (b - a) / max(a, b), or 0 if both are 0: 0 between two classes, and negative if nearest-centroid classification is
    wrong. The centroids of a large set can be used for sets with a single example per class.

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
    within = distances.gather(1, labels[:, None]).squeeze(1)
    nearest = distances.scatter(1, labels[:, None], torch.inf).amin(1)
    larger = torch.maximum(within, nearest)
    return torch.where(larger > 0, (nearest - within) / larger, 0.0)


def label_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the probability `[N]` of each example's label: the softmax of its logits at the label.

    Args:
        logits: `[N, classes]`.
        labels: Classes `[N]`.
    """
    return logits.softmax(1).gather(1, labels[:, None]).squeeze(1)


def nearest_distance(images: Tensor, labels: Tensor, references: Tensor, reference_labels: Tensor) -> Tensor:
    """Return the distance `[N]` of each image to the nearest reference of its class: root mean square per pixel.

    Args:
        images: `[N, ...]`.
        labels: Classes `[N]`.
        references: `[M, ...]`, in the same space.
        reference_labels: Classes `[M]`.

    Returns:
        min over references y of the class of sqrt(mean((x - y)^2)); infinite if the class has no reference.
    """
    flat, flat_references = images.flatten(1), references.flatten(1)
    nearest = flat.new_full((len(flat),), torch.inf)
    for label in labels.unique().tolist():
        members, candidates = labels == label, flat_references[reference_labels == label]
        if len(candidates):
            # The fast form by matrix products is inaccurate for small distances.
            distances = torch.cdist(flat[members], candidates, compute_mode="donot_use_mm_for_euclid_dist")
            nearest[members] = distances.amin(1)
    return nearest / math.sqrt(flat.shape[1])
