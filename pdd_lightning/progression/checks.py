"""Checks before a run begins: settings that cannot work, and changed settings of a continued run."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import torch

from pdd_lightning.data.formats import open_distilled
from pdd_lightning.data.progressive import RunState
from pdd_lightning.data.splits import to_unit
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError, DataError, differences
from pdd_lightning.evaluation.subject import check_match
from pdd_lightning.experts import ExpertSettings
from pdd_lightning.progression.transition import PoolSettings
from pdd_lightning.stages import DistillationStage

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Precisions of the trainer that stages support."""


def check_method(module: DistillationStage, precision: str, experts: ExpertSettings, pool: PoolSettings) -> None:
    """Refuse settings of the run that the method cannot work with.

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


def given_stages(path: str, module: DistillationStage, num_stages: int) -> SyntheticSet:
    """Return the distilled set at `path` with which a run of `num_stages` stages begins.

    Raises:
        ConfigError: The run has no stage beyond those of the set.
        DataError: The set is missing, or its images do not fit those of the run.
        DamagedFileError: The set is truncated or altered.
    """
    real = module.data.real
    given = open_distilled(path, real, stored=True)
    check_match(path, given, real)
    stages, factor = given.synthetic.num_stages, given.synthetic.decode_factor
    if stages >= num_stages:
        raise ConfigError(f"{path} has {stages} stages already: set stages.num_stages to more, which counts them, too")
    trial = to_unit(real.train.images[:100])
    same_space = torch.allclose(given.pixels.encode(trial), real.pixels.encode(trial), atol=1e-2)
    if factor != module.decode_factor or not same_space:
        raise DataError(
            f"{path} was distilled with another normalization, or with images that stand for {factor}^2 each: take the"
            " data, normalization and method that it was made with"
        )
    return given.synthetic


def check_method_unchanged(stored: dict[str, Any], module: DistillationStage) -> None:
    """Refuse to evaluate a run with another method, or other networks, than in the `stored` settings of its checkpoint.

    Raises:
        ConfigError: The settings of the method differ; the message lists how.
    """
    ignored = {*module.rates, *module.equivalent}
    before, now = stored["model"], json.loads(json.dumps(module.settings))
    if changes := differences(_without(before, ignored), _without(now, ignored), "model"):
        listed = "\n  ".join(changes)
        raise ConfigError(
            f"the checkpoint was made with other settings:\n  {listed}\nRestore them; `pdd evaluate` evaluates the"
            " distilled set with other networks."
        )


def check_unchanged(stored: dict[str, Any], settings: dict[str, Any], state: RunState, rates: Sequence[str]) -> None:
    """Refuse to continue a run with other settings, or to repeat a finished one with them, to no effect.

    Args:
        stored: Settings in the checkpoint; empty for a new run.
        settings: Settings now.
        state: Where the run stands. What later stages leave out may change.
        rates: Settings of the method that may change while the run is not finished.

    Raises:
        ConfigError: The settings differ; the message lists how.
    """
    if not stored:
        return
    free = () if state.finished else rates
    before, now = (
        {**_until_stage(each, state.stage), "model": _without(each["model"], free)} for each in (stored, settings)
    )
    changes = differences(before, now)
    if not changes:
        return
    listed = "\n  ".join(changes)
    if state.finished:
        raise ConfigError(
            f"the run is finished, with other settings:\n  {listed}\nRestore them, or begin a new run in another"
            " folder."
        )
    raise ConfigError(
        f"the checkpoint was made with other settings:\n  {listed}\nRestore them, or begin a new run in another"
        f" folder. Only {', '.join(rates)} and stages.num_stages may change, and what stages to come leave out"
        " (stages.discard)."
    )


def _without(settings: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def _until_stage(settings: dict[str, Any], stage: int) -> dict[str, Any]:
    """Return the settings of a run without what stages after `stage` leave out, which may still change."""
    stages = settings.get("stages", {})
    if "discard" not in stages:
        return settings
    # The schedule is the dictionary with an entry per stage.
    discard = {
        name: dict(list(value.items())[:stage]) if isinstance(value, dict) else value
        for name, value in stages["discard"].items()
    }
    return {**settings, "stages": {**stages, "discard": discard}}
