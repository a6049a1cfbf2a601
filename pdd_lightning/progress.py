"""Progress bars."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm

from pdd_lightning import distributed


def print_above_bars(line: str) -> None:
    """Print a line where progress bars do not overwrite it, in the first process."""
    if distributed.rank() == 0:
        tqdm.write(line)


def progress_bar(total: int, title: str, unit: str, show: bool = True) -> tqdm[Any]:
    """Return a progress bar that disappears at the end.

    Only the first process draws it; rarely if it goes to a log file, where each update is a line.

    Args:
        total: Units of work.
        title: What is being done.
        unit: Name of a unit.
        show: Whether to draw it.
    """
    hidden = not show or distributed.rank() != 0
    interval = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, desc=title, unit=unit, disable=hidden, leave=False, mininterval=interval)
