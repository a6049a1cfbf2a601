"""Plans of evaluations: which networks are trained on which sets with which settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch

from pdd_lightning.augment import DSA
from pdd_lightning.errors import ConfigError, check_at_least
from pdd_lightning.evaluation.baselines import BASELINES, Baseline
from pdd_lightning.evaluation.subject import Subject
from pdd_lightning.results.schema import DISTILLED, FULL, RANDOM
from pdd_lightning.training import TrainingSettings

Protocol: TypeAlias = Literal["progressive", "union", "sequential"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)
Source: TypeAlias = Literal["distilled", "full"] | Baseline
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
    """Settings of an evaluation.

    Attributes:
        num_networks: Networks per row, each with its own initialization, which no expert used.
        random_sets: Random real sets, each with a network of its own, since a few say little of how good random images
            are; at least `num_networks`.
        epochs: Epochs of each progressive phase; every protocol takes as many steps.
        protocols: How networks are trained on staged sets, one row each: progressive, union, sequential.
        baselines: Sets that the distilled one is compared with in `test`: random, herding, kmeans.
        lr: Learning rate for sets without a learned one.
        batch_size: Images per step.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty of SGD.
        full_data_epochs: Epochs of training on the full real set, and of the network for herding; 0 leaves that row
            out.
        milestones: Fractions of a phase's epochs, in (0, 1), after which the learning rate drops.
        gamma: Factor of each drop.
        cutmix: Probability with which a batch is mixed by CutMix.
        augment: Operations joined by `_`, or `none`, see `pdd_lightning.augment.DSA`; null: as the set was distilled.
        expert_inits: Evaluate the distilled set also with networks that have the initializations of experts.
        every_stage: Show the accuracy after each stage of progressive training, in rows of their own.
    """

    num_networks: int = 5
    random_sets: int = 10
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
        for name, least in (("num_networks", 1), ("random_sets", 1), ("epochs", 1), ("full_data_epochs", 0)):
            check_at_least(least, **{f"evaluation.{name}": getattr(self, name)})
        check_choices("protocols", self.protocols, PROTOCOLS)
        check_choices("baselines", self.baselines, BASELINES, optional=True)
        if "herding" in self.baselines and not self.full_data_epochs:
            raise ConfigError(
                "baselines: herding chooses images by a network trained on the full real set: set full_data_epochs,"
                " or leave herding out"
            )
        _ = self.training, self.augmentation(DSA())  # which refuse what cannot work

    @property
    def training(self) -> TrainingSettings:
        """Return the training of a progressive phase."""
        return TrainingSettings.of(self)

    def augmentation(self, distilled_with: DSA) -> DSA:
        """Return the augmentation of the training, given that of the distillation."""
        if self.augment is None:
            return distilled_with
        return DSA(self.augment, distilled_with.align_corners, distilled_with.together)


class Phase(NamedTuple):
    """Part of a training on first to last stage, with a new optimizer; its steps may end within the last epoch."""

    stages: tuple[int, int]
    training: TrainingSettings
    steps: int


@dataclass(frozen=True)
class PlannedRow:
    """Networks that are trained on the same images in the same way.

    Attributes:
        source: What they are trained on.
        protocol: How they are trained on a staged set; `all images` for the full real set.
        images: Number of stored images until the end of each phase.
        inits: The expert whose initialization each network has; None for a fresh one.
    """

    row: str
    source: Source
    protocol: str
    images: tuple[int, ...]
    phases: tuple[Phase, ...]
    augment: DSA
    inits: tuple[int | None, ...]

    def about(self) -> dict[str, Any]:
        """Describe the networks as JSON."""
        common = asdict(self.phases[0].training)
        phases = [
            {"stages": list(stages), "steps": steps, "epochs": training.epochs, "lr": training.lr}
            for stages, training, steps in self.phases
        ]
        return {
            "row": self.row,
            "source": self.source,
            "protocol": self.protocol,
            "init": "fresh" if None in self.inits else "expert",
            "images": list(self.images),
            "phases": phases,
            "training": {name: common[name] for name in _COMMON} | {"milestones": list(common["milestones"])},
            "augment": self.augment.strategy,
            "align_corners": self.augment.align_corners,
            "augment_together": self.augment.together,
        }


def plan_rows(
    subject: Subject, settings: EvaluationSettings, experts: Sequence[int] = (), suffix: str = ""
) -> list[PlannedRow]:
    """Plan the rows of an evaluation: distilled set, experts' initializations, baselines, full real set.

    All rows but that of the full real set take the same number of optimizer steps. Their names end with `suffix`.
    """
    synthetic, count = subject.synthetic, len(subject.real.train)
    augment, training = settings.augmentation(subject.augment), settings.training
    stored = torch.bincount(synthetic.stages, minlength=synthetic.num_stages + 1)[1:].tolist()
    decoded = [images * synthetic.decode_factor**2 for images in stored]
    steps, no_rates = stage_steps(decoded, training), [None] * len(stored)
    fresh = (None,) * settings.num_networks
    sets: list[tuple[Source, str, tuple[int | None, ...]]] = [("distilled", "", fresh)]
    if settings.expert_inits:
        sets.append(("distilled", ", experts' inits", tuple(experts[: settings.num_networks])))
    drawn = (None,) * max(settings.num_networks, settings.random_sets)
    sets += [(baseline, "", drawn if baseline == "random" else fresh) for baseline in settings.baselines]
    rows = []
    for source, init, inits in sets:
        counts, rates = (decoded, synthetic.learning_rates) if source == "distilled" else (stored, no_rates)
        for protocol in settings.protocols:
            phases = tuple(protocol_phases(protocol, counts, rates, training, steps))
            images = tuple(sum(stored[: phase.stages[1]]) for phase in phases)
            name = f"{ROW_NAMES[source]}{init}{suffix}"
            rows.append(PlannedRow(name, source, protocol, images, phases, augment, inits))
    if settings.full_data_epochs:
        training = replace(training, epochs=settings.full_data_epochs)
        phases = (Phase((1, 1), training, training.steps(count)),)
        rows.append(PlannedRow(f"{FULL}{suffix}", "full", "all images", (count,), phases, augment, fresh))
    return rows


def stage_steps(counts: Sequence[int], training: TrainingSettings) -> list[int]:
    """Return the optimizer steps of each phase of progressive training, if stages add `counts` decoded images."""
    return [training.steps(sum(counts[:stage])) for stage in range(1, len(counts) + 1)]


def protocol_phases(
    protocol: str,
    counts: Sequence[int],
    rates: Sequence[float | None],
    training: TrainingSettings,
    steps: Sequence[int],
) -> list[Phase]:
    """Return the phases of a protocol; all protocols take exactly `sum(steps)` optimizer steps.

    - `progressive`: the unions U_1, U_2, .. U_P in turn.
    - `union`: U_P alone, for as many steps as all of these together.
    - `sequential`: S_1, S_2, .. S_P in turn, each for as many steps as progressive training spends there.

    The last epoch of a phase may be incomplete. The learning rate drops at the first epoch that begins at or after the
    milestone, counted in epochs of the phase.

    Args:
        protocol: One of `PROTOCOLS`.
        counts: Decoded images that each stage adds.
        rates: Learning rate learned in each stage, if any; a phase uses that of its last stage.
        training: Training; its learning rate is used if none was learned, its epochs follow from the steps.
        steps: Optimizer steps of each progressive phase, see `stage_steps`; the same for all sets that are compared.

    Reference:
        Chen et al., Data Distillation Can Be Like Vodka (ICLR 2024), section 3: progressive training.
    """
    last = len(counts)
    if protocol == "union":
        spans, shares = [(1, last)], [sum(steps)]
    else:
        spans = [(1 if protocol == "progressive" else stage, stage) for stage in range(1, last + 1)]
        shares = list(steps)
    phases = []
    for (start, end), share in zip(spans, shares, strict=True):
        epochs = -(-share // replace(training, epochs=1).steps(sum(counts[start - 1 : end])))
        learned_lr = rates[end - 1]
        lr = training.lr if learned_lr is None else learned_lr
        phases.append(Phase((start, end), replace(training, epochs=epochs, lr=lr), share))
    return phases


def check_choices(name: str, chosen: Sequence[str], known: Sequence[str], optional: bool = False) -> None:
    """Refuse unknown and repeated choices.

    Raises:
        ConfigError: A choice is unknown or repeated, or there is none and it is not optional.
    """
    if not set(chosen) <= set(known) or len(set(chosen)) < len(chosen) or not (chosen or optional):
        raise ConfigError(f"{name} must name some of {', '.join(known)}, each once, got {list(chosen)}")
