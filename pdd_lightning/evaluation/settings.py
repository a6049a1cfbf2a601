"""What is evaluated, and how networks are trained for it."""

from __future__ import annotations

from dataclasses import dataclass

from pdd_lightning.augment import DSA
from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation.baselines import BASELINES, Baseline
from pdd_lightning.evaluation.protocols import PROTOCOLS, Protocol, check_choices
from pdd_lightning.training import TrainingSettings


@dataclass(frozen=True)
class EvaluationSettings:
    """How a set is evaluated.

    Attributes:
        num_networks: Networks per row, each with its own initialisation, which no expert used.
        epochs: Epochs of each progressive phase; every protocol takes as many steps as these do.
        protocols: How networks are trained on staged sets, one row each: progressive, union, sequential.
        baselines: Sets that the distilled one is compared with in `test`: random, herding, kmeans.
        lr: Learning rate for sets without a learned one.
        batch_size: Images per step.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty of SGD.
        full_data_epochs: Epochs of training on the full real set; 0 leaves that row out. Herding's network takes as
            many.
        milestones: Fractions of a phase's epochs, in (0, 1), after which the learning rate drops.
        gamma: Factor of each drop.
        cutmix: Probability with which a batch is mixed by CutMix.
        augment: Operations joined by `_`, or `none`, see `pdd_lightning.augment.DSA`; null: as the set was distilled.
        expert_inits: Evaluate the distilled set also with networks that begin where experts began.
        every_stage: Show the accuracy after each stage of progressive training, in rows of their own.
    """

    num_networks: int = 5
    epochs: int = 500
    protocols: tuple[Protocol, ...] = ("progressive",)
    baselines: tuple[Baseline, ...] = ("random",)
    lr: float = 0.01
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    full_data_epochs: int = 0
    milestones: tuple[float, ...] = (0.5,)
    gamma: float = 0.1
    cutmix: float = 0.0
    augment: str | None = None
    expert_inits: bool = False
    every_stage: bool = False

    def __post_init__(self) -> None:
        if self.num_networks < 1:
            raise ConfigError(f"num_networks must be >= 1, got {self.num_networks}")
        if self.epochs < 1:
            raise ConfigError(f"evaluation epochs must be >= 1, got {self.epochs}")
        if self.full_data_epochs < 0:
            raise ConfigError(f"full_data_epochs must be >= 0, got {self.full_data_epochs}")
        if not self.protocols:
            raise ConfigError(f"protocols is empty: choose from {', '.join(PROTOCOLS)}")
        check_choices("protocols", self.protocols, PROTOCOLS)
        check_choices("baselines", self.baselines, BASELINES)
        if "herding" in self.baselines and not self.full_data_epochs:
            raise ConfigError(
                "baselines: herding chooses images by a network trained on the full real set: set full_data_epochs,"
                " or leave herding out"
            )
        # Refuses what cannot work before hours are spent on what shall be evaluated.
        _ = self.training
        self.augmentation(DSA())

    @property
    def training(self) -> TrainingSettings:
        """Training of one progressive phase."""
        return TrainingSettings(
            epochs=self.epochs,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            milestones=self.milestones,
            gamma=self.gamma,
            cutmix=self.cutmix,
        )

    def augmentation(self, distilled_with: DSA) -> DSA:
        """The augmentation of the training, where a set was distilled with another."""
        if self.augment is None:
            return distilled_with
        return DSA(self.augment, distilled_with.align_corners, distilled_with.together)
