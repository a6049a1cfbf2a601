"""Where the experts of a later stage start: networks trained on the union of the stages so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.experts.trajectory_store import TrajectoryStore
from pdd_lightning.training import TrainingSettings


@dataclass(frozen=True)
class StartPoint:
    """Where the experts of a later stage start: the former start points, trained on the union.

    Attributes:
        previous: Opens the trajectories of the former stage; expert j continues from its snapshot 0, or from its
            random initialization if there are none. Called only when an expert has to be recorded.
        phases: Unions that networks are trained on, decoded, in order, each with its settings; the last one holds all
            images distilled so far.
        at_once: Networks trained at once, see `train_networks`.
    """

    previous: Callable[[], TrajectoryStore | None]
    phases: tuple[tuple[SyntheticSet, TrainingSettings], ...]
    at_once: int = 1

    @property
    def num_stages(self) -> int:
        """Stages of the last union."""
        return self.phases[-1][0].num_stages

    @property
    def steps(self) -> int:
        """Optimizer steps of one network."""
        return sum(training.steps(len(union.labels)) for union, training in self.phases)

    def to(self, device: torch.device) -> StartPoint:
        """Return the same with all unions on `device`."""
        return replace(self, phases=tuple((union.to(device), training) for union, training in self.phases))

    def description(self) -> dict[str, Any]:
        """Return what the start points depend on, for the manifest; by more than rounding, so without `at_once`."""
        *earlier, last = ({"union": union.sha256(), "training": asdict(training)} for union, training in self.phases)
        return {**last, "earlier": earlier} if earlier else last
