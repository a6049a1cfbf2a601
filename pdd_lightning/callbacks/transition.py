"""Training on the union between stages."""

from __future__ import annotations

from dataclasses import dataclass

from pdd_lightning.errors import ConfigError
from pdd_lightning.training import TrainingSettings


@dataclass(frozen=True)
class TransitionSettings:
    """Training on the union at the end of a stage, at the stage's learned learning rate.

    Attributes:
        epochs: Passes over the union.
        batch_size: Images per step.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty of SGD.
        milestones: Fractions of the epochs, in (0, 1), after which the learning rate drops.
        gamma: Factor of each drop.
        cutmix: Probability with which a batch is mixed by CutMix.
        at_once: Networks trained at once, in operations on all of them; the result is the same up to rounding. Pays
            where steps are small: measure it with `benchmarks/at_once.py`. Not for networks with dropout.
    """

    epochs: int = 1000
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: tuple[float, ...] = (0.5,)
    gamma: float = 0.1
    cutmix: float = 0.0
    at_once: int = 1

    def __post_init__(self) -> None:
        if self.at_once < 1:
            raise ConfigError(f"transition.at_once must be >= 1, got {self.at_once}")
        self.training(lr=1.0)  # refuses bad values now rather than at the first transition

    def training(self, lr: float) -> TrainingSettings:
        """Training on the union at rate `lr`."""
        return TrainingSettings(
            epochs=self.epochs,
            lr=lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            milestones=self.milestones,
            gamma=self.gamma,
            cutmix=self.cutmix,
        )
