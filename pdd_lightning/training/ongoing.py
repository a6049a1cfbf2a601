"""Training of a network in several passes, with a state that can be saved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pdd_lightning.augment import DSA
from pdd_lightning.training.loop import EpochRecord, Images, TrainingSettings, seeded_dropout, sgd, train_epoch


class OngoingTraining:
    """A network and its optimizer, whose momentum persists across passes.

    Args:
        network: The network, on the images' device.
        settings: Optimizer, batch size and mixing; the learning rate is constant.
    """

    def __init__(self, network: nn.Module, settings: TrainingSettings) -> None:
        self.network = network.train()
        self.settings = settings
        self.optimizer = sgd(network.parameters(), settings)

    def train_pass(
        self, images: Images, labels: Tensor, count: int, augment: DSA, generator: torch.Generator
    ) -> EpochRecord:
        """Train on `count` images drawn without replacement, or on all if there are fewer; see `train_network`."""
        order = torch.randperm(len(images), generator=generator)[:count].split(self.settings.batch_size)
        with seeded_dropout(generator):
            return train_epoch(self.network, self.optimizer, images, labels, order, augment, generator, self.settings)

    def state_dict(self) -> dict[str, Any]:
        """Return parameters, buffers and momentum as tensors and primitives."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
