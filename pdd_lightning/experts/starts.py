"""Where the experts of a later stage start: networks trained on the union of the stages so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from pdd_lightning.augment import DSA
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.experts.trajectory_store import TrajectoryStore
from pdd_lightning.networks.parameters import load_flat
from pdd_lightning.randomness import generator_for
from pdd_lightning.training import TrainingSettings, train_networks


@dataclass(frozen=True)
class StartPoint:
    """Where the experts of a later stage start: the former start points, trained on the union.

    Attributes:
        previous: Opens the trajectories of the former stage; expert j continues from its snapshot 0, or from its
            random initialisation where there are none. Called only when an expert has to be recorded.
        union: All images distilled so far, as networks are trained on them (decoded).
        training: Settings of the training on the union.
        at_once: Networks trained at once, see `train_networks`.
    """

    previous: Callable[[], TrajectoryStore | None]
    union: SyntheticSet
    training: TrainingSettings
    at_once: int = 1

    @property
    def steps(self) -> int:
        """Optimiser steps of one network."""
        return self.training.steps(len(self.union.labels))

    def description(self) -> dict[str, Any]:
        """What the start points depend on, for the manifest; up to rounding, `at_once` is not part of it."""
        return {
            "union": self.union.sha256(),
            "training": asdict(self.training),
        }


def train_starts(
    networks: Sequence[nn.Module],
    experts: Sequence[int],
    start: StartPoint,
    augment: DSA,
    seed: int,
    on_steps: Callable[[int], Any],
    first: int = 0,
) -> None:
    """Makes freshly initialised networks the start points of a stage's experts.

    Args:
        networks: Their networks, on the union's device; trained at once.
        experts: Numbers of the experts.
        start: The start point.
        augment: Augmentation of the union's images.
        seed: Seed of the run.
        on_steps: Called with the number of optimiser steps just done, over all networks.
        first: Number of the first expert, see `ExpertRecorder`.
    """
    previous, union, number = start.previous(), start.union, len(experts)
    if previous is not None:
        for network, expert in zip(networks, experts, strict=True):
            load_flat(network, previous.segment(expert, 0, 0)[0])
    generators = [generator_for(seed, "transition", union.num_stages, first + expert) for expert in experts]
    steps = number * start.steps // max(start.training.epochs, 1)
    images, labels = [union.images] * number, [union.labels] * number
    train_networks(networks, images, labels, start.training, augment, generators, lambda *_: on_steps(steps))
