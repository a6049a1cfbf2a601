"""Whitening of images (ZCA)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pdd_lightning.errors import DataError

_CHUNK_SIZE = 4096


@dataclass(frozen=True)
class ZCA:
    """Linear map that decorrelates pixels and stays close to the image, and its inverse, with D = C * H * W.

    Attributes:
        mean: Mean image `[D]`.
        matrix: Whitening matrix `[D, D]`, U diag(1 / sqrt(S + eps)) U^T.
        inverse: Its inverse `[D, D]`, U diag(sqrt(S + eps)) U^T.

    Reference:
        Nguyen et al., "Dataset Distillation with Infinitely Wide Convolutional Networks", NeurIPS 2021,
        appendix A; Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, appendix A.
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor

    @classmethod
    def fit(cls, images: Tensor, eps: float = 0.1) -> ZCA:
        """Fit to images `[N, C, H, W]` with pixels in [0, 1]; the result is float32.

        Args:
            images: Training images, at least two.
            eps: Added to the variance along each principal axis, which limits the amplification of small variances.

        Raises:
            DataError: There are fewer than two images.
        """
        if len(images) < 2:
            raise DataError(f"whitening needs at least 2 images to fit, got {len(images)}")
        rows = images.detach().flatten(1)
        mean = rows.mean(dim=0, dtype=torch.float64)
        variances, axes = torch.linalg.eigh(_covariance(rows, mean))
        deviations = (variances.clamp(min=0) + eps).sqrt()
        matrix, inverse = (axes / deviations) @ axes.T, (axes * deviations) @ axes.T
        return cls(mean.float(), matrix.float(), inverse.float())

    def whiten(self, images: Tensor) -> Tensor:
        """Return whitened images `[N, C, H, W]` of images with pixels in [0, 1]; differentiable."""
        mean, matrix = self.mean.to(images), self.matrix.to(images)
        return ((images.flatten(1) - mean) @ matrix).view_as(images)

    def restore(self, images: Tensor) -> Tensor:
        """Return images `[N, C, H, W]` on the [0, 1] scale, not clipped, from whitened images."""
        mean, inverse = self.mean.to(images), self.inverse.to(images)
        return (images.flatten(1) @ inverse + mean).view_as(images)


def _covariance(rows: Tensor, mean: Tensor) -> Tensor:
    """Return the covariance `[D, D]` over N - 1, with products of chunks in float32 and sums in float64."""
    total = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=rows.device)
    for chunk in torch.split(rows, _CHUNK_SIZE):
        centered = (chunk.double() - mean).float()
        total += centered.T @ centered
    return total / (len(rows) - 1)
