"""The base class of all distillation methods: the learnable images of the current stage and their optimization."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from pdd_lightning import distributed, endings
from pdd_lightning.augment import DSA, DSADraw
from pdd_lightning.data import ClassBatches
from pdd_lightning.data.progressive import ProgressiveDataModule, RunState
from pdd_lightning.data.splits import to_unit
from pdd_lightning.errors import (
    ConfigError,
    DataError,
    NonFiniteLossError,
    check_at_least,
    check_momentum,
    check_positive,
)
from pdd_lightning.networks import STATISTICS_PER_CLASS, fix_statistics, has_batch_norm
from pdd_lightning.networks.spec import argument_names, check_size, network_spec
from pdd_lightning.randomness import seeded
from pdd_lightning.typing import NetworkFactory


class DistillationStage(LightningModule, ABC):
    """Optimizes the synthetic images of one stage after another, `ipc` per class in each.

    A method is a subclass with `draw_batch` (the batch of an iteration) and `matching_loss` (the objective). The only
    parameters are the current stage's images, and what else the method learns; images of earlier stages are frozen in
    the union, `self.data.union`. Every argument of the constructor is kept as an attribute of the same name, from which
    `settings` takes it.

    Args:
        network: Builds the networks that are matched; called with (in_channels, num_classes, image_size).
        ipc: Images per class and stage.
        lr_img: Learning rate of the images.
        momentum: Momentum of the images' SGD, and of the other learned quantities'.
        init: Start from real images of the class, or from standard normal noise; methods may add others.
        augment: Augmentation operations joined by `_`, see `pdd_lightning.augment.DSA`; `none` for none.
        align_corners: How scaling and rotation sample; true as MTT does, false as DC and IDC do.

    Attributes:
        images: Learnable images `[num_classes * ipc, C, H, W]` in model space, class-major.
        labels: Their classes `[num_classes * ipc]`.
        last_loss: Matching loss of the last iteration, a scalar.

    Raises:
        ConfigError: A setting is out of range.
    """

    rates: ClassVar[tuple[str, ...]] = ("lr_img",)
    """Learning rates, which may change when a run is continued, since they may turn out too high."""
    equivalent: ClassVar[tuple[str, ...]] = ()
    """Settings that change the images by no more than rounding."""
    inits: ClassVar[tuple[str, ...]] = ("real", "noise")
    """Values of `init`."""

    images: nn.Parameter
    labels: Tensor
    last_loss: Tensor

    def __init__(
        self,
        network: NetworkFactory,
        ipc: int,
        lr_img: float,
        momentum: float = 0.5,
        init: str = "real",
        augment: str = "color_crop_cutout_flip_scale_rotate",
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        check_at_least(1, ipc=ipc)
        check_positive(lr_img=lr_img)
        check_momentum(momentum=momentum)
        if init not in self.inits:
            raise ConfigError(f"init must be one of {', '.join(self.inits)}, got {init!r}")
        self.network = network
        self.ipc = ipc
        self.lr_img = lr_img
        self.momentum = momentum
        self.init = init
        self.align_corners = align_corners
        self.augment = DSA(augment, align_corners)
        self._last_finite: tuple[Tensor, Tensor] | None = None

    @property
    def data(self) -> ProgressiveDataModule:
        """The data module of the running trainer."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ProgressiveDataModule):
            raise ConfigError(f"a distillation stage needs a ProgressiveDataModule, got {type(data).__name__}")
        return data

    @property
    def state(self) -> RunState:
        """Finished stages, iterations done, and trajectories of the run."""
        return self.data.state

    @property
    def trajectory_epochs(self) -> int:
        """Epochs on real images to record of each expert; 0: networks at theta only."""
        return 0

    @property
    def learned_lr(self) -> float | None:
        """The learning rate for training on the images, if the method learns one."""
        return None

    @property
    def default_lr(self) -> float:
        """The learning rate for training on the images if none is learned."""
        return 0.01

    @property
    def decode_factor(self) -> int:
        """Each image stands for `decode_factor`^2 training images; 1: for itself."""
        return 1

    @property
    def settings(self) -> dict[str, Any]:
        """The method and all arguments of its constructor, as JSON, for continued runs and distilled sets."""
        arguments = {name: self._setting(name) for name in argument_names(type(self))}
        return {"method": type(self).__name__, **arguments, "augment_together": self.augment.together}

    def _setting(self, name: str) -> Any:
        """Return an argument of the constructor as JSON."""
        try:
            value = getattr(self, name)
            plain = value.strategy if isinstance(value, DSA) else network_spec(value) if callable(value) else value
            json.dumps(plain)
        except (AttributeError, TypeError) as error:
            raise ConfigError(
                f"{type(self).__name__} must keep its argument {name!r} as self.{name}: a JSON value or a network class"
            ) from error
        return plain

    @property
    def init_images(self) -> int:
        """Real images per class that the initial images of a stage are made of."""
        return 0 if self.init == "noise" else self.ipc

    def setup(self, stage: str) -> None:
        """Create the parameters, whose shapes depend on the data, unless they exist."""
        if hasattr(self, "images"):
            return
        _ = self.state  # without a state, Lightning would run an epoch without batches
        self._check_real_images()
        real = self.data.real
        check_size(self.network, real.image_shape, real.num_classes)
        count = real.num_classes * self.ipc
        self.images = nn.Parameter(torch.zeros(count, *real.image_shape, device=self.device))
        self.register_buffer(
            "labels",
            torch.arange(real.num_classes, device=self.device).repeat_interleave(self.ipc),
            persistent=False,
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint with parameters of other names or shapes."""
        stored, needed = (
            {name: list(getattr(value, "shape", ())) for name, value in sorted(state.items())}
            for state in (checkpoint["state_dict"], self.state_dict())
        )
        if stored != needed:
            raise ConfigError(
                f"the checkpoint is of a run with another method or other options: it holds {stored}, these settings"
                f" need {needed} (ipc {self.ipc}): set them back, or start afresh"
            )

    def build_network(self) -> nn.Module:
        """Return a network for the data, initialized from torch's global generator, on this device."""
        real = self.data.real
        channels, size, _ = real.image_shape
        return self.network(channels, real.num_classes, size).to(self.device)

    def restart(self, generator: torch.Generator) -> None:
        """Begin a new stage with new initial images, the same on all processes."""
        with torch.no_grad():
            self.images.copy_(self._initial_images(generator))
        self._last_finite = None

    @property
    def distilled(self) -> tuple[Tensor, Tensor]:
        """What the stage adds to the union: images `[N, C, H, W]` and hard `[N]` or soft `[N, classes]` labels.

        By default the images and their classes; a method may add learned labels or an average of the images.
        """
        return self.images.detach(), self.labels

    @property
    def last_finite(self) -> tuple[Tensor, Tensor]:
        """`distilled` in the last iteration whose loss was finite."""
        return self.distilled if self._last_finite is None else self._last_finite

    @abstractmethod
    def draw_batch(self, iteration: int, generator: torch.Generator) -> Any:
        """Draw the batch of an iteration: a NamedTuple (or other collection) of CPU tensors.

        Args:
            iteration: Iteration of the current stage, from 0; may be ahead of `self.state.iteration` by prefetching.
            generator: Generator of this iteration and process; nothing else random may be used.
        """

    @abstractmethod
    def matching_loss(self, batch: Any) -> Tensor:
        """Return the scalar objective, differentiable in the parameters of this module."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of one iteration."""
        with seeded(self.data.seed, "step", self.state.stage, self.state.iteration, distributed.rank()):
            loss = self.matching_loss(batch)
        self._require(bool(loss.isfinite()), "the matching loss is")
        images, labels = self.distilled
        self._last_finite = images.clone(), labels.clone()
        self.last_loss = loss.detach()
        self.log("matching_loss", loss, prog_bar=True)
        return loss

    def check_parameters(self) -> None:
        """Check, after an update, that the parameters are finite and the learned rate can be used, on all processes."""
        finite = bool(torch.stack([parameter.isfinite().all() for parameter in self.parameters()]).all())
        rate = self.learned_lr
        usable = rate is None or 0 < rate < float("inf")
        self._require(finite and usable, "after the update, the images or the learned rate are")

    def draw_real(self, count: int, generator: torch.Generator) -> tuple[ClassBatches, list[DSADraw]]:
        """Draw `count` real images of each class, and for each class an augmentation of real and synthetic images."""
        real = self.data.class_sampler(self.device).draw(count, generator)
        size = self.data.real.image_shape[1:]
        return real, [self.augment.draw(1, size, generator, shared=True) for _ in real.counts]

    def prepare_statistics(self, network: nn.Module, real: ClassBatches) -> None:
        """Put a network into evaluation mode, with batch norm statistics of a joint batch of real images."""
        network.eval()
        if has_batch_norm(network):
            images = self.data.class_sampler(self.device).images
            fix_statistics(network, images[real.joint(STATISTICS_PER_CLASS)])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the process, after the checkpoint was saved, if a signal arrived in the iteration."""
        endings.stop_if_requested()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of the images' gradient."""
        if self.images.grad is not None:
            self.log("grad_norm", self.images.grad.norm())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD with momentum over all parameter groups."""
        return torch.optim.SGD(self.parameter_groups(), lr=self.lr_img, momentum=self.momentum)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups of the optimizer."""
        return [{"params": [self.images], "lr": self.lr_img}]

    def _initial_images(self, generator: torch.Generator) -> Tensor:
        if self.init == "noise":
            return torch.randn(self.images.shape, generator=generator)
        train = self.data.kept
        chosen = []
        for label in range(self.data.real.num_classes):
            members = train.images_of_class(label)
            chosen.append(members[torch.randperm(len(members), generator=generator)[: self.init_images]])
        return self.data.real.pixels.encode(to_unit(train.images[torch.cat(chosen)]))

    def _check_real_images(self) -> None:
        real = self.data.real
        for name, count in zip(real.class_names, real.train.class_counts(real.num_classes), strict=True):
            if count < self.init_images:
                raise DataError(
                    f"class {name!r} has {int(count)} training images (without the validation part), fewer than the"
                    f" {self.init_images} that ipc={self.ipc} initial images are made of: lower"
                    " model.ipc, add images, or set model.init to noise"
                )

    def _require(self, good: bool, what: str) -> None:
        if self.trainer.strategy.reduce_boolean_decision(good, all=True):
            return
        learned = "" if self.learned_lr is None else f" The learned rate is {self.learned_lr:.3g}."
        rates = {name: value for name in self.rates if (value := getattr(self, name)) is not None}
        listed = " or ".join(f"{name} (now {value:g})" for name, value in rates.items())
        experts = ", where stages.experts.folder may name this run's experts/theta_0" if self.trajectory_epochs else ""
        raise NonFiniteLossError(
            f"{what} not finite in stage {self.state.stage}, iteration {self.state.iteration + 1}.{learned} Lower"
            f" {listed}, and continue with --ckpt_path last; if that fails at once, begin anew in another"
            f" folder{experts}."
        )
