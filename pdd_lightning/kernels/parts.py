"""Which images are computed together."""

from __future__ import annotations

import torch
from torch import Tensor

_BYTES = 16 << 20
"""Size of the largest map in memory. Larger ones do not fit the processor's cache, and the C library asks the system
for memory for each of them anew; with smaller ones kernels are transformed more often. With 128 channels a step on 256
images of 32x32 takes 1.3 times as long with maps of 2 MiB."""


def in_parts(images: Tensor, channels: int, dtype: torch.dtype, pooled: bool) -> tuple[Tensor, ...]:
    """Return images `[N, C, H, W]` in parts of equal size, up to one, such that no map of a part is too large.

    Args:
        images: The images; what has no image is one part.
        channels: Channels of the largest map, which has about the images' height and width.
        dtype: Its type.
        pooled: The first map is in memory only after pooling, which halves height and width.
    """
    of_image = images.shape[2] * images.shape[3] * channels * dtype.itemsize // (4 if pooled else 1)
    largest = max(1, _BYTES // max(1, of_image))
    return images.tensor_split(max(1, -(-len(images) // largest)))
