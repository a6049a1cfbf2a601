"""Gradient matching under progression (DC and DSA, and PDD on them)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pdd_lightning import distributed
from pdd_lightning.augment import DSADraw
from pdd_lightning.data import ClassBatches, by_class
from pdd_lightning.errors import ConfigError, check_at_least, check_positive
from pdd_lightning.experts import NetworkStart, draw_start, start_network
from pdd_lightning.networks import flatten, load_flat
from pdd_lightning.objectives import ClassSides, Metric, check_metric, class_distance, gradient_distance
from pdd_lightning.randomness import generator_for, seeded
from pdd_lightning.stages.stage import DistillationStage
from pdd_lightning.training import TrainingSettings, train_network
from pdd_lightning.typing import NetworkFactory

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Published (outer, inner) loop counts by images per class."""


def published_loops(ipc: int) -> tuple[int, int]:
    """Return the entry of `LOOPS` nearest to `ipc` images per class of the union; of two equally near, the larger."""
    return LOOPS[min(LOOPS, key=lambda known: (abs(known - ipc), -known))]


class GradientBatch(NamedTuple):
    """One image step.

    Attributes:
        start: Start of a new network if one is due, or None.
        seed: Seed of the current network's training on the union before this step.
        real: Real images of each class.
        draws: Per class, the augmentation of its real and its synthetic images.
    """

    start: NetworkStart | None
    seed: int
    real: ClassBatches
    draws: list[DSADraw]


class GradientMatching(DistillationStage):
    """Learns images on which a network has the gradients that it has on real images.

    One iteration is one image step: the sum over classes of the distance between the cross-entropy gradients on
    `real_batch` real images of the class and on all its synthetic images, those of earlier stages and the new ones,
    both sides under the same augmentation. A network lives for `outer` image steps; between two of them it is
    trained on the union for `inner` epochs. It starts from random parameters in stage 1, later from one of the
    theta_{i-1}, the networks trained on the unions of earlier stages. DSA is the default; DC starts from noise
    (`init`) and does not augment (`augment: none`).

    Batch norms are in evaluation mode while gradients are matched, since a batch of one class has misleading
    statistics: as published, these are of a joint batch of 16 real images of each class (published code mixes them into
    a running average, here they replace it, so that a network is its parameters alone). Dropout is off.

    Args:
        network: See `DistillationStage`.
        ipc: Images per class and stage.
        metric: Distance of two gradients, see `pdd_lightning.objectives.gradient_distance`.
        outer: Image steps in a network's life; null takes the published number for the images per class of the
            union, see `published_loops`.
        inner: Epochs of training after each image step of a network's life but the last; null likewise.
        real_batch: Real images per class; all of a class that has fewer.
        lr_net: Learning rate of the networks.
        batch_net: Images per step of the networks' training.
        lr_img: Learning rate of the images.
        momentum: Momentum of the images' SGD.
        init: Start from real images or from noise.
        augment: Augmentation; one draw per class for both sides, one per image in the networks' training.
        align_corners: Sampling of scale and rotation.

    Raises:
        ConfigError: A setting is out of range.

    Reference:
        Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021, algorithm 1.
        Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021.
        Chen et al., Data Distillation Can Be Like Vodka (ICLR 2024), section 3.
    """

    def __init__(
        self,
        network: NetworkFactory,
        ipc: int = 1,
        metric: Metric = "ours",
        outer: int | None = None,
        inner: int | None = None,
        real_batch: int = 256,
        lr_net: float = 0.01,
        batch_net: int = 256,
        lr_img: float = 0.1,
        momentum: float = 0.5,
        init: Literal["real", "noise"] = "real",
        augment: str = "color_crop_cutout_flip_scale_rotate",
        align_corners: bool = False,
    ) -> None:
        super().__init__(network, ipc, lr_img, momentum, init, augment, align_corners)
        check_metric(metric)
        check_at_least(1, outer=outer, inner=inner, real_batch=real_batch, batch_net=batch_net)
        check_positive(lr_net=lr_net)
        self.metric: Metric = metric
        self.outer = outer
        self.inner = inner
        self.real_batch = real_batch
        self.lr_net = lr_net
        self.batch_net = batch_net
        # In a tuple, so that the network's parameters are not those of the module.
        self._network: tuple[nn.Module, ...] = ()
        self._stored: Tensor | None = None

    def loops(self, stage: int) -> tuple[int, int]:
        """Return image steps per network, and epochs of its training after each, in a stage (from 1)."""
        outer, inner = published_loops(stage * self.ipc)
        return self.outer or outer, self.inner or inner

    def restart(self, generator: torch.Generator) -> None:
        """Begin a new stage with new images, and no network yet."""
        super().restart(generator)
        self._network, self._stored = (), None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the parameters of every process's current network, which is used for several iterations."""
        params = flatten(dict(self._network[0].named_parameters())).detach().cpu() if self._network else self._stored
        checkpoint["matching_networks"] = distributed.gather(params)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore this process's network; see `DistillationStage` for what is refused."""
        super().on_load_checkpoint(checkpoint)
        stored = checkpoint.get("matching_networks", [None])
        self._network, self._stored = (), stored[distributed.rank() % len(stored)]

    def draw_batch(self, iteration: int, generator: torch.Generator) -> GradientBatch:
        """Draw real images of each class, augmentations, and the start of a new network if one is due."""
        due = iteration % self.loops(self.state.stage)[0] == 0
        start = draw_start(self.state, generator) if due else None
        seed = int(torch.randint(2**62, (), generator=generator))
        return GradientBatch(start, seed, *self.draw_real(self.real_batch, generator))

    def matching_loss(self, batch: GradientBatch) -> Tensor:
        """Return the sum over classes of the distance between the gradients."""
        network = self._current_network(batch)
        self.prepare_statistics(network, batch.real)
        params = {name: parameter.detach() for name, parameter in network.named_parameters()}
        distance = partial(gradient_distance, metric=self.metric)
        return torch.stack([class_distance(network, params, sides, distance) for sides in self._sides(batch)]).sum()

    def _current_network(self, batch: GradientBatch) -> nn.Module:
        """Return a new network if one is due, or else the current one, trained on the current union."""
        if batch.start is not None:
            self._network = (start_network(self.build_network, batch.start),)
            return self._network[0]
        if not self._network:
            if self._stored is None:
                raise ConfigError("the checkpoint holds no matching network: start afresh")
            with seeded(0, "restored"):
                self._network = (self.build_network(),)
            load_flat(self._network[0], self._stored)
        network = self._network[0]
        images = torch.cat([self.data.union.images, self.images.detach()])
        labels = torch.cat([self.data.union.labels, self.labels])
        generator = generator_for(batch.seed, "matching network")
        epochs = self.loops(self.state.stage)[1]
        training = TrainingSettings(epochs, self.lr_net, 0.0, 0.0, self.batch_net, milestones=())
        train_network(network, images, labels, training, self.augment, generator)
        return network

    def _sides(self, batch: GradientBatch) -> Iterator[ClassSides]:
        """Yield what is compared for each class."""
        real, frozen = self.data.class_sampler(self.device).images, self.data.union
        old = by_class(frozen.images, frozen.labels, len(batch.draws))
        new = by_class(self.images, self.labels, len(batch.draws))
        weights = batch.real.weights().to(self.images)
        for label, draw in enumerate(batch.draws):
            used = slice(batch.real.counts[label])
            yield ClassSides(
                torch.tensor(label, device=self.device),
                self.augment(real[batch.real.indices[label, used]], draw),
                weights[label, used],
                self.augment(old[label], draw),
                self.augment(new[label], draw),
            )
