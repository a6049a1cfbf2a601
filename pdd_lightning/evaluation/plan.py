"""Which networks are trained on which sets with which settings, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from pdd_lightning.augment import DSA
from pdd_lightning.data.pixels import PixelSpace
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.evaluation.baselines import Baseline
from pdd_lightning.evaluation.protocols import Phase, protocol_phases, stage_steps
from pdd_lightning.evaluation.settings import EvaluationSettings
from pdd_lightning.results.store import ResultStore
from pdd_lightning.typing import NetworkFactory

Part = Literal["val", "test"]
Source = Literal["distilled", "full"] | Baseline
ROW_NAMES: dict[Source, str] = {
    "distilled": "distilled",
    "random": "random real",
    "herding": "herding",
    "kmeans": "k-means centres",
    "full": "full real",
}


@dataclass(frozen=True)
class Subject:
    """What is evaluated, with what, and where.

    Attributes:
        synthetic: The distilled set as it is stored. Networks are trained on the decoded images; baselines have as
            many images as are stored.
        real: Real images, set up.
        pixels: The model space of the distilled set; real images are brought into it.
        factory: Makes the networks.
        augment: The augmentation that the set was distilled with.
        part: Which real images the networks are scored on.
        seed: Seed of initialisations, batch orders, augmentation and baselines.
        device: Where to train.
        experts: Folder of the experts' trajectories, for networks that begin where they began.
        store: Keeps what is computed.
    """

    synthetic: SyntheticSet
    real: RealDataModule
    pixels: PixelSpace
    factory: NetworkFactory
    augment: DSA
    part: Part
    seed: int
    device: torch.device
    experts: Path | None = None
    store: ResultStore = field(default_factory=ResultStore)


@dataclass(frozen=True)
class NetworkPlan:
    """One network of an evaluation.

    Attributes:
        row: Name of the row that it belongs to.
        source: What it is trained on.
        protocol: How it is trained on a staged set; `all images` on the full real set.
        number: Number of the network in its row, from 0.
        expert: The expert in whose initialisation it begins; None for a fresh one.
        images: Images until the end of each phase, as they are stored.
        phases: Its training.
        augment: Augmentation of the training images.
    """

    row: str
    source: Source
    protocol: str
    number: int
    expert: int | None
    images: tuple[int, ...]
    phases: tuple[Phase, ...]
    augment: DSA

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return sum(phase.steps for phase in self.phases)

    def about(self) -> dict[str, Any]:
        """What all networks of the row have in common, as JSON."""
        training = asdict(self.phases[0].training)
        per_phase = [
            {
                "stages": list(phase.stages),
                "steps": phase.steps,
                "epochs": phase.training.epochs,
                "lr": phase.training.lr,
            }
            for phase in self.phases
        ]
        return {
            "row": self.row,
            "source": self.source,
            "protocol": self.protocol,
            "init": "fresh" if self.expert is None else "expert",
            "images": list(self.images),
            "phases": per_phase,
            "training": {name: training[name] for name in _COMMON} | {"milestones": list(training["milestones"])},
            "augment": self.augment.strategy,
            "align_corners": self.augment.align_corners,
            "augment_together": self.augment.together,
        }


_COMMON = ("batch_size", "momentum", "weight_decay", "gamma", "cutmix")


def plan_networks(
    subject: Subject, settings: EvaluationSettings, experts: Sequence[int] = (), suffix: str = ""
) -> list[NetworkPlan]:
    """The networks of an evaluation, row by row: distilled, experts' inits, baselines, full real set.

    All rows but the full real set take the same number of optimiser steps.

    Args:
        subject: What is evaluated.
        settings: How.
        experts: The experts in whose initialisations networks begin, at most one for each network of a row.
        suffix: What the names of the rows end with.
    """
    rows = _Rows(subject, settings, suffix)
    plans = [plan for protocol in settings.protocols for plan in rows.staged("distilled", protocol)]
    if settings.expert_inits:
        plans += [plan for protocol in settings.protocols for plan in rows.staged("distilled", protocol, experts)]
    for baseline in settings.baselines:
        plans += [plan for protocol in settings.protocols for plan in rows.staged(baseline, protocol)]
    return plans + (rows.full() if settings.full_data_epochs else [])


class _Rows:
    """Makes the plans of rows."""

    def __init__(self, subject: Subject, settings: EvaluationSettings, suffix: str) -> None:
        synthetic = subject.synthetic
        self.settings = settings
        self.suffix = suffix
        self.augment = settings.augmentation(subject.augment)
        self.stored = torch.bincount(synthetic.stages, minlength=synthetic.num_stages + 1)[1:].tolist()
        self.decoded = [count * synthetic.decode_factor**2 for count in self.stored]
        self.rates = synthetic.learning_rates
        self.real_images = len(subject.real.train)

    def staged(self, source: Source, protocol: str, experts: Sequence[int] | None = None) -> list[NetworkPlan]:
        """Networks trained on a staged set by one protocol, in fresh or in the experts' initialisations."""
        distilled = source == "distilled"
        training = self.settings.training
        phases = protocol_phases(
            protocol,
            self.decoded if distilled else self.stored,
            self.rates if distilled else [None] * len(self.rates),
            training,
            stage_steps(self.decoded, training),
        )
        images = tuple(sum(self.stored[: phase.stages[1]]) for phase in phases)
        name = ROW_NAMES[source] + ("" if experts is None else ", experts' inits") + self.suffix
        numbers = range(self.settings.num_networks)
        inits: Sequence[int | None] = [None for _ in numbers] if experts is None else experts[: len(numbers)]
        return [
            NetworkPlan(name, source, protocol, number, expert, images, tuple(phases), self.augment)
            for number, expert in enumerate(inits)
        ]

    def full(self) -> list[NetworkPlan]:
        """Networks trained on the full real set."""
        training = replace(self.settings.training, epochs=self.settings.full_data_epochs)
        count = self.real_images
        phases = (Phase((1, 1), training, training.steps(count)),)
        return [
            NetworkPlan(
                ROW_NAMES["full"] + self.suffix, "full", "all images", number, None, (count,), phases, self.augment
            )
            for number in range(self.settings.num_networks)
        ]
