"""A network whose training goes on a pass at a time, and can be stored in between."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pdd_lightning.augment import DSA
from pdd_lightning.training.loop import EpochRecord, Images, TrainingSettings, seeded_dropout, sgd, train_epoch


class OngoingTraining:
    """A network together with the optimiser that trains it, whose momentum lasts from pass to pass.

    Args:
        network: The network, on the images' device.
        settings: Optimiser, batch size and mixing; the learning rate stays as it is.
    """

    def __init__(self, network: nn.Module, settings: TrainingSettings) -> None:
        self.network = network.train()
        self.settings = settings
        self.optimizer = sgd(network.parameters(), settings)

    def train_pass(
        self, images: Images, labels: Tensor, count: int, augment: DSA, generator: torch.Generator
    ) -> EpochRecord:
        """Trains on `count` images drawn without repeats, or on all if there are fewer.

        Args:
            images: Images in model space, see `Images`.
            labels: Classes `[N]` on the images' device.
            count: Images of the pass.
            augment: Augmentation, per image.
            generator: CPU generator of everything that is drawn.
        """
        order = torch.randperm(len(images), generator=generator)[:count].split(self.settings.batch_size)
        with seeded_dropout(generator):
            return train_epoch(self.network, self.optimizer, images, labels, order, augment, generator, self.settings)

    def state_dict(self) -> dict[str, Any]:
        """Parameters, buffers and momentum as tensors and primitives."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
