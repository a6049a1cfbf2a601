"""Fused C++ operators for ConvNets on a CPU; without a compiler, torch's own operations are used."""

from pdd_lightning.kernels.compiled import library
from pdd_lightning.kernels.operators import Geometry, features, loss_gradient, usable

__all__ = ["Geometry", "features", "library", "loss_gradient", "taken", "usable"]


def taken() -> bool | None:
    """Return whether this process uses the kernels rather than torch's operations; None if it used neither so far."""
    return None if library.cache_info().currsize == 0 else library() is not None
