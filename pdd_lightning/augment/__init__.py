"""Differentiable augmentation, whitening and multi-formation of images."""

from pdd_lightning.augment.dsa import DSA, DSADraw
from pdd_lightning.augment.multiformation import decode, tile
from pdd_lightning.augment.zca import ZCA

__all__ = ["DSA", "ZCA", "DSADraw", "decode", "tile"]
