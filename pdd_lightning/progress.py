"""What long work shows: bars while it goes on, and figures in its lines and tables."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm

from pdd_lightning import distributed


def progress_bar(total: int, title: str, unit: str, show: bool = True) -> tqdm[Any]:
    """A bar that shows what is done, how fast, and how long is left, and vanishes at the end.

    It is drawn by the first process only, and in a log file, where each drawing is a line, rarely.

    Args:
        total: Units of work.
        title: What is being done.
        unit: Name of a unit.
        show: Whether to draw it at all.
    """
    hidden = not show or distributed.rank() != 0
    interval = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, desc=title, unit=unit, disable=hidden, leave=False, mininterval=interval)


def percent(mean: float, std: float, count: int) -> str:
    """Return a mean and its spread in per cent, such as `97.3 +-0.4`; of one network there is no spread.

    Args:
        mean: In [0, 1].
        std: Standard deviation.
        count: Of how many networks.
    """
    return f"{100 * mean:.1f}" + (f" +-{100 * std:.1f}" if count > 1 else "")
