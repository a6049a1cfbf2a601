"""Trajectory matching with an average of the images (FTD), under progression."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pdd_lightning.errors import ConfigError
from pdd_lightning.stages.trajectory_matching import TrajectoryMatching
from pdd_lightning.typing import NetworkFactory


class FTD(TrajectoryMatching):
    """Trajectory matching whose stages add the exponential moving average of their images to the union.

    The students see the images themselves; the average begins at the initial images.
    FTD's flat trajectories are a setting of the experts (`rho`, `alpha`), see `pdd_lightning.experts.ExpertSettings`.

    Args:
        network: See `DistillationStage`.
        image_average: Decay of the average per iteration, in (0, 1).
        kwargs: See `TrajectoryMatching`.

    Attributes:
        averaged_images: The images' average, of the same shape.

    Raises:
        ConfigError: A setting is out of range.

    Reference:
        Du et al., Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation (CVPR 2023).
    """

    averaged_images: Tensor

    def __init__(self, network: NetworkFactory, image_average: float = 0.9995, **kwargs: Any) -> None:
        super().__init__(network, **kwargs)
        if not 0 < image_average < 1:
            raise ConfigError(f"image_average must be in (0, 1), got {image_average}")
        self.image_average = image_average

    @property
    def distilled(self) -> tuple[Tensor, Tensor]:
        """The average of the images, with their classes."""
        return self.averaged_images, self.labels

    def setup(self, stage: str) -> None:
        """Create the parameters, the average and the student network."""
        super().setup(stage)
        if not hasattr(self, "averaged_images"):
            self.register_buffer("averaged_images", torch.zeros_like(self.images))

    def restart(self, generator: torch.Generator) -> None:
        """Begin a new stage with new images, at which the average begins."""
        super().restart(generator)
        self.averaged_images.copy_(self.images.detach())

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take the step and update the average."""
        # Not in a hook at the end of the batch, since checkpoints are saved before that.
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.averaged_images.lerp_(self.images.detach(), 1 - self.image_average)
