"""What a run is refused for before it begins: settings that cannot work, and a continued run's other settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pdd_lightning.errors import ConfigError, differences
from pdd_lightning.experts import ExpertSettings
from pdd_lightning.progression.examples import ExampleChoice
from pdd_lightning.progression.transition import PoolSettings, TransitionSettings
from pdd_lightning.stages import DistillationStage

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Precisions of the trainer that stages support."""


def check_method(module: DistillationStage, precision: str, experts: ExpertSettings, pool: PoolSettings) -> None:
    """Refuses settings of the run that the method cannot work with.

    Raises:
        ConfigError: The precision is not supported, experts record fewer epochs than the method needs, or there are
            settings for what the method does not use.
    """
    method, needed = type(module).__name__, module.trajectory_epochs
    if precision not in PRECISIONS:
        raise ConfigError(
            f"precision {precision} is not supported, since images and trajectories are float32: choose one of"
            f" {', '.join(PRECISIONS)}"
        )
    if experts.epochs is not None and experts.epochs < needed:
        raise ConfigError(
            f"the method reads expert snapshots up to epoch {needed} (max_start_epoch + expert_epochs), but"
            f" stages.experts.epochs records only {experts.epochs}: raise it, or lower max_start_epoch"
        )
    if needed == 0 and (experts.epochs or experts.folder):
        raise ConfigError(
            f"{method} follows no trajectories, so that no experts are recorded for it: leave out"
            " stages.experts.epochs and stages.experts.folder"
        )
    if needed and pool.renew_every:
        raise ConfigError(
            f"{method} follows trajectories and draws from no pool of networks: leave out stages.pool.renew_every"
        )


def run_settings(
    module: DistillationStage,
    iterations: int,
    transition: TransitionSettings,
    pool: PoolSettings,
    examples: ExampleChoice,
) -> dict[str, Any]:
    """All settings that the images depend on, as JSON, but those that may change when a run is continued."""
    between = asdict(transition)
    del between["at_once"]  # the same up to rounding
    stages = {"iterations": iterations, "transition": between}
    if pool.renew_every:
        stages["pool"] = asdict(pool)
    stages |= examples.description()
    settings = {"model": _fixed(module), "stages": stages, "precision": module.trainer.precision}
    # As it comes back from a checkpoint or a file, so that the two compare equal.
    comparable: dict[str, Any] = json.loads(json.dumps(settings))
    return comparable


def check_method_unchanged(stored: dict[str, Any], module: DistillationStage) -> None:
    """Refuses to evaluate a run with another method, or another kind of network, than it was distilled with.

    Args:
        stored: `run_settings` of the checkpoint.
        module: The method now.

    Raises:
        ConfigError: The settings of the method differ; the message lists how.
    """
    if changes := differences(stored.get("model", {}), json.loads(json.dumps(_fixed(module))), "model"):
        listed = "\n  ".join(changes)
        raise ConfigError(
            f"the checkpoint was made with other settings:\n  {listed}\nRestore them; `pdd evaluate` evaluates the"
            " distilled set with other networks."
        )


def _fixed(module: DistillationStage) -> dict[str, Any]:
    """The method's settings that may not change when a run is continued."""
    return {name: value for name, value in module.settings.items() if name not in module.may_change}


def check_unchanged(stored: dict[str, Any], settings: dict[str, Any], stage: int, may_change: Sequence[str]) -> None:
    """Refuses to continue a run with other settings.

    Args:
        stored: `run_settings` of the checkpoint; empty for a new run.
        settings: `run_settings` now.
        stage: The stage to be continued. What later ones leave out may change.
        may_change: Settings of the method that may change, for the message.

    Raises:
        ConfigError: The settings differ; the message lists how.
    """
    before, now = as_of_stage(stored, stage), as_of_stage(settings, stage)
    if stored and before != now:
        changes = "\n  ".join(differences(before, now))
        raise ConfigError(
            f"the checkpoint was made with other settings:\n  {changes}\nRestore them, or begin a new run in another"
            f" folder. Only {', '.join(may_change)} and stages.num_stages may change, and what stages to come leave out"
            " (stages.discard)."
        )


def as_of_stage(settings: dict[str, Any], stage: int) -> dict[str, Any]:
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
