"""Images that recorded experts classify correctly, and soft labels from their logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pdd_lightning.data.progressive import Trajectories
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.splits import ImageSplit, to_unit
from pdd_lightning.networks.parameters import unflatten
from pdd_lightning.randomness import seeded

_BATCH = 512


@dataclass(frozen=True)
class ExpertPanel:
    """The experts of a stage after some epochs.

    Batches mix all classes and the network keeps its mode, so that batch norm in training mode sees statistics like
    those of the experts' training.

    Attributes:
        network: A network of the experts' kind; its parameters are neither used nor changed.
        trajectories: The experts' parameters.
        epoch: Epoch of the experts.
        device: Where the network is.
    """

    network: nn.Module
    trajectories: Trajectories
    epoch: int
    device: torch.device

    def logits(self, expert: int, images: Tensor) -> Tensor:
        """Return an expert's logits `[N, classes]` of images `[N, C, H, W]` in model space, on the panel's device."""
        vector = self.trajectories.segment(expert, self.epoch, self.epoch)[0].to(self.device)
        params = unflatten(vector, dict(self.network.named_parameters()))
        parts = -(-len(images) // _BATCH)
        # Strided, so that each part holds all classes of images in class-major order.
        results = [self._forward(expert, params, images[part::parts]) for part in range(parts)]
        logits = results[0].new_empty(len(images), results[0].shape[1])
        for part, result in enumerate(results):
            logits[part::parts] = result
        return logits

    def recognized_images(
        self, real: RealDataModule, examples: ImageSplit, per_class: int, generator: torch.Generator
    ) -> Tensor:
        """Draw images that one random expert classifies correctly.

        A class of which the expert recognizes too few is filled up with other images of the class.

        Args:
            real: Dataset of the images.
            examples: Candidates, at least `per_class` of each class.
            per_class: Images per class.
            generator: Draws the expert and the images.

        Returns:
            Images `[classes * per_class, C, H, W]` in model space on the CPU, class-major.
        """
        expert = int(torch.randint(self.trajectories.number, (), generator=generator))
        members = [examples.images_of_class(label) for label in range(real.num_classes)]
        orders = [indices[torch.randperm(len(indices), generator=generator)] for indices in members]
        right = torch.zeros(len(examples), dtype=torch.bool)
        size = max(1, _BATCH // real.num_classes)
        for first in range(0, max(map(len, orders)), size):
            indices = torch.cat([order[first : first + size] for order in orders])
            logits = self.logits(expert, real.pixels.encode(to_unit(examples.images[indices])))
            right[indices] = logits.argmax(1).cpu() == examples.labels[indices]
            if all(int(right[order].sum()) >= per_class for order in orders):
                break
        ranked = [torch.cat([order[right[order]], order[~right[order]]]) for order in orders]
        chosen = torch.cat([order[:per_class] for order in ranked])
        return real.pixels.encode(to_unit(examples.images[chosen]))

    def mean_logits(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return each image's mean logits `[N, classes]` over the experts that classify it correctly, or over all."""
        logits = torch.stack([self.logits(expert, images) for expert in range(self.trajectories.number)])
        right = logits.argmax(2) == labels.to(self.device)
        weights = torch.where(right.any(0), right, torch.ones_like(right)).to(logits.dtype)
        return torch.einsum("en,enc->nc", weights / weights.sum(0), logits)

    @torch.no_grad()
    def _forward(self, expert: int, params: dict[str, Tensor], images: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        with seeded(expert, "dropout"):
            logits: Tensor = functional_call(self.network, {**buffers, **params}, (images.to(self.device),))
        return logits
