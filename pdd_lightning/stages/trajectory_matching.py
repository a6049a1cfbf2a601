"""Trajectory matching under progression (MTT, and PDD on it)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from pdd_lightning import distributed
from pdd_lightning.augment import DSADraw
from pdd_lightning.data.progressive import Trajectories
from pdd_lightning.errors import ConfigError, DataError, check_at_least, check_positive
from pdd_lightning.memory import total_memory
from pdd_lightning.networks.parameters import flatten, unflatten
from pdd_lightning.objectives import trajectory_distance
from pdd_lightning.stages.stage import DistillationStage
from pdd_lightning.typing import NetworkFactory
from pdd_lightning.unroll import InnerProblem, Mode, choose_mode, unroll


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
    SGD with rate `lr_lr`, but by at most a factor of 2 per step.

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
        unroll_mode: How the student's steps are differentiated: `stored` is fastest, `constant` needs the memory of
            one step, `higher` is the library's, see `pdd_lightning.unroll.unroll`; `auto` chooses one of the first
            two, see `pdd_lightning.unroll.choose_mode`, and logs which.

    Attributes:
        log_lr: Logarithm of the student's learning rate.

    Raises:
        ConfigError: A setting is out of range.

    Reference:
        Cazenavette et al., Dataset Distillation by Matching Training Trajectories (CVPR 2022), algorithm 1.
        Chen et al., Data Distillation Can Be Like Vodka (ICLR 2024), section 3.
    """

    rates: ClassVar[tuple[str, ...]] = ("lr_img", "lr_lr", "lr_teacher")
    equivalent: ClassVar[tuple[str, ...]] = ("unroll_mode",)

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
        unroll_mode: Mode | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(network, ipc, lr_img, momentum, init, augment, align_corners)
        check_at_least(
            1, syn_steps=syn_steps, expert_epochs=expert_epochs, max_start_epoch=max_start_epoch, batch_syn=batch_syn
        )
        check_positive(lr_lr=lr_lr, lr_teacher=lr_teacher)
        self.syn_steps = syn_steps
        self.expert_epochs = expert_epochs
        self.max_start_epoch = max_start_epoch
        self.batch_syn = batch_syn
        self.lr_lr = lr_lr
        self.lr_teacher = lr_teacher
        self.unroll_mode = unroll_mode
        self._mode: Mode | None = None if unroll_mode == "auto" else unroll_mode

    @property
    def trajectory_epochs(self) -> int:
        """Last epoch of the latest segments."""
        return self.max_start_epoch + self.expert_epochs

    @property
    def learned_lr(self) -> float:
        """The student's learning rate."""
        return float(self.log_lr.detach().exp())

    @property
    def trajectories(self) -> Trajectories:
        """The experts of the current stage."""
        if self.state.trajectories is None:
            raise ConfigError("trajectory matching needs expert trajectories, which StageAdvance records")
        return self.state.trajectories

    @property
    def student(self) -> nn.Module:
        """The student network, on this device; its parameters are not used."""
        return self._student[0].to(self.device)

    def setup(self, stage: str) -> None:
        """Create the parameters and the student network."""
        super().setup(stage)
        if hasattr(self, "log_lr"):
            return
        self.log_lr = nn.Parameter(torch.tensor(math.log(self.lr_teacher), device=self.device))
        # In a tuple, so that the student's parameters are not those of the module.
        self._student = (self.build_network(),)

    def restart(self, generator: torch.Generator) -> None:
        """Begin a new stage with new images, and the learning rate at `lr_teacher`."""
        super().restart(generator)
        with torch.no_grad():
            self.log_lr.fill_(math.log(self.lr_teacher))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """If `lr_teacher` was lowered, clamp the learned rate of the unfinished stage to it."""
        super().on_load_checkpoint(checkpoint)
        position = checkpoint.get("callbacks", {}).get("StageAdvance", {})
        former = position.get("settings", {}).get("model", {}).get("lr_teacher", self.lr_teacher)
        if self.lr_teacher < former:
            checkpoint["state_dict"]["log_lr"].clamp_(max=math.log(self.lr_teacher))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return images and learning rate, each with its rate."""
        return [*super().parameter_groups(), {"params": [self.log_lr], "lr": self._log_rate(self.lr_teacher)}]

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take the step, in which the learned rate at most doubles or halves."""
        before = self.log_lr.detach().clone()
        optimizer.param_groups[1]["lr"] = self._log_rate(self.learned_lr)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        with torch.no_grad():
            self.log_lr.clamp_(before - math.log(2), before + math.log(2))

    def _log_rate(self, lr: float) -> float:
        """Return the rate of the logarithm that moves a rate `lr` as SGD with `lr_lr`: d lr = lr * d log(lr)."""
        return min(self.lr_lr / lr**2, 1e30)  # a vanished rate is reported by `check_parameters`, not by an overflow

    def start_epochs(self, iteration: int) -> tuple[int, int]:
        """Return the first and the end (excluded) of the epochs where segments may start in an iteration."""
        return 0, self.max_start_epoch

    def draw_batch(self, iteration: int, generator: torch.Generator) -> TrajectoryBatch:
        """Draw an expert, a start epoch, shuffled passes over the union, and augmentation parameters."""
        start, target = self._draw_segment(self.start_epochs(iteration), generator)
        indices = self._student_batches(len(self.data.union.labels) + len(self.labels), generator)
        height, width = self.data.real.image_shape[1:]
        draws = [self.augment.draw(len(chunk), (height, width), generator) for chunk in indices]
        return TrajectoryBatch(start, target, indices, draws)

    def matching_loss(self, batch: TrajectoryBatch) -> Tensor:
        """Return the normalized distance of the student to the expert after the student's steps."""
        params = unflatten(batch.start, dict(self.student.named_parameters()))
        lr = self.log_lr.exp()
        self.log("learned_lr", lr, prog_bar=True)
        problem = InnerProblem(self.student, partial(self._student_batch, batch))
        mode = self._chosen_mode(problem, params)
        final = unroll(problem, params, self.student_inputs, lr, self.syn_steps, mode)
        return trajectory_distance(flatten(final), batch.start, batch.target)

    @property
    def student_inputs(self) -> tuple[Tensor, ...]:
        """What the student's training is differentiated in besides the learning rate: the images first."""
        return (self.images,)

    def new_labels(self, *learned: Tensor) -> Tensor:
        """Return the student's labels of the new images; `learned` is what follows the images in `student_inputs`."""
        return self.labels

    def _chosen_mode(self, problem: InnerProblem, params: dict[str, Tensor]) -> Mode:
        """Return the mode of the inner loop, chosen in the first iteration if it is `auto`."""
        if self._mode is None:
            memory = total_memory(self.device)
            if memory is not None and self.device.type == "cpu":
                memory //= distributed.world_size()
            self._mode, reason = choose_mode(problem, params, self.student_inputs, self.syn_steps, memory)
            rank_zero_info(f"Trajectory matching: {reason}")
        return self._mode

    def _draw_segment(self, window: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return parameters `[P]` of a random expert at a random epoch of the window, and `expert_epochs` later."""
        expert = int(torch.randint(self.trajectories.number, (), generator=generator))
        first = int(torch.randint(*window, (), generator=generator))
        last = first + self.expert_epochs
        start, target = self.trajectories.segment(expert, first, last)
        if torch.equal(start, target):
            raise DataError(f"expert {expert} did not move between epochs {first} and {last}: raise stages.experts.lr")
        return start, target

    def _student_batches(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """Return the indices of each student step: shuffled passes over `count` images, cut into chunks."""
        size = self.batch_syn or len(self.labels)
        chunks: list[Tensor] = []
        while len(chunks) < self.syn_steps:
            chunks += torch.randperm(count, generator=generator).split(size)
        return chunks[: self.syn_steps]

    def _student_batch(
        self, batch: TrajectoryBatch, step: int, images: Tensor, *learned: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return augmented images and labels of one student step."""
        frozen, labels = self.data.union, self.new_labels(*learned)
        union = torch.cat([frozen.images, images])
        labels = torch.cat([frozen.labels, labels]) if len(frozen) else labels
        chosen = batch.indices[step]
        return self.augment(union[chosen], batch.draws[step]), labels[chosen]
