"""Trajectory matching under progression (MTT, and PDD on it), with what FTD and DATM add as options."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from pdd_lightning import distributed
from pdd_lightning.augment import DSADraw
from pdd_lightning.data.expert_labels import ExpertPanel
from pdd_lightning.data.progressive import ProgressiveDataModule, Trajectories
from pdd_lightning.data.segments import StartWindow, draw_segment
from pdd_lightning.errors import ConfigError
from pdd_lightning.memory import total_memory
from pdd_lightning.networks.parameters import flatten, unflatten
from pdd_lightning.objectives import trajectory_distance
from pdd_lightning.stages.base import DistillationStage
from pdd_lightning.typing import NetworkFactory
from pdd_lightning.unroll import Form, InnerProblem, choose_form, unroll


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
    SGD with rate `lr_lr`, but in one step by no more than a factor of 2.

    Options of its successors, off by default:

    - Average of the images (FTD): what a stage gives to the union is the exponential moving average of its images,
      with decay `image_average`, begun at the initial images; the students see the images themselves. FTD's flat
      trajectories are a setting of the experts, see `pdd_lightning.experts.ExpertSettings`.
    - Moving start window (DATM): segments start in [min_start_epoch, end), where the end grows from
      `first_max_start_epoch` to `max_start_epoch` over the share `window_growth` of a stage's iterations; every
      stage begins anew with the small window.
    - Soft labels (DATM): the labels are learned, too, as logits; students see their softmax, and so does whoever
      uses the distilled set. A stage starts from real images that one expert of the stage, drawn at random,
      classifies correctly, with the mean logits of all experts that do; experts are taken at the last epoch that
      segments reach. DATM's authors also skip updates whose loss is above a threshold of 1; here all are made.

    Args:
        network: See `DistillationStage`.
        ipc: Images per class and stage.
        syn_steps: Student steps per iteration.
        expert_epochs: Length of a matched segment in expert epochs.
        max_start_epoch: Segments start at an epoch in [min_start_epoch, max_start_epoch).
        batch_syn: Images per student step; null takes as many as one stage has.
        lr_img: Learning rate of the images.
        lr_lr: Learning rate of the learned learning rate.
        lr_teacher: The learned learning rate at the start of each stage.
        momentum: Momentum of both.
        init: Start from real images or from noise.
        augment: Augmentation of the student's mini-batches, per sample.
        align_corners: Sampling of scale and rotation.
        unroll_form: How the student's steps are differentiated: `stored` is fastest, `constant` needs the memory of
            one step, `higher` is the library's, see `pdd_lightning.unroll.unroll`; `auto` takes the first or the
            second, see `pdd_lightning.unroll.choose_form`, and says which.
        image_average: Decay of the average of the images per iteration; 0 freezes the images themselves.
        min_start_epoch: First epoch that segments start at.
        first_max_start_epoch: End of the start window at the beginning of a stage; null keeps it at max_start_epoch.
        window_growth: Share of a stage's iterations, in (0, 1], after which the window has its full width.
        lr_label: Learning rate of the label logits; null keeps hard labels.
        momentum_label: Momentum of the label logits.

    Attributes:
        log_lr: Logarithm of the student's learning rate.
        label_logits: Learnable label logits `[num_classes * ipc, num_classes]`; only with soft labels.
        averaged_images: The images' average; only with `image_average`.

    Raises:
        ConfigError: A setting is out of range, or soft labels are asked for without real images to start from.

    Reference:
        Cazenavette et al., Dataset Distillation by Matching Training Trajectories (CVPR 2022), algorithm 1.
        Chen et al., Data Distillation Can Be Like Vodka (ICLR 2024), section 3.
        Du et al., Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation (CVPR 2023).
        Guo et al., Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching (ICLR 2024).
    """

    log_lr: nn.Parameter
    label_logits: nn.Parameter
    averaged_images: Tensor

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
        unroll_form: Form | Literal["auto"] = "auto",
        image_average: float = 0.0,
        min_start_epoch: int = 0,
        first_max_start_epoch: int | None = None,
        window_growth: float = 1.0,
        lr_label: float | None = None,
        momentum_label: float = 0.9,
    ) -> None:
        super().__init__(network, ipc, lr_img, momentum, init, augment, align_corners)
        counts = {"syn_steps": syn_steps, "expert_epochs": expert_epochs, "max_start_epoch": max_start_epoch}
        if batch_syn is not None:
            counts["batch_syn"] = batch_syn
        for name, value in counts.items():
            if value < 1:
                raise ConfigError(f"{name} must be >= 1, got {value}")
        rates = {"lr_lr": lr_lr, "lr_teacher": lr_teacher}
        if lr_label is not None:
            rates["lr_label"] = lr_label
        for name, rate in rates.items():
            if not rate > 0:
                raise ConfigError(f"{name} must be > 0, got {rate}")
        self.syn_steps = syn_steps
        self.expert_epochs = expert_epochs
        self.max_start_epoch = max_start_epoch
        self.batch_syn = batch_syn
        self.lr_lr = lr_lr
        self.lr_teacher = lr_teacher
        self.unroll_form = unroll_form
        self._form: Form | None = None if unroll_form == "auto" else unroll_form
        self.image_average = image_average
        self.min_start_epoch = min_start_epoch
        self.first_max_start_epoch = first_max_start_epoch
        self.window_growth = window_growth
        self.lr_label = lr_label
        self.momentum_label = momentum_label
        self.start_window = StartWindow(min_start_epoch, first_max_start_epoch, max_start_epoch, window_growth)
        self._check_options()

    @property
    def trajectory_epochs(self) -> int:
        """Epochs that segments can reach into."""
        return self.max_start_epoch + self.expert_epochs

    @property
    def learned_lr(self) -> float:
        """The student's learning rate."""
        return float(self.log_lr.detach().exp())

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
            "image_average",
            "min_start_epoch",
            "first_max_start_epoch",
            "window_growth",
            "lr_label",
            "momentum_label",
        )
        return {**super().settings, **{name: getattr(self, name) for name in names}}

    @property
    def rates_to_lower(self) -> str:
        """Further settings to lower when the loss explodes."""
        label = "" if self.lr_label is None else f" lr_label (now {self.lr_label:g}),"
        return f",{label} lr_lr (now {self.lr_lr:g}) or lr_teacher (now {self.lr_teacher:g})"

    @property
    def distilled(self) -> tuple[Tensor, Tensor]:
        """The images, or their average, with their classes or the learned class probabilities."""
        images, labels = super().distilled
        if self.image_average:
            images = self.averaged_images
        return images, labels if self.lr_label is None else self.label_logits.detach().softmax(1)

    def setup(self, stage: str) -> None:
        """Makes the parameters and the student network."""
        super().setup(stage)
        if hasattr(self, "log_lr"):
            return
        self.log_lr = nn.Parameter(torch.tensor(math.log(self.lr_teacher), device=self.device))
        if self.lr_label is not None:
            shape = (len(self.labels), self.data.real.num_classes)
            self.label_logits = nn.Parameter(torch.zeros(shape, device=self.device))
        if self.image_average:
            self.register_buffer("averaged_images", torch.zeros_like(self.images))
        # In a tuple, so that Lightning and DDP do not take the student's parameters for the module's own.
        self._student = (self.build_network(),)

    def restart(self, generator: torch.Generator) -> None:
        """Begins a new stage: new initial images and labels, and the learning rate at `lr_teacher` again."""
        super().restart(generator)
        with torch.no_grad():
            self.log_lr.fill_(math.log(self.lr_teacher))
            if self.lr_label is not None:
                logits = self._expert_panel().mean_logits(self.images, self.labels)
                # Processes may round differently, and their labels must not differ in a single bit.
                self.label_logits.copy_(distributed.broadcast(logits.cpu()))
            if self.image_average:
                self.averaged_images.copy_(self.images)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of other images, or of a run with other options.

        Raises:
            ConfigError: Image shapes, `lr_label` or `image_average` do not fit the checkpoint.
        """
        super().on_load_checkpoint(checkpoint)
        for name, setting in {"label_logits": "lr_label", "averaged_images": "image_average"}.items():
            if (name in checkpoint["state_dict"]) != hasattr(self, name):
                was = "with" if name in checkpoint["state_dict"] else "without"
                raise ConfigError(f"the checkpoint is of a run {was} {setting}: set it back, or start afresh")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Images and learning rate, each at its own rate."""
        groups = [*super().parameter_groups(), {"params": [self.log_lr], "lr": self._log_rate(self.lr_teacher)}]
        if self.lr_label is not None:
            groups += [{"params": [self.label_logits], "lr": self.lr_label, "momentum": self.momentum_label}]
        return groups

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Takes the step, in which the learned rate at most doubles or halves; then the images enter their average."""
        # Not in a hook at the end of the batch, for checkpoints are saved before that.
        before = self.log_lr.detach().clone()
        optimizer.param_groups[1]["lr"] = self._log_rate(self.learned_lr)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        with torch.no_grad():
            self.log_lr.clamp_(before - math.log(2), before + math.log(2))
        if self.image_average:
            self.averaged_images.lerp_(self.images.detach(), 1 - self.image_average)

    def _log_rate(self, lr: float) -> float:
        """Rate of the logarithm that moves a rate `lr` as plain SGD with `lr_lr` does: d lr = lr * d log(lr)."""
        return min(self.lr_lr / lr**2, 1e30)  # a vanished rate is reported by `check_parameters`, not by an overflow

    def draw_batch(self, data: ProgressiveDataModule, generator: torch.Generator) -> TrajectoryBatch:
        """An expert, a start epoch, shuffled passes over the union, and augmentation parameters."""
        window = self.start_window.at(data.batch_iteration, data.iterations)
        start, target = draw_segment(_trajectories(data), window, self.expert_epochs, generator)
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
        inputs = (self.images,) if self.lr_label is None else (self.images, self.label_logits)
        if self._form is None:
            memory = total_memory(self.device)
            if memory is not None and self.device.type == "cpu":
                memory //= distributed.world_size()
            self._form, reason = choose_form(problem, params, inputs, self.syn_steps, memory)
            rank_zero_info(f"Trajectory matching: {reason}")
        final = unroll(problem, params, inputs, lr, self.syn_steps, self._form)
        return trajectory_distance(flatten(final), batch.start, batch.target)

    def _student_batches(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """Indices of each student step: passes over `count` images, shuffled anew and cut into chunks."""
        size = self.batch_syn or len(self.labels)
        chunks: list[Tensor] = []
        while len(chunks) < self.syn_steps:
            chunks += torch.randperm(count, generator=generator).split(size)
        return chunks[: self.syn_steps]

    def _student_batch(
        self, batch: TrajectoryBatch, step: int, images: Tensor, logits: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Augmented images and labels of one student step."""
        frozen = self.frozen
        union = torch.cat([frozen.images, images])
        labels = self.labels if logits is None else logits.softmax(1)
        labels = torch.cat([frozen.labels, labels]) if len(frozen) else labels
        chosen = batch.indices[step]
        return self.augment(union[chosen], batch.draws[step]), labels[chosen]

    def _initial_images(self, generator: torch.Generator) -> Tensor:
        if self.lr_label is None:
            return super()._initial_images(generator)
        data = self.data
        images = self._expert_panel().recognised_images(data.real, data.kept, self.ipc, generator)
        return distributed.broadcast(images)

    def _expert_panel(self) -> ExpertPanel:
        student = self._student[0].to(self.device)
        return ExpertPanel(student, _trajectories(self.data), self.trajectory_epochs, self.device)

    def _check_options(self) -> None:
        if not 0 <= self.image_average < 1:
            raise ConfigError(f"image_average must be in [0, 1), got {self.image_average}")
        if not 0 <= self.momentum_label < 1:
            raise ConfigError(f"momentum_label must be in [0, 1), got {self.momentum_label}")
        if self.lr_label is not None and self.init == "noise":
            raise ConfigError(
                "soft labels start from experts' logits on real images: set init to real, or lr_label null"
            )


def _trajectories(data: ProgressiveDataModule) -> Trajectories:
    if data.trajectories is None:
        raise ConfigError("trajectory matching needs expert trajectories; run it with the StageAdvance callback")
    return data.trajectories
