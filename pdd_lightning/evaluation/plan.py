"""Which networks are trained on which sets with which settings, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch

from pdd_lightning.augment import DSA
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation.baselines import BASELINES, Baseline
from pdd_lightning.evaluation.protocols import PROTOCOLS, Phase, Protocol, check_choices, protocol_phases, stage_steps
from pdd_lightning.results.schema import DISTILLED, FULL, RANDOM
from pdd_lightning.training import TrainingSettings

Source = Literal["distilled", "full"] | Baseline
ROW_NAMES: dict[Source, str] = {
    "distilled": DISTILLED,
    "random": RANDOM,
    "herding": "herding",
    "kmeans": "k-means centres",
    "full": FULL,
}
_COMMON = ("batch_size", "momentum", "weight_decay", "gamma", "cutmix")


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
        for name, least in (("num_networks", 1), ("epochs", 1), ("full_data_epochs", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} of the evaluation must be >= {least}, got {getattr(self, name)}")
        check_choices("protocols", self.protocols, PROTOCOLS)
        check_choices("baselines", self.baselines, BASELINES, some=False)
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
        names = {field.name for field in fields(TrainingSettings)}
        return TrainingSettings(**{name: value for name, value in vars(self).items() if name in names})

    def augmentation(self, distilled_with: DSA) -> DSA:
        """The augmentation of the training, where a set was distilled with another."""
        if self.augment is None:
            return distilled_with
        return DSA(self.augment, distilled_with.align_corners, distilled_with.together)


@dataclass(frozen=True)
class PlannedRow:
    """Networks that are trained on the same images in the same way.

    Attributes:
        row: Name of the row.
        source: What they are trained on.
        protocol: How they are trained on a staged set; `all images` on the full real set.
        images: Images until the end of each phase, as they are stored.
        phases: Their training.
        augment: Augmentation of the training images.
        inits: Of each network the expert in whose initialisation it begins; None for a fresh one.
    """

    row: str
    source: Source
    protocol: str
    images: tuple[int, ...]
    phases: tuple[Phase, ...]
    augment: DSA
    inits: tuple[int | None, ...]

    @property
    def steps(self) -> int:
        """Optimiser steps of each network."""
        return sum(phase.steps for phase in self.phases)

    def about(self) -> dict[str, Any]:
        """What the networks have in common, as JSON."""
        training = asdict(self.phases[0].training)
        phases = [
            {"stages": list(each.stages), "steps": each.steps, "epochs": each.training.epochs, "lr": each.training.lr}
            for each in self.phases
        ]
        return {
            "row": self.row,
            "source": self.source,
            "protocol": self.protocol,
            "init": "fresh" if None in self.inits else "expert",
            "images": list(self.images),
            "phases": phases,
            "training": {name: training[name] for name in _COMMON} | {"milestones": list(training["milestones"])},
            "augment": self.augment.strategy,
            "align_corners": self.augment.align_corners,
            "augment_together": self.augment.together,
        }


def plan_rows(
    settings: EvaluationSettings,
    synthetic: SyntheticSet,
    real_images: int,
    distilled_with: DSA,
    experts: Sequence[int] = (),
    suffix: str = "",
) -> list[PlannedRow]:
    """The rows of an evaluation: distilled set, experts' initialisations, baselines, full real set.

    All rows but that of the full real set take the same number of optimiser steps.

    Args:
        settings: How the set is evaluated.
        synthetic: The set as it is stored.
        real_images: Number of real training images.
        distilled_with: The augmentation that the set was distilled with.
        experts: The experts in whose initialisations networks begin, at most one for each network of a row.
        suffix: What the names of the rows end with.
    """
    augment = settings.augmentation(distilled_with)
    stored = torch.bincount(synthetic.stages, minlength=synthetic.num_stages + 1)[1:].tolist()
    fresh = (None,) * settings.num_networks
    sets: list[tuple[Source, str, tuple[int | None, ...]]] = [("distilled", "", fresh)]
    if settings.expert_inits:
        sets.append(("distilled", ", experts' inits", tuple(experts[: settings.num_networks])))
    sets += [(baseline, "", fresh) for baseline in settings.baselines]
    rows = []
    for source, init, inits in sets:
        for protocol in settings.protocols:
            phases = _staged_phases(source, protocol, synthetic, stored, settings.training)
            images = tuple(sum(stored[: phase.stages[1]]) for phase in phases)
            name = f"{ROW_NAMES[source]}{init}{suffix}"
            rows.append(PlannedRow(name, source, protocol, images, phases, augment, inits))
    if settings.full_data_epochs:
        training = replace(settings.training, epochs=settings.full_data_epochs)
        phases = (Phase((1, 1), training, training.steps(real_images)),)
        rows.append(PlannedRow(f"{FULL}{suffix}", "full", "all images", (real_images,), phases, augment, fresh))
    return rows


def _staged_phases(
    source: Source, protocol: str, synthetic: SyntheticSet, stored: Sequence[int], training: TrainingSettings
) -> tuple[Phase, ...]:
    """The training on a set with as many stored images in each stage."""
    decoded = [count * synthetic.decode_factor**2 for count in stored]
    steps = stage_steps(decoded, training)
    if source == "distilled":
        return tuple(protocol_phases(protocol, decoded, synthetic.learning_rates, training, steps))
    return tuple(protocol_phases(protocol, stored, [None] * len(stored), training, steps))
