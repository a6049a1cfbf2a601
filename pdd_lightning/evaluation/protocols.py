"""How a network is trained on a staged set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias, get_args

from pdd_lightning.errors import ConfigError
from pdd_lightning.training import TrainingSettings

Protocol: TypeAlias = Literal["progressive", "union", "sequential"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)


class Phase(NamedTuple):
    """Part of a training, with a fresh optimiser, as plain data.

    Attributes:
        stages: First and last stage whose images are trained on.
        training: How; its epochs are those that are begun.
        steps: Optimiser steps; the last epoch is cut where they are no whole epochs.
    """

    stages: tuple[int, int]
    training: TrainingSettings
    steps: int


def stage_steps(counts: Sequence[int], training: TrainingSettings) -> list[int]:
    """Optimiser steps of each phase of progressive training.

    Args:
        counts: Images that each stage adds, as networks are trained on them (decoded).
        training: Training of each phase.
    """
    return [training.steps(sum(counts[:stage])) for stage in range(1, len(counts) + 1)]


def protocol_phases(
    protocol: str,
    counts: Sequence[int],
    rates: Sequence[float | None],
    training: TrainingSettings,
    steps: Sequence[int],
) -> list[Phase]:
    """Phases of a protocol; all protocols take exactly `sum(steps)` optimiser steps.

    - `progressive`: the unions U_1, U_2, .. U_P in turn.
    - `union`: U_P alone, for as many steps as all of these together.
    - `sequential`: S_1, S_2, .. S_P in turn, each for as many steps as progressive training spends there.

    Steps that are no whole epochs cut the last epoch of a phase. The learning rate drops between epochs, at the
    first that begins at or after the milestone, counted in epochs of the phase.

    Args:
        protocol: One of `PROTOCOLS`.
        counts: Images that each stage adds, as networks are trained on them.
        rates: Learning rate learned in each stage, if any; a phase uses that of its last stage.
        training: Training; its learning rate is used where none was learned, its epochs follow from the steps.
        steps: Optimiser steps of each progressive phase, see `stage_steps`. Sets that are compared are given the
            same steps, whatever the number of their images.

    Raises:
        ConfigError: Unknown protocol.

    Reference:
        Chen et al., Data Distillation Can Be Like Vodka (ICLR 2024), section 3: progressive training.
    """
    check_choices("protocols", [protocol], PROTOCOLS)
    last = len(counts)
    if protocol == "union":
        spans, shares = [(1, last)], [sum(steps)]
    else:
        spans = [(1 if protocol == "progressive" else stage, stage) for stage in range(1, last + 1)]
        shares = list(steps)
    phases = []
    for (start, end), share in zip(spans, shares, strict=True):
        epochs = -(-share // replace(training, epochs=1).steps(sum(counts[start - 1 : end])))
        learned = rates[end - 1]
        lr = training.lr if learned is None else learned
        phases.append(Phase((start, end), replace(training, epochs=epochs, lr=lr), share))
    return phases


def check_choices(name: str, chosen: Sequence[str], known: Sequence[str], some: bool = True) -> None:
    """Refuses what is not known, repetitions, and no choice where there must be `some`.

    Raises:
        ConfigError: With the name of the setting and what may be chosen.
    """
    if not set(chosen) <= set(known) or len(set(chosen)) < len(chosen) or (some and not chosen):
        raise ConfigError(f"{name} must name some of {', '.join(known)}, each once, got {list(chosen)}")
