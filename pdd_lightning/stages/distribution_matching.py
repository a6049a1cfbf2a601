"""Distribution matching under progression (DM, and PDD on it)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pdd_lightning.augment import DSADraw
from pdd_lightning.data import ClassBatches, by_class
from pdd_lightning.errors import ConfigError, check_at_least
from pdd_lightning.experts import NetworkStart, draw_start, start_network
from pdd_lightning.objectives import distribution_distance
from pdd_lightning.randomness import seeded
from pdd_lightning.stages.stage import DistillationStage
from pdd_lightning.typing import NetworkFactory


class DistributionBatch(NamedTuple):
    """One iteration.

    Attributes:
        start: The network's start.
        real: Real images of each class.
        draws: Per class, the augmentation of its real and its synthetic images.
    """

    start: NetworkStart
    real: ClassBatches
    draws: list[DSADraw]


class DistributionMatching(DistillationStage):
    """Learns images whose mean features, in many networks, are those of real images.

    Each iteration has another network, which is not trained: a random one in stage 1, later one of the theta_{i-1},
    the networks trained on the unions of earlier stages. The loss is the sum over classes of the
    squared distance between the mean features (before the classifier) of `real_batch` real images of the class and
    of all its synthetic images, those of earlier stages and the new ones, under the same augmentation.

    Batch norms, if any, take their statistics from a joint batch of 16 real images of each class. Dropout is off.

    Args:
        network: See `DistillationStage`; needs a part `features` from images to features.
        ipc: Images per class and stage.
        real_batch: Real images per class; all of a class that has fewer.
        lr_img: Learning rate of the images; published are 1, and 10 from 100 images per class on.
        momentum: Momentum of the images' SGD.
        init: Start from real images or from noise.
        augment: Augmentation, one draw per class for both sides.
        align_corners: Sampling of scale and rotation.

    Raises:
        ConfigError: A setting is out of range.

    Reference:
        Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023, algorithm 1.
        Chen et al., Data Distillation Can Be Like Vodka (ICLR 2024), section 3.
    """

    def __init__(
        self,
        network: NetworkFactory,
        ipc: int = 1,
        real_batch: int = 256,
        lr_img: float = 1.0,
        momentum: float = 0.5,
        init: Literal["real", "noise"] = "real",
        augment: str = "color_crop_cutout_flip_scale_rotate",
        align_corners: bool = False,
    ) -> None:
        super().__init__(network, ipc, lr_img, momentum, init, augment, align_corners)
        check_at_least(1, real_batch=real_batch)
        self.real_batch = real_batch

    def setup(self, stage: str) -> None:
        """Create the parameters; refuse a network without a part `features`."""
        super().setup(stage)
        with seeded(0, "trial"):
            network = self.build_network()
        if not isinstance(getattr(network, "features", None), nn.Module):
            raise ConfigError(
                f"distribution matching compares features, but {type(network).__name__} has no part `features` that"
                " gives them: choose another network, or give it one"
            )

    def draw_batch(self, iteration: int, generator: torch.Generator) -> DistributionBatch:
        """Draw the start of a network, real images of each class, and augmentations."""
        start = draw_start(self.state, generator)
        return DistributionBatch(start, *self.draw_real(self.real_batch, generator))

    def matching_loss(self, batch: DistributionBatch) -> Tensor:
        """Return the sum over classes of the squared distance between mean features."""
        network = start_network(self.build_network, batch.start).requires_grad_(False)
        self.prepare_statistics(network, batch.real)
        real = self.data.class_sampler(self.device).images
        classes = len(batch.draws)
        frozen = self._augmented(by_class(self.data.union.images, self.data.union.labels, classes), batch.draws)
        new = self._augmented(by_class(self.images, self.labels, classes), batch.draws)
        with torch.no_grad():
            parts = [self.augment(real[batch.real.of_class(c)], draw) for c, draw in enumerate(batch.draws)]
            means = torch.stack([_features(network, part).mean(0) for part in parts])
        return distribution_distance(_class_means(network, frozen, new, classes), means)

    def _augmented(self, images: Tensor, draws: list[DSADraw]) -> Tensor:
        """Augment the images of each class by its draw; return `[classes * n, C, H, W]`."""
        return torch.cat([self.augment(part, draw) for part, draw in zip(images, draws, strict=True)])


def _features(network: nn.Module, images: Tensor) -> Tensor:
    """Return features `[N, F]`."""
    features: Tensor = network.get_submodule("features")(images).flatten(1)
    return features


def _class_means(network: nn.Module, frozen: Tensor, new: Tensor, classes: int) -> Tensor:
    """Return the mean features of each class `[classes, F]` of class-major images; the frozen ones are constants."""
    count = (len(frozen) + len(new)) // classes
    total = _features(network, new).unflatten(0, (classes, -1)).sum(1)
    if len(frozen):
        with torch.no_grad():
            constant = _features(network, frozen).unflatten(0, (classes, -1)).sum(1)
        total = total + constant
    means: Tensor = total / count
    return means
