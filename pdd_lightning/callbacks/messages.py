"""What a run prints: what it works on, the time left, warnings, and how to go on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from pdd_lightning.progress import print_above_bars
from pdd_lightning.progression.observer import StageObserver, stage_module
from pdd_lightning.results.schema import DISTILLED, RANDOM, StageReport
from pdd_lightning.stages import DistillationStage

HIGH_LOSS = 1.5
"""A first trajectory matching loss above which students move away from the experts: 1 means not moving at all."""
RATE_DROP = 100
"""A learned rate that falls by this factor leaves networks where they are."""


class RunMessages(StageObserver):
    """Print what a run works on, the time left after each stage, warnings, and the next commands."""

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe the real images and the work to be done."""
        module = stage_module(pl_module)
        state = module.state
        self._began, self._done_before = time.monotonic(), state.union.num_stages
        print(module.data.real)
        if not state.finished:
            print(f"{type(module).__name__}: {state.num_stages} stages of {state.iterations:,} iterations")

    @rank_zero_only
    def on_stage_end(self, trainer: Trainer, stage_module: DistillationStage, history: list[StageReport]) -> None:
        """Warn of a stage that went wrong, and estimate the time left."""
        report = history[-1]
        for warning in warnings_of(report, stage_module):
            print_above_bars(f"Warning: {warning}")
        left = stage_module.state.num_stages - report.stage
        if left:
            per_stage = (time.monotonic() - self._began) / max(report.stage - self._done_before, 1)
            print_above_bars(f"About {duration(left * per_stage)} left for {left} more stage{'s' * (left > 1)}")

    @rank_zero_only
    def on_run_evaluated(self, trainer: Trainer, stage_module: DistillationStage, rows: list[dict[str, Any]]) -> None:
        """Warn of a set that is no better than random real images."""
        means = {row["row"]: row["mean"] for row in reversed(rows)}  # of several protocols, the first
        if RANDOM in means and means[DISTILLED] <= means[RANDOM]:
            print("Warning: the distilled set is no better than as many random real images.")

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the results are, and which commands come next."""
        if stage_module(pl_module).state.finished:
            root = Path(trainer.default_root_dir)
            print(f"The distilled set is {root / 'distilled.safetensors'}; pictures of it are in {root / 'images'}.")
            print(f"Next: `pdd test {root}` scores it on the test images; `pdd report {root}` shows the run on a page.")


def warnings_of(report: StageReport, module: DistillationStage) -> list[str]:
    """Say what went wrong in a stage, and what to change.

    Args:
        report: What the stage came to.
        module: Its method.

    Returns:
        A sentence for each problem; a method without trajectories has none of these.
    """
    if module.trajectory_epochs == 0 or report.learned_lr is None:
        return []
    advice = "lower model.lr_teacher or model.syn_steps, or let expert segments be longer (model.expert_epochs)"
    found = []
    if report.first_loss > HIGH_LOSS:
        found.append(f"stage {report.stage} began with a matching loss of {report.first_loss:.2f}, above 1: {advice}")
    if report.learned_lr * RATE_DROP < module.default_lr:
        found.append(f"the learned rate of stage {report.stage} fell to {report.learned_lr:.1g}: {advice}")
    return found


def duration(seconds: float) -> str:
    """Format a time: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
