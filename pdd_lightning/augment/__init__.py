"""Differentiable augmentation and whitening of batches of images."""

from pdd_lightning.augment.dsa import DSA, DSADraw
from pdd_lightning.augment.zca import ZCA

__all__ = ["DSA", "ZCA", "DSADraw"]
