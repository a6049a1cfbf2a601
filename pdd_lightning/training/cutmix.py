"""CutMix: a box of each image is replaced by that of another image, and the loss weighs both labels."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Mixed(NamedTuple):
    """A batch after CutMix.

    Attributes:
        images: Images to train on `[N, C, H, W]`.
        partners: Index of the image that each box comes from `[N]`; None if the batch was not mixed.
        share: Share of each image's area outside the box.
    """

    images: Tensor
    partners: Tensor | None = None
    share: float = 1.0

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy, with both labels of each image weighted by their shares of the area.

        Args:
            logits: `[N, classes]`.
            targets: Classes `[N]`, or class probabilities `[N, classes]`, in the order before mixing.
        """
        loss = F.cross_entropy(logits, targets)
        if self.partners is None:
            return loss
        return self.share * loss + (1 - self.share) * F.cross_entropy(logits, targets[self.partners])


def mix(images: Tensor, probability: float, generator: torch.Generator) -> Mixed:
    """Mix a batch with some probability, with the same box for all images.

    The box covers a share of the area drawn uniformly from (0, 1), has the aspect ratio of the image and a uniform
    center, and is clipped at the border.

    Args:
        images: `[N, C, H, W]`.
        probability: Probability of mixing, in [0, 1]; 0 leaves the generator unchanged.
        generator: CPU generator.

    Reference:
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV
        2019, section 3.
    """
    if probability == 0 or float(torch.rand((), generator=generator)) >= probability:
        return Mixed(images)
    partners = torch.randperm(len(images), generator=generator).to(images.device)
    side = math.sqrt(float(torch.rand((), generator=generator)))
    rows, columns = (_span(size, side, generator) for size in images.shape[2:])
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[partners, :, rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return Mixed(mixed, partners, 1 - area / images[0, 0].numel())


def _span(size: int, share: float, generator: torch.Generator) -> slice:
    """Draw a span of `share` of `size` pixels around a uniform center, clipped."""
    half = int(size * share) // 2
    center = int(torch.randint(size, (), generator=generator))
    return slice(max(center - half, 0), min(center + half, size))
