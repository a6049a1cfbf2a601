"""Sets that a distilled set is compared with."""

from __future__ import annotations

import torch

from pdd_lightning.data.pixels import PixelSpace
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.splits import to_unit
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import DataError
from pdd_lightning.randomness import generator_for


def random_real_set(real: RealDataModule, pixels: PixelSpace, like: SyntheticSet, seed: int) -> SyntheticSet:
    """Random real training images with the stages and the labels of a synthetic set, without repeats.

    Args:
        real: Real images, set up.
        pixels: The model space of the result.
        like: The set whose number of images per stage and class is taken over: that of stored images, where each
            of them stands for several.
        seed: Seed of the choice.

    Raises:
        DataError: A class has fewer real images than the synthetic set has.
    """
    generator = generator_for(seed, "random real images")
    labels = like.labels if like.labels.ndim == 1 else like.labels.argmax(1)
    labels = labels.cpu()
    chosen = torch.empty(len(labels), dtype=torch.int64)
    for label in sorted(set(labels.tolist())):
        members = real.train.images_of_class(label)
        places = (labels == label).nonzero().flatten()
        if len(members) < len(places):
            raise DataError(
                f"class {real.class_names[label]!r} has {len(members)} training images, fewer than the"
                f" {len(places)} that the random baseline needs: leave it out (--baselines false), or add images"
            )
        chosen[places] = members[torch.randperm(len(members), generator=generator)[: len(places)]]
    images = pixels.encode(to_unit(real.train.images[chosen]))
    rates = (None,) * like.num_stages
    return SyntheticSet(images=images, labels=labels, stages=like.stages.cpu(), learning_rates=rates)
