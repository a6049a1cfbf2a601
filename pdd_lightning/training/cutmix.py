"""CutMix: a box of each image is replaced by another image's, and the loss weighs both labels."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Mixed(NamedTuple):
    """A batch, mixed or as it was.

    Attributes:
        images: Images to train on `[N, C, H, W]`.
        partners: Whose box each image carries `[N]`; None if the batch was not mixed.
        share: Share of each image's area that is its own.
    """

    images: Tensor
    partners: Tensor | None = None
    share: float = 1.0

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy, weighing each image's own label and its partner's by their shares of the area.

        Args:
            logits: `[N, classes]`.
            targets: Classes `[N]`, or class probabilities `[N, classes]`, in the order before mixing.
        """
        own = F.cross_entropy(logits, targets)
        if self.partners is None:
            return own
        return self.share * own + (1 - self.share) * F.cross_entropy(logits, targets[self.partners])


def mix(images: Tensor, probability: float, generator: torch.Generator) -> Mixed:
    """Mixes a batch with some probability; one box for the whole batch.

    The box covers a share of the area drawn uniformly from (0, 1), has the image's proportions and a uniform centre,
    and is clipped at the border.

    Args:
        images: `[N, C, H, W]`.
        probability: Probability of mixing, in [0, 1]; nothing is drawn for 0.
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
    """A span of `share` of `size` pixels about a uniform centre, clipped."""
    half = int(size * share) // 2
    centre = int(torch.randint(size, (), generator=generator))
    return slice(max(centre - half, 0), min(centre + half, size))
