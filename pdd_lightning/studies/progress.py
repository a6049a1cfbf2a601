"""What a study says while it runs."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from tqdm.auto import tqdm

from pdd_lightning.studies.step import Step


class StudyProgress:
    """A line per finished step, and on a terminal a status line: which step of how many, what runs, time left.

    The time left is estimated from the steps of the same verb that are done.

    Args:
        steps: All steps of the study.
        done: Seconds of the steps that are done already, by name.
        jobs: Steps that run at a time.
    """

    def __init__(self, steps: Sequence[Step], done: Mapping[str, float], jobs: int) -> None:
        self._jobs = jobs
        self._verbs = {step.name: step.words[0] for step in steps}
        self._seconds = dict(done)
        self._failed = 0
        self._running: dict[str, float] = {}
        self._line = tqdm(total=0, bar_format="{desc}", leave=False, disable=not sys.stderr.isatty())
        if done:
            tqdm.write(f"{len(done)} of {len(steps)} steps are done already")

    def __enter__(self) -> StudyProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._line.close()

    def started(self, step: Step) -> None:
        """A step was started."""
        self._running[step.name] = time.monotonic()
        self._show()

    def ended(self, step: Step, seconds: float, status: int) -> None:
        """A step has ended."""
        del self._running[step.name]
        if status == 0:
            self._seconds[step.name] = seconds
        else:
            self._failed += 1
        number = len(self._seconds) + self._failed
        how = f"done in {_duration(seconds)}" if status == 0 else f"FAILED (status {status})"
        tqdm.write(f"step {number} of {len(self._verbs)}: {step.name} {how}{self._left()}")
        self._show()

    def _show(self) -> None:
        number = len(self._seconds) + self._failed + len(self._running)
        what = ", ".join(self._running) or "nothing"
        self._line.set_description_str(f"step {number} of {len(self._verbs)}: {what}{self._left()}")

    def _left(self) -> str:
        """The estimate as the end of a sentence; nothing before anything is known or when nothing is left."""
        remaining = [verb for name, verb in self._verbs.items() if name not in self._seconds]
        if not remaining or not self._seconds:
            return ""
        means = {verb: self._mean(verb) for verb in set(remaining)}
        spent = sum(time.monotonic() - begin for begin in self._running.values())
        left = max(0.0, sum(means[verb] for verb in remaining) - spent) / self._jobs
        return f"; about {_duration(left)} left"

    def _mean(self, verb: str) -> float:
        same = [seconds for name, seconds in self._seconds.items() if self._verbs[name] == verb]
        return statistics.fmean(same or self._seconds.values())


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
