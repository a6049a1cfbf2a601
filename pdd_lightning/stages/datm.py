"""Trajectory matching with a growing start window and learned soft labels (DATM), under progression."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pdd_lightning import distributed
from pdd_lightning.errors import ConfigError, check_momentum, check_positive
from pdd_lightning.experts.panel import ExpertPanel
from pdd_lightning.stages.trajectory_matching import TrajectoryMatching
from pdd_lightning.typing import NetworkFactory


class DATM(TrajectoryMatching):
    """Trajectory matching that begins with early segments, and also learns the labels.

    Segments start in [min_start_epoch, end), where the end grows from `first_max_start_epoch` to `max_start_epoch`
    over the share `window_growth` of a stage's iterations, each value holding for equally many; every stage begins
    again with the small window.

    Labels are learned as logits; students, and the distilled set, have their softmax. A stage starts from real images
    that a random expert of the stage classifies correctly, with the mean logits of all experts that do; experts are
    taken at the last epoch of the latest segments. DATM's authors also skip updates whose loss is above 1; here all are
    made.

    Args:
        network: See `DistillationStage`.
        min_start_epoch: First epoch that segments start at.
        first_max_start_epoch: End of the start window at the beginning of a stage; null keeps it at max_start_epoch.
        window_growth: Share of a stage's iterations, in (0, 1], after which the window has its full width.
        lr_label: Learning rate of the label logits; null keeps hard labels.
        momentum_label: Momentum of the label logits.
        kwargs: See `TrajectoryMatching`.

    Attributes:
        label_logits: Learnable label logits `[num_classes * ipc, num_classes]`; only with soft labels.

    Raises:
        ConfigError: A setting is out of range, or soft labels are asked for without real images to start from.

    Reference:
        Guo et al., Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching (ICLR 2024).
    """

    rates: ClassVar[tuple[str, ...]] = (*TrajectoryMatching.rates, "lr_label")

    label_logits: nn.Parameter

    def __init__(
        self,
        network: NetworkFactory,
        min_start_epoch: int = 0,
        first_max_start_epoch: int | None = None,
        window_growth: float = 1.0,
        lr_label: float | None = 2.0,
        momentum_label: float = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        check_positive(lr_label=lr_label)
        check_momentum(momentum_label=momentum_label)
        if lr_label is not None and self.init == "noise":
            raise ConfigError(
                "soft labels start from experts' logits on real images: set init to real, or lr_label null"
            )
        if not 0 < window_growth <= 1:
            raise ConfigError(f"window_growth must be in (0, 1], got {window_growth}")
        first = self.max_start_epoch if first_max_start_epoch is None else first_max_start_epoch
        if not 0 <= min_start_epoch < first <= self.max_start_epoch:
            raise ConfigError(
                "start epochs need 0 <= min_start_epoch < first_max_start_epoch <= max_start_epoch, got"
                f" {min_start_epoch}, {first_max_start_epoch}, {self.max_start_epoch}"
            )
        self.min_start_epoch = min_start_epoch
        self.first_max_start_epoch = first_max_start_epoch
        self.window_growth = window_growth
        self.lr_label = lr_label
        self.momentum_label = momentum_label

    @property
    def distilled(self) -> tuple[Tensor, Tensor]:
        """The images, with their classes or the learned class probabilities."""
        images, labels = super().distilled
        return images, labels if self.lr_label is None else self.label_logits.detach().softmax(1)

    @property
    def student_inputs(self) -> tuple[Tensor, ...]:
        """The images and, with soft labels, the label logits."""
        return (self.images,) if self.lr_label is None else (self.images, self.label_logits)

    def new_labels(self, *learned: Tensor) -> Tensor:
        """Return classes, or class probabilities by the logits."""
        return learned[0].softmax(1) if learned else self.labels

    def start_epochs(self, iteration: int) -> tuple[int, int]:
        """Return the window of an iteration."""
        end = self.max_start_epoch
        first = end if self.first_max_start_epoch is None else self.first_max_start_epoch
        grown = int((end - first + 1) * iteration / (self.window_growth * self.state.iterations))
        return self.min_start_epoch, min(first + grown, end)

    def setup(self, stage: str) -> None:
        """Create the parameters and the student network."""
        super().setup(stage)
        if self.lr_label is not None and not hasattr(self, "label_logits"):
            shape = (len(self.labels), self.data.real.num_classes)
            self.label_logits = nn.Parameter(torch.zeros(shape, device=self.device))

    def restart(self, generator: torch.Generator) -> None:
        """Begin a new stage with new images and labels, and the learning rate at `lr_teacher`."""
        super().restart(generator)
        if self.lr_label is not None:
            logits = self._panel().mean_logits(self.images.detach(), self.labels)
            # Processes may round differently, but their labels must be equal bit for bit.
            self.label_logits.data.copy_(distributed.broadcast(logits.cpu()))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return images, learning rate and labels, each with its rate."""
        groups = super().parameter_groups()
        if self.lr_label is not None:
            groups += [{"params": [self.label_logits], "lr": self.lr_label, "momentum": self.momentum_label}]
        return groups

    def _initial_images(self, generator: torch.Generator) -> Tensor:
        if self.lr_label is None:
            return super()._initial_images(generator)
        images = self._panel().recognized_images(self.data.real, self.data.kept, self.ipc, generator)
        return distributed.broadcast(images)

    def _panel(self) -> ExpertPanel:
        return ExpertPanel(self.student, self.trajectories, self.trajectory_epochs, self.device)
