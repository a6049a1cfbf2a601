"""Several training images in one stored image (multi-formation)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pdd_lightning.errors import ConfigError

GREY = 0.5
"""Padding of images whose size the factor does not divide, on the [0, 1] scale."""


def decode(images: Tensor, labels: Tensor, factor: int, fill: Tensor | float = GREY) -> tuple[Tensor, Tensor]:
    """Divide every image into `factor` x `factor` pieces and enlarge each to the full size; differentiable.

    Images are padded at the bottom and on the right to a multiple of the factor, divided row by row, and enlarged
    bilinearly. With `fill` in the same space, decoding commutes with standardization.

    Args:
        images: `[N, C, H, W]` in any space that treats all pixels of a channel alike.
        labels: `[N]`, or `[N, classes]` probabilities.
        factor: Pieces per side; 1 returns the arguments.
        fill: Padding: a number, or a value per channel `[C, 1, 1]`.

    Returns:
        Images `[factor^2 * N, C, H, W]`: the first piece of all images, then the second of all; and their labels.

    Raises:
        ConfigError: A piece would consist of padding only.

    Reference:
        Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022, section 4.
    """
    if factor == 1:
        return images, labels
    count, channels, height, width = images.shape
    rows, columns = piece_side(height, factor), piece_side(width, factor)
    padded = _pad(images, rows * factor, columns * factor, fill)
    grid = padded.view(count, channels, factor, rows, factor, columns)
    pieces = grid.permute(2, 4, 0, 1, 3, 5).reshape(-1, channels, rows, columns)
    enlarged = F.interpolate(pieces, size=(height, width), mode="bilinear", align_corners=False)
    return enlarged, torch.cat([labels] * factor**2)


def tile(images: Tensor, factor: int) -> Tensor:
    """Tile `factor`^2 images, reduced in size, into each result, from which `decode` recovers them ("mix").

    Args:
        images: `[factor^2 * N, C, H, W]`; consecutive `factor`^2 images fill one result row by row.
        factor: Pieces per side.

    Returns:
        Images `[N, C, H, W]`. If the factor does not divide the size, the last pieces are cropped.

    Raises:
        ConfigError: The images are too small for the factor.
    """
    _, channels, height, width = images.shape
    rows, columns = piece_side(height, factor), piece_side(width, factor)
    reduced = F.interpolate(images, size=(rows, columns), mode="bilinear", align_corners=False, antialias=True)
    grid = reduced.view(-1, factor, factor, channels, rows, columns).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(-1, channels, factor * rows, factor * columns)[..., :height, :width].contiguous()


def piece_side(side: int, factor: int) -> int:
    """Return the side in pixels of a piece of an image of `side` pixels.

    Raises:
        ConfigError: The factor is below 1, or the last piece would consist of padding only.
    """
    if factor < 1:
        raise ConfigError(f"the decode factor must be >= 1, got {factor}")
    piece = -(-side // factor)
    if piece * (factor - 1) >= side:
        raise ConfigError(
            f"images of {side} pixels cannot be divided into {factor} pieces per side (with {piece} pixels each, the"
            " last would be empty): choose a smaller factor"
        )
    return piece


def _pad(images: Tensor, height: int, width: int, fill: Tensor | float) -> Tensor:
    """Pad images `[N, C, H, W]` at the bottom and on the right."""
    if images.shape[2:] == (height, width):
        return images
    padding = torch.as_tensor(fill).to(images).expand(images.shape[1], height, width)
    padded = padding.expand(len(images), -1, -1, -1).clone()
    padded[:, :, : images.shape[2], : images.shape[3]] = images
    return padded
