"""Which parts of expert trajectories are matched: a window of start epochs, and segments drawn from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pdd_lightning.data.progressive import Trajectories
from pdd_lightning.errors import ConfigError, DataError


@dataclass(frozen=True)
class StartWindow:
    """Epochs that segments may start at, in the course of a stage.

    The end of the window grows from `first_end` to `end` in steps of one epoch, each value in between holding for
    equally many iterations.

    Attributes:
        begin: First epoch.
        first_end: End (excluded) at the beginning of a stage; null is `end`.
        end: End (excluded) once the window has its full width.
        growth: Share of a stage's iterations, in (0, 1], after which it has.

    Raises:
        ConfigError: The window would be empty or shrink, or `growth` is out of range.

    Reference:
        Guo et al., Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching (ICLR 2024),
        for a window whose end grows linearly with the iteration; here anew in every stage.

    Examples:
        >>> StartWindow(0, 2, 4).at(iteration=0, iterations=300)
        (0, 2)
        >>> StartWindow(0, 2, 4).at(iteration=200, iterations=300)
        (0, 4)
    """

    begin: int
    first_end: int | None
    end: int
    growth: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.growth <= 1:
            raise ConfigError(f"window_growth must be in (0, 1], got {self.growth}")
        if not 0 <= self.begin < (self.end if self.first_end is None else self.first_end) <= self.end:
            raise ConfigError(
                "start epochs need 0 <= min_start_epoch < first_max_start_epoch <= max_start_epoch, got"
                f" {self.begin}, {self.first_end}, {self.end}"
            )

    def at(self, iteration: int, iterations: int) -> tuple[int, int]:
        """First epoch, and end (excluded), at an iteration (from 0) of a stage of so many `iterations`."""
        first = self.end if self.first_end is None else self.first_end
        grown = int((self.end - first + 1) * iteration / (self.growth * iterations))
        return self.begin, min(first + grown, self.end)


def draw_segment(
    trajectories: Trajectories, window: tuple[int, int], epochs: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Parameters `[P]` of a random expert at a random epoch of the window, and `epochs` later.

    Raises:
        DataError: The expert did not move in between.
    """
    expert = int(torch.randint(trajectories.number, (), generator=generator))
    first = int(torch.randint(*window, (), generator=generator))
    start, target = trajectories.segment(expert, first, first + epochs)
    if torch.equal(start, target):
        raise DataError(
            f"expert {expert} did not move between epochs {first} and {first + epochs}: raise stages.experts.lr"
        )
    return start, target
