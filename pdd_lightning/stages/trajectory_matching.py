"""Trajectory matching under progression (MTT, and PDD on it)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pdd_lightning.augment import DSADraw
from pdd_lightning.data.progressive import ProgressiveDataModule
from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.networks.parameters import flatten, unflatten
from pdd_lightning.objectives import trajectory_distance
from pdd_lightning.stages.base import DistillationStage
from pdd_lightning.typing import NetworkFactory
from pdd_lightning.unroll import Form, InnerProblem, unroll


class TrajectoryBatch(NamedTuple):
    """One iteration: a segment of an expert's trajectory, and the student's mini-batches.

    Attributes:
        start: Parameters of the expert at the start epoch, flat `[P]`.
        target: Parameters `expert_epochs` later, flat `[P]`.
        indices: Per student step, the images of the union it sees.
        draws: Per student step, the augmentation's parameters.
    """

    start: Tensor
    target: Tensor
    indices: list[Tensor]
    draws: list[DSADraw]


class TrajectoryMatching(DistillationStage):
    """Learns images, and a learning rate, on which a student follows the experts' trajectories.

    One iteration draws an expert and a start epoch; a student starts from the expert's parameters there and
    takes `syn_steps` differentiable SGD steps on augmented mini-batches of the union of all stages; the loss is
    `||student - target||^2 / ||start - target||^2` with the expert's parameters `expert_epochs` later as the
    target. The gradient flows into the new images and the learning rate only.

    The learning rate is the exponential of a parameter, hence positive. To first order it moves as under plain
    SGD with rate `lr_lr`.

    Args:
        network: See `DistillationStage`.
        ipc: Images per class and stage.
        syn_steps: Student steps per iteration.
        expert_epochs: Length of a matched segment in expert epochs.
        max_start_epoch: Segments start at an epoch in [0, max_start_epoch).
        batch_syn: Images per student step; null takes as many as one stage has.
        lr_img: Learning rate of the images.
        lr_lr: Learning rate of the learned learning rate.
        lr_teacher: The learned learning rate at the start of each stage.
        momentum: Momentum of both.
        init: Start from real images or from noise.
        augment: Augmentation of the student's mini-batches, per sample.
        align_corners: Sampling of scale and rotation.
        unroll_form: How the student's steps are differentiated: `stored` is fastest, `constant` needs the memory of
            one step, `higher` is the library's; see `pdd_lightning.unroll.unroll`.

    Raises:
        ConfigError: A setting is out of range.

    Reference:
        Cazenavette et al., Dataset Distillation by Matching Training Trajectories (CVPR 2022), algorithm 1.
        Chen et al., Data Distillation Can Be Like Vodka (ICLR 2024), section 3.
    """

    log_lr: nn.Parameter

    def __init__(
        self,
        network: NetworkFactory,
        ipc: int = 1,
        syn_steps: int = 20,
        expert_epochs: int = 2,
        max_start_epoch: int = 20,
        batch_syn: int | None = None,
        lr_img: float = 1000.0,
        lr_lr: float = 1e-5,
        lr_teacher: float = 0.01,
        momentum: float = 0.5,
        init: Literal["real", "noise"] = "real",
        augment: str = "color_crop_cutout_flip_scale_rotate",
        align_corners: bool = True,
        unroll_form: Form = "stored",
    ) -> None:
        super().__init__(network, ipc, lr_img, momentum, init, augment, align_corners)
        counts = {"syn_steps": syn_steps, "expert_epochs": expert_epochs, "max_start_epoch": max_start_epoch}
        if batch_syn is not None:
            counts["batch_syn"] = batch_syn
        for name, value in counts.items():
            if value < 1:
                raise ConfigError(f"{name} must be >= 1, got {value}")
        for name, rate in {"lr_lr": lr_lr, "lr_teacher": lr_teacher}.items():
            if not rate > 0:
                raise ConfigError(f"{name} must be > 0, got {rate}")
        self.syn_steps = syn_steps
        self.expert_epochs = expert_epochs
        self.max_start_epoch = max_start_epoch
        self.batch_syn = batch_syn
        self.lr_lr = lr_lr
        self.lr_teacher = lr_teacher
        self.unroll_form = unroll_form

    @property
    def trajectory_epochs(self) -> int:
        """Epochs that segments can reach into."""
        return self.max_start_epoch + self.expert_epochs

    @property
    def learned_lr(self) -> float:
        """The student's learning rate."""
        return math.exp(self.log_lr.detach().item())

    @property
    def settings(self) -> dict[str, Any]:
        """The method's settings as data that can be stored."""
        names = (
            "syn_steps",
            "expert_epochs",
            "max_start_epoch",
            "batch_syn",
            "lr_lr",
            "lr_teacher",
            "unroll_form",
        )
        return {**super().settings, **{name: getattr(self, name) for name in names}}

    @property
    def rates_to_lower(self) -> str:
        """Further settings to lower when the loss explodes."""
        return f", lr_lr (now {self.lr_lr:g}) or lr_teacher (now {self.lr_teacher:g})"

    def setup(self, stage: str) -> None:
        """Makes the parameters and the student network."""
        super().setup(stage)
        if hasattr(self, "log_lr"):
            return
        self.log_lr = nn.Parameter(torch.tensor(math.log(self.lr_teacher), device=self.device))
        # In a tuple, so that Lightning and DDP do not take the student's parameters for the module's own.
        self._student = (self.build_network(),)

    def restart(self, generator: torch.Generator) -> None:
        """Begins a new stage: new initial images, and the learning rate at `lr_teacher` again."""
        super().restart(generator)
        with torch.no_grad():
            self.log_lr.fill_(math.log(self.lr_teacher))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Images and learning rate, each at its own rate."""
        # d lr = lr * d log(lr), so this rate makes the first step in lr the one that plain SGD takes.
        rate = self.lr_lr / self.lr_teacher**2
        return [*super().parameter_groups(), {"params": [self.log_lr], "lr": rate}]

    def draw_batch(self, data: ProgressiveDataModule, generator: torch.Generator) -> TrajectoryBatch:
        """An expert, a start epoch, shuffled passes over the union, and augmentation parameters."""
        if data.trajectories is None:
            raise ConfigError("trajectory matching needs expert trajectories; run it with the StageAdvance callback")
        expert = int(torch.randint(data.trajectories.number, (), generator=generator))
        first = int(torch.randint(self.max_start_epoch, (), generator=generator))
        start, target = data.trajectories.segment(expert, first, first + self.expert_epochs)
        if torch.equal(start, target):
            raise DataError(
                f"expert {expert} did not move between epochs {first} and {first + self.expert_epochs}:"
                " raise stages.experts.lr"
            )
        indices = self._student_batches(len(data.union.labels) + len(self.labels), generator)
        height, width = data.real.image_shape[1:]
        draws = [self.augment.draw(len(chunk), (height, width), generator) for chunk in indices]
        return TrajectoryBatch(start, target, indices, draws)

    def matching_loss(self, batch: TrajectoryBatch) -> Tensor:
        """Normalised distance of the student to the expert after the student's steps."""
        student = self._student[0].to(self.device)
        params = unflatten(batch.start, dict(student.named_parameters()))
        lr = self.log_lr.exp()
        self.log("learned_lr", lr, prog_bar=True)
        problem = InnerProblem(student, partial(self._student_batch, batch))
        final = unroll(problem, params, (self.images,), lr, self.syn_steps, self.unroll_form)
        return trajectory_distance(flatten(final), batch.start, batch.target)

    def _student_batches(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """Indices of each student step: passes over `count` images, shuffled anew and cut into chunks."""
        size = self.batch_syn or len(self.labels)
        chunks: list[Tensor] = []
        while len(chunks) < self.syn_steps:
            chunks += torch.randperm(count, generator=generator).split(size)
        return chunks[: self.syn_steps]

    def _student_batch(self, batch: TrajectoryBatch, step: int, images: Tensor) -> tuple[Tensor, Tensor]:
        """Augmented images and labels of one student step."""
        union = torch.cat([self.frozen.images, images])
        labels = torch.cat([self.frozen.labels, self.labels])
        chosen = batch.indices[step]
        return self.augment(union[chosen], batch.draws[step]), labels[chosen]
