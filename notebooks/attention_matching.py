"""Attention matching, a method added from outside the package: one file; `attention_matching.yaml` is its recipe."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pdd_lightning.data.splits import to_unit
from pdd_lightning.errors import ConfigError
from pdd_lightning.experts import NetworkStart, draw_start, start_network
from pdd_lightning.stages import DistillationStage
from pdd_lightning.typing import NetworkFactory


class AttentionBatch(NamedTuple):
    """One iteration.

    Attributes:
        start: Where the network starts.
        real: Real images of each class in model space `[B, C, H, W]`.
    """

    start: NetworkStart
    real: list[Tensor]


class AttentionMatching(DistillationStage):
    """Learns images to which networks attend as they attend to real images.

    Attention is where the channels of a block are large: the sum over channels of `|map|^power`, at unit length. The
    loss is the squared distance between the mean attention to real and to synthetic images of a class, summed over
    blocks and classes, plus `feature_weight` times that of the mean features. Each iteration has a network of its
    own: a random one in stage 1, later one trained through the unions of all earlier stages.

    Args:
        network: Makes the networks; their part `features` must be a `torch.nn.Sequential`.
        ipc: Images per class and stage.
        lr_img: Learning rate of the images.
        power: Exponent of the attention.
        feature_weight: Weight of the features' distance.
        real_batch: Real images per class.
        momentum: Momentum of the images' SGD.
        init: Start from real images or from noise.
        augment: Augmentation; one draw per class for both sides.

    Raises:
        ConfigError: A setting is out of range.

    Reference:
        Sajedi et al., DataDAM: Efficient Dataset Distillation with Attention Matching (ICCV 2023), equations 2 to 5.
    """

    def __init__(
        self,
        network: NetworkFactory,
        ipc: int = 1,
        lr_img: float = 1.0,
        power: float = 4.0,
        feature_weight: float = 0.01,
        real_batch: int = 128,
        momentum: float = 0.5,
        init: Literal["real", "noise"] = "real",
        augment: str = "color_crop_cutout_flip_scale_rotate",
    ) -> None:
        super().__init__(network, ipc, lr_img, momentum, init, augment)
        if not power > 0:
            raise ConfigError(f"power must be > 0, got {power}")
        self.power = power
        self.feature_weight = feature_weight
        self.real_batch = real_batch

    def draw_batch(self, iteration: int, generator: torch.Generator) -> AttentionBatch:
        """A network's start, and real images of each class among those that the stage uses."""
        data, examples, real = self.data, self.data.kept, []
        for label in range(data.real.num_classes):
            members = examples.images_of_class(label)
            chosen = members[torch.randperm(len(members), generator=generator)[: self.real_batch]]
            real.append(data.real.pixels.encode(to_unit(examples.images[chosen])))
        return AttentionBatch(draw_start(self.state, generator), real)

    def matching_loss(self, batch: AttentionBatch) -> Tensor:
        """Distance between the attention to real images and to those of the union."""
        network = start_network(self.build_network, batch.start).requires_grad_(False)
        union = torch.cat([self.data.union.images, self.images])
        labels = torch.cat([self.data.union.labels, self.labels])
        losses = [self._class_loss(network, real, union[labels == label]) for label, real in enumerate(batch.real)]
        return torch.stack(losses).sum()

    def _class_loss(self, network: nn.Module, real: Tensor, synthetic: Tensor) -> Tensor:
        draw = self.augment.draw(1, (real.shape[-2], real.shape[-1]), torch.default_generator, shared=True)
        with torch.no_grad():
            wanted = self._summaries(network, self.augment(real, draw))
        found = self._summaries(network, self.augment(synthetic, draw))
        weights = [1.0] * (len(found) - 1) + [self.feature_weight]
        distances = [w * (f - r).square().sum() for w, f, r in zip(weights, found, wanted, strict=True)]
        return torch.stack(distances).sum()

    def _summaries(self, network: nn.Module, images: Tensor) -> list[Tensor]:
        """Mean attention after each block but the last, then the mean features."""
        attention, maps = [], images
        for layer in network.get_submodule("features").children():
            maps = layer(maps)
            if isinstance(layer, nn.AvgPool2d):
                attention.append(F.normalize(maps.abs().pow(self.power).sum(1).flatten(1), dim=1).mean(0))
        return [*attention[:-1], maps.flatten(1).mean(0)]
