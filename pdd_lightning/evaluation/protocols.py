"""How a network is trained on a staged set."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias, get_args

from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError
from pdd_lightning.training import TrainingSettings

Protocol: TypeAlias = Literal["progressive", "union", "sequential"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)


class Phase(NamedTuple):
    """Part of a training: a set and how to train on it, with a fresh optimiser."""

    images: SyntheticSet
    training: TrainingSettings


def protocol_phases(synthetic: SyntheticSet, protocol: str, training: TrainingSettings) -> list[Phase]:
    """Phases of a protocol; all protocols take the same number of optimiser steps, up to part of an epoch.

    - `progressive`: the unions U_1, U_2, .. U_P in turn, `training.epochs` epochs each.
    - `union`: U_P alone, for as many steps (rounded up to whole epochs).
    - `sequential`: S_1, S_2, .. S_P in turn, each for as many steps as progressive training spends there (rounded up).

    Args:
        synthetic: A staged set.
        protocol: One of `PROTOCOLS`.
        training: Training of each progressive phase; its learning rate is used where the set has none.

    Raises:
        ConfigError: Unknown protocol.

    Reference:
        Chen et al., Data Distillation Can Be Like Vodka (ICLR 2024), section 3: progressive training.
    """
    check_protocol(protocol)
    stages = range(1, synthetic.num_stages + 1)
    unions = [synthetic.union(stage) for stage in stages]
    steps = [training.steps(len(union.labels)) for union in unions]
    if protocol == "progressive":
        return [_phase(union, training, step) for union, step in zip(unions, steps, strict=True)]
    if protocol == "union":
        return [_phase(synthetic, training, sum(steps))]
    sets = [synthetic.stage(stage) for stage in stages]
    return [_phase(images, training, step) for images, step in zip(sets, steps, strict=True)]


def check_protocol(protocol: str) -> None:
    """Refuses an unknown protocol.

    Raises:
        ConfigError: It is not one of `PROTOCOLS`.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")


def _phase(images: SyntheticSet, training: TrainingSettings, steps: int) -> Phase:
    """Training on `images` for `steps` optimiser steps at the rate learned in its last stage."""
    per_epoch = replace(training, epochs=1).steps(len(images.labels))
    learned = images.learning_rates[-1]
    lr = training.lr if learned is None else learned
    return Phase(images, replace(training, epochs=-(-steps // per_epoch), lr=lr))
