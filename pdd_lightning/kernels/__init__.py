"""Operators in C++ for what torch does not do in one pass on a CPU; without a compiler, torch does it.

Nothing outside of this package knows how they work.
"""

from pdd_lightning.kernels.operators import Geometry, features, loss_gradient, usable

__all__ = ["Geometry", "features", "loss_gradient", "usable"]
