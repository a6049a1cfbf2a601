"""What images look like, in numbers."""

from __future__ import annotations

import torch
from torch import Tensor

_LEVELS = 255
_INVISIBLE = 1e-12
"""Images of a smaller variance count as constant: what is left of them is rounding."""


def colourfulness(images: Tensor) -> Tensor:
    """Colourfulness of each image `[N]`: 0 for grey images, about 33 for moderate colours, 109 for extreme ones.

    With rg = R - G and yb = (R + G) / 2 - B on the scale 0..255, over the pixels of an image,
    sqrt(std(rg)^2 + std(yb)^2) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2).

    Args:
        images: Pixels in [0, 1], `[N, 3, H, W]`; images of one channel are grey.

    Reference:
        Hasler and Suesstrunk, "Measuring Colourfulness in Natural Images", Human Vision and Electronic Imaging VIII,
        2003, the measure called M(3).

    Example:
        >>> colourfulness(torch.full((1, 3, 4, 4), 0.5))
        tensor([0.])
    """
    red, green, blue = (images * _LEVELS).expand(-1, 3, -1, -1).flatten(2).unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue])
    spread = opponents.var(2, correction=0).sum(0).sqrt()
    return spread + 0.3 * opponents.mean(2).square().sum(0).sqrt()


def spectral_bands(images: Tensor, edges: tuple[float, ...] = (1 / 3, 2 / 3)) -> Tensor:
    """Share of each image's power in radial frequency bands `[N, bands]`, lowest band first.

    The power spectrum is that of the two-dimensional discrete Fourier transform of the image less its mean, added up
    over channels. A frequency's radius is its length in units of the Nyquist frequency (half a cycle per pixel), so
    that the corners of the spectrum, with radii up to sqrt(2), belong to the last band. Shares add up to 1, or are all
    0 for a constant image. In natural images power falls about as 1 / radius^2.

    Args:
        images: Pixels in [0, 1], `[N, C, H, W]`.
        edges: Radii between the bands, ascending; each belongs to the band above it.

    Reference:
        Field, "Relations between the Statistics of Natural Images and the Response Properties of Cortical Cells",
        Journal of the Optical Society of America A, 1987.
    """
    height, width = images.shape[2:]
    centred = images.double() - images.double().mean((2, 3), keepdim=True)
    power = torch.fft.fft2(centred).abs().square().sum(1)
    rows, columns = (torch.fft.fftfreq(size, dtype=torch.float64) * 2 for size in (height, width))
    radius = (rows[:, None].square() + columns.square()).sqrt()
    band = torch.bucketize(radius, torch.tensor(edges, dtype=torch.float64), right=True).flatten().to(images.device)
    shares = power.new_zeros(len(images), len(edges) + 1).index_add_(1, band, power.flatten(1))
    total = shares.sum(1, keepdim=True)
    visible = total > _INVISIBLE * (height * width) ** 2
    return torch.where(visible, shares / total.clamp_min(torch.finfo(total.dtype).tiny), 0).to(images.dtype)


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels of each image `[N]`: 0 for constant images.

    The mean is over the pairs of vertical neighbours, over those of horizontal neighbours, and of the two; also over
    channels. This is the anisotropic total variation per pair, so that images of different sizes compare.

    Args:
        images: Pixels in [0, 1], `[N, C, H, W]`, of at least 2x2 pixels.

    Reference:
        Rudin, Osher and Fatemi, "Nonlinear Total Variation Based Noise Removal Algorithms", Physica D, 1992.
    """
    vertical = images.diff(dim=2).abs().mean((1, 2, 3))
    return (vertical + images.diff(dim=3).abs().mean((1, 2, 3))) / 2
