"""Renewing the pool of trained networks in the course of a stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from pdd_lightning import distributed
from pdd_lightning.errors import ConfigError
from pdd_lightning.experts.recorder import ExpertRecorder
from pdd_lightning.experts.starts import StartPoint
from pdd_lightning.experts.store import TrajectoryStore, delete_folders

OpenStore: TypeAlias = Callable[[], TrajectoryStore | None]


@dataclass(frozen=True)
class PoolSettings:
    """The networks that gradient and distribution matching draw from after the first stage.

    They are trained through the unions of all finished stages. How many there are is `stages.experts.number`.

    Attributes:
        refresh_every: Iterations of a stage after which other networks take the place of the pool's, trained through
            the same unions from initialisations of their own; null keeps the pool for the whole stage.
    """

    refresh_every: int | None = None

    def __post_init__(self) -> None:
        if self.refresh_every is not None and self.refresh_every < 1:
            raise ConfigError(f"pool.refresh_every must be >= 1 iteration, or null, got {self.refresh_every}")

    def generation(self, iteration: int) -> int:
        """Which pool an iteration (from 0) of a stage draws from; 0 is the one that the transition left."""
        return iteration // self.refresh_every if self.refresh_every else 0


def renewed_pool(
    recorder: ExpertRecorder,
    start_point: Callable[[int, OpenStore], StartPoint],
    stages: int,
    generation: int,
    root: Path,
) -> TrajectoryStore:
    """Records a pool of other networks, and deletes the renewed pools before it once it is complete.

    What is recorded already is kept, so that it can be interrupted. The pool that the transition left stays, since
    the next transition continues from it.

    Args:
        recorder: Makes the networks; those of another generation have other numbers.
        start_point: Makes the start point after so many stages from what opens the former ones.
        stages: Number of finished stages, at least one.
        generation: Number of the pool in the stage, from 1.
        root: Folder of the run's experts.
    """

    def trained_through(stage: int) -> TrajectoryStore | None:
        if stage == 0:
            return None
        start = start_point(stage, lambda: trained_through(stage - 1))
        title = f"Networks of stage {stages + 1}, pool {generation + 1}, union {stage}"
        return recorder.record(root / f"theta_{stage}_pool_{generation}", 0, start, title)

    store = trained_through(stages)
    assert store is not None
    if distributed.rank() == 0:
        delete_folders(root, "theta_*_pool_*", kept=store.folder)
    distributed.barrier()
    return store
