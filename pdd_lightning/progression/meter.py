"""What is measured while a stage goes on, and the report of a finished stage."""

from __future__ import annotations

import resource
import statistics
import sys

import torch

from pdd_lightning.experts import TrajectoryStore
from pdd_lightning.results.schema import StageReport
from pdd_lightning.stages import DistillationStage
from pdd_lightning.stored import Count, Seconds, Stored


class StageMeter(Stored, frozen=False):
    """Loss and time of a stage's iterations.

    The loss is averaged over the first and over the last twentieth of the iterations (at least one). Only sums are
    kept, since a stage may have millions of iterations and checkpoints hold this.

    Attributes:
        first_sum: Sum of the losses in the first twentieth.
        first_count: Number of them.
        last_sum: Sum of the losses in the last twentieth.
        last_count: Number of them.
        latest: The last loss seen.
        seconds: Time of the iterations.
    """

    first_sum: float = 0.0
    first_count: Count = 0
    last_sum: float = 0.0
    last_count: Count = 0
    latest: float = 0.0
    seconds: Seconds = 0.0

    def add(self, loss: float, iteration: int, iterations: int) -> None:
        """Add the loss of an iteration (from 0) of a stage of `iterations`."""
        few = max(1, iterations // 20)
        if iteration < few:
            self.first_sum += loss
            self.first_count += 1
        if iteration >= iterations - few:
            self.last_sum += loss
            self.last_count += 1
        self.latest = loss

    @property
    def first_loss(self) -> float:
        """Mean over the first twentieth."""
        return self.first_sum / max(self.first_count, 1)

    @property
    def last_loss(self) -> float:
        """Mean over the last twentieth; the latest loss if a stage ended early."""
        return self.last_sum / self.last_count if self.last_count else self.latest

    def report(
        self,
        stage: int,
        module: DistillationStage,
        matched: TrajectoryStore | None,
        recorded: TrajectoryStore,
        scoring_seconds: float,
    ) -> StageReport:
        """Return the report of a stage that has just entered the union.

        It matched the trajectories of `matched`, if any; `recorded` starts from networks trained on the new union.
        """
        accuracies = [record.start_accuracy for record in recorded.records]
        matched_seconds = sum(record.record_seconds for record in matched.records) if matched else 0.0
        kept = module.state.kept.get(stage, module.data.real.train)
        return StageReport(
            stage=stage,
            images=len(module.data.union.labels),
            real_images=len(kept),
            learned_lr=module.learned_lr,
            lr_img=module.lr_img,
            first_loss=self.first_loss,
            last_loss=self.last_loss,
            val_accuracy=statistics.fmean(accuracies),
            val_std=statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
            val_networks=len(accuracies),
            seconds={
                "experts": scoring_seconds + matched_seconds,
                "distil": self.seconds,
                "transition": sum(record.start_seconds for record in recorded.records),
            },
            peak_memory_mb=_peak_memory_mb(module.device),
        )


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
