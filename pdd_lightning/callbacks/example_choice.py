"""Which real examples the stages of a run use: the schedule, and the scores that it goes by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pdd_lightning.data import DiscardSettings, ForgettingScores
from pdd_lightning.experts import TrajectoryStore, forgetting_scores
from pdd_lightning.stages import DistillationStage


class ExampleChoice:
    """Leaves easy real examples out of stages.

    The scores are made once, from networks trained on the whole training part from random initialisation, and hold for
    all stages: networks of later stages no longer see every example.

    Args:
        settings: The schedule.

    Attributes:
        scores: Scores of the training part, in its order, once they are known.
    """

    def __init__(self, settings: DiscardSettings) -> None:
        self.settings = settings
        self.scores: ForgettingScores | None = None

    def setup(self, module: DistillationStage) -> None:
        """Reads scores that were given, and refuses a schedule that cannot work."""
        real = module.data.real
        self.settings.check_classes(real, module.init_images)
        if self.settings.scores is not None:
            self.scores = ForgettingScores.load(self.settings.scores).of(real.train.indices)

    def apply(
        self,
        module: DistillationStage,
        num_stages: int,
        first_experts: Callable[[], TrajectoryStore | None],
        scoring_networks: Callable[[], TrajectoryStore],
    ) -> ForgettingScores | None:
        """Tells the data module which examples each stage uses.

        Args:
            module: The method.
            num_stages: Number of stages.
            first_experts: Opens the experts of the first stage, or None where the method has none.
            scoring_networks: Records networks for the scores alone.

        Returns:
            The scores; None where the run has none and needs none.
        """
        data = module.data
        if self.scores is None and (self.settings.schedule or data.stage == 1):
            self.scores = self._make(data.real.train.indices, first_experts, scoring_networks)
        if self.scores is not None:
            labels, least = data.real.train.labels, self.settings.least(module.init_images)
            dropping = [stage for stage in range(1, num_stages + 1) if self.settings.drops(stage)]
            data.keep_only({stage: self.settings.kept(stage, self.scores, labels, least) for stage in dropping})
        return self.scores

    def description(self) -> dict[str, Any]:
        """What a continued run must not change, as plain data; empty where nothing is left out."""
        if not self.settings.schedule:
            return {}
        given = self.scores.sha256() if self.scores and self.settings.scores else None
        return {"discard": {**self.settings.description(), "scores": given}}

    def state_dict(self) -> dict[str, Tensor]:
        """Scores that were made in the run, where it depends on them."""
        made = self.scores and self.settings.schedule and not self.settings.scores
        return self.scores.tensors() if self.scores and made else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave; scores from a file are read from there."""
        if state and not self.settings.scores:
            self.scores = ForgettingScores(**state)

    def _make(
        self,
        indices: Tensor,
        first_experts: Callable[[], TrajectoryStore | None],
        scoring_networks: Callable[[], TrajectoryStore],
    ) -> ForgettingScores | None:
        """Scores by the first stage's experts; by other networks where these have none, but they are needed."""
        if not self.settings.drops(1):
            store = first_experts()
            scores = None if store is None else forgetting_scores(store, indices)
            if scores is not None or not self.settings.schedule:
                return scores
        return forgetting_scores(scoring_networks(), indices)


def begun(settings: dict[str, Any], stage: int) -> dict[str, Any]:
    """Described settings of a run without what stages after `stage` leave out, which may still change."""
    stages = settings.get("stages", {})
    if "discard" not in stages:
        return settings
    # The schedule is the dictionary with an entry per stage.
    discard = {
        name: dict(list(value.items())[:stage]) if isinstance(value, dict) else value
        for name, value in stages["discard"].items()
    }
    return {**settings, "stages": {**stages, "discard": discard}}
