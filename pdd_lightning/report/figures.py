"""Figures of a run as its `summary.json` holds them, checked when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pdd_lightning.errors import DamagedFileError

LARGEST = 1e15
"""Numbers beyond are no figures of a run."""


@dataclass(frozen=True)
class StageFigures:
    """One finished stage; None where the summary does not say.

    Attributes:
        stage: Number of the stage, from 1.
        images: Images in the union after the stage.
        real_images: Real images that the stage worked with.
        learned_lr: Learning rate learned in the stage.
        first_loss: Matching loss at the beginning.
        last_loss: Matching loss at the end.
        mean: Validation accuracy of theta_i in [0, 1], mean over networks.
        std: Standard deviation of that accuracy over networks; None of a single one.
        networks: Number of networks.
        seconds: Time by part.
        memory: Highest memory use so far, in MB.
    """

    stage: int
    images: int
    real_images: float | None
    learned_lr: float | None
    first_loss: float | None
    last_loss: float | None
    mean: float | None
    std: float | None
    networks: float | None
    seconds: dict[str, float]
    memory: float | None

    @classmethod
    def from_entry(cls, entry: Any) -> StageFigures:
        """Reads an entry of `stages`.

        Raises:
            DamagedFileError: It is not the report of a stage.
        """
        checked = _entry(entry, {"stage": int, "images": int}, "a stage")
        return cls(
            stage=checked["stage"],
            images=checked["images"],
            real_images=number(checked.get("real_images")),
            learned_lr=number(checked.get("learned_lr")),
            first_loss=number(checked.get("first_loss")),
            last_loss=number(checked.get("last_loss")),
            mean=number(checked.get("val_accuracy")),
            std=_spread(checked.get("val_std"), checked.get("val_networks")),
            networks=number(checked.get("val_networks")),
            seconds=_numbers(checked.get("seconds")),
            memory=number(checked.get("peak_memory_mb")),
        )


@dataclass(frozen=True)
class EvaluationRow:
    """Networks trained in one way and scored; None where the summary does not say.

    Attributes:
        name: What they were trained on.
        part: The real images that they were scored on.
        protocol: How they were trained on a staged set.
        images: Number of training images.
        mean: Mean accuracy in [0, 1].
        std: Its standard deviation over networks; None of a single one.
        networks: Number of networks.
        steps: Optimiser steps of each network.
        seconds: Time, summed over networks.
        per_class: Mean accuracy of each class.
        entry: All that the summary says of the row.
    """

    name: str
    part: str
    protocol: str
    images: float | None
    mean: float | None
    std: float | None
    networks: float | None
    steps: float | None
    seconds: float | None
    per_class: dict[str, float]
    entry: Mapping[str, Any]

    @classmethod
    def from_entry(cls, entry: Any) -> EvaluationRow:
        """Reads an entry of `evaluation`.

        Raises:
            DamagedFileError: It is not an evaluation row.
        """
        checked = _entry(entry, {"row": str, "part": str, "mean": (int, float)}, "an evaluation row")
        return cls(
            name=checked["row"],
            part=checked["part"],
            protocol=str(checked.get("protocol", "not stated")),
            images=number(checked.get("images")),
            mean=number(checked["mean"]),
            std=_spread(checked.get("std"), checked.get("n")),
            networks=number(checked.get("n")),
            steps=number(checked.get("steps")),
            seconds=number(checked.get("seconds")),
            per_class=_numbers(checked.get("per_class")),
            entry=checked,
        )


def _spread(std: Any, count: Any) -> float | None:
    """A standard deviation; None where it is that of one network, which has none."""
    return None if count == 1 else number(std)


def number(value: Any) -> float | None:
    """The value if it is a number that can be shown: no NaN and nothing infinite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LARGEST:
        return None
    return value


def _numbers(value: Any) -> dict[str, float]:
    """The finite numbers of a mapping, by name."""
    pairs = ((str(name), number(one)) for name, one in value.items()) if isinstance(value, dict) else ()
    return {name: one for name, one in pairs if one is not None}


def _entry(entry: Any, needed: Mapping[str, type | tuple[type, ...]], what: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise DamagedFileError(f"{what} is {type(entry).__name__}, not a mapping")
    for name, kind in needed.items():
        if not isinstance(entry.get(name), kind) or (kind is int and number(entry[name]) is None):
            raise DamagedFileError(f"{what} has no usable {name!r}")
    return entry
