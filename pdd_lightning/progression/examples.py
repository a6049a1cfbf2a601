"""The real examples that the stages of a run use, by a schedule and forgetting scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pdd_lightning.data import DiscardSettings, ForgettingScores
from pdd_lightning.experts import TrajectoryStore
from pdd_lightning.metrics import Forgetting
from pdd_lightning.stages import DistillationStage


class ExampleChoice:
    """Leaves easy real examples out of stages.

    The scores are computed once, from networks trained on the whole training part from random initialization, and hold
    for all stages, since networks of later stages do not see every example.

    Args:
        settings: The schedule.

    Attributes:
        scores: Scores of the training part, in its order, once known.
    """

    def __init__(self, settings: DiscardSettings) -> None:
        self.settings = settings
        self.scores: ForgettingScores | None = None

    def setup(self, module: DistillationStage) -> None:
        """Read given scores, and refuse a schedule that cannot work."""
        real = module.data.real
        self.settings.check_classes(real, module.init_images)
        if self.settings.scores is not None:
            self.scores = ForgettingScores.load(self.settings.scores).of(real.train.indices)

    def make_scores(
        self,
        module: DistillationStage,
        first_experts: Callable[[], TrajectoryStore | None],
        scoring_networks: Callable[[], TrajectoryStore],
    ) -> None:
        """Compute missing scores from the experts of the first stage, if any, or from networks trained for them."""
        needed = bool(self.settings.schedule)
        if self.scores is not None or not (needed or module.state.stage == 1):
            return
        indices = module.data.real.train.indices
        if not self.settings.drops(1) and (store := first_experts()) is not None:
            self.scores = forgetting_scores(store, indices)
        if self.scores is None and needed:
            self.scores = forgetting_scores(scoring_networks(), indices)

    def kept(self, module: DistillationStage, num_stages: int) -> dict[int, Tensor]:
        """Return, for each stage that leaves out examples, the indices `[n]` of the others in the training part."""
        assert self.scores is not None
        labels, least = module.data.real.train.labels, self.settings.least(module.init_images)
        dropping = [stage for stage in range(1, num_stages + 1) if self.settings.drops(stage)]
        return {stage: self.settings.kept(stage, self.scores, labels, least) for stage in dropping}

    def description(self) -> dict[str, Any]:
        """Return what a continued run must not change; empty if nothing is left out."""
        if not self.settings.schedule:
            return {}
        given = self.scores.sha256() if self.scores and self.settings.scores else None
        return {"discard": {**self.settings.description(), "scores": given}}

    def state_dict(self) -> dict[str, Tensor]:
        """Return scores that were computed in the run, if it depends on them."""
        made = self.scores and self.settings.schedule and not self.settings.scores
        return self.scores.tensors() if self.scores and made else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a `state_dict`; scores from a file are read from there."""
        if state and not self.settings.scores:
            self.scores = ForgettingScores(**state)


def forgetting_scores(store: TrajectoryStore, indices: Tensor) -> ForgettingScores | None:
    """Return the scores of the examples that experts were trained on, averaged over the experts, if they are recorded.

    Args:
        store: Experts that were all trained on these examples.
        indices: Positions of the examples in the source's train order `[N]`.
    """
    found = [store.forgetting(expert) for expert in range(store.number)]
    if None in found:
        return None
    each = Forgetting(*map(torch.stack, zip(*found, strict=True)))
    counts, learned = each.counts.double(), each.learned
    epochs = len(store.records[0].losses)
    scores = torch.where(learned, counts, epochs // 2).mean(0)  # to be forgotten takes two epochs
    scores[~learned.any(0)] = torch.inf
    return ForgettingScores(indices, scores, counts.mean(0), each.errors.double().mean(0), learned.double().mean(0))
