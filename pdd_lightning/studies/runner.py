"""Running the steps of a study as processes, some at a time, so that it can be stopped and continued."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm.auto import tqdm

from pdd_lightning.errors import ConfigError, StudyError
from pdd_lightning.studies.progress import StudyProgress
from pdd_lightning.studies.step import Step, StepRecord

PDD = (sys.executable, "-m", "pdd_lightning")
TAIL_LINES = 15
GRACE_SECONDS = 60.0
"""How long an interrupted step may take to save its state."""


@dataclass
class _Running:
    """A process at work; the lock on its log lasts as long as the process does, even if this one is killed."""

    step: Step
    settings: dict[str, str]
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    begin: float
    before: float


class StepRunner:
    """Runs steps in order, those that are done left out.

    A step is done when its record says so, and those are done whose output it needs; one that was interrupted or
    failed is started again. Each has a log and a record, `steps/<name>.log` and `.json`. Steps that need the output of
    a failed one are left out; all others go on.

    Args:
        folder: Folder of the study.
        jobs: Processes at a time; each gets its share of the processor's cores, unless `OMP_NUM_THREADS` is set.
        program: What a step's words are given to.

    Raises:
        ConfigError: `jobs` is below 1.
    """

    def __init__(self, folder: Path, jobs: int = 1, program: Sequence[str] = PDD) -> None:
        if jobs < 1:
            raise ConfigError(f"jobs must be >= 1, got {jobs}")
        self.folder = folder
        self.jobs = jobs
        self.program = list(program)
        self._running: list[_Running] = []
        self._done: set[str] = set()
        self._failed: dict[str, str] = {}
        self._progress: StudyProgress

    def record(self, step: Step) -> StepRecord | None:
        """What is known of a step."""
        return StepRecord.read(self._path(step, ".json"))

    def seconds(self, step: Step) -> float:
        """Wall-clock seconds that a step took so far."""
        record = self.record(step)
        return record.seconds if record else 0.0

    def run(self, steps: Sequence[Step]) -> None:
        """Runs what is not done yet. Ctrl-C and SIGTERM end the running steps, which save their state.

        Raises:
            ConfigError: A step that was begun has other words now; nothing is run.
            StudyError: Steps failed; the message has the ends of their logs.
        """
        self.check(steps)
        self._done = self._done_before(steps)
        self._failed = {}
        waiting = [step for step in steps if step.name not in self._done]
        done = {step.name: self.seconds(step) for step in steps if step.name in self._done}
        with StudyProgress(steps, done, self.jobs) as self._progress, _signals_end(), self._stopped_at_the_end():
            while waiting or self._running:
                self._start_ready(waiting)
                self._settle_ended()
        left = [step.name for step in steps if step.name not in self._done | self._failed.keys()]
        if self._failed:
            raise StudyError(_failure(self._failed, left))

    def check(self, steps: Sequence[Step]) -> None:
        """Refuses to mix results: what was begun must have been the same command; a failed step may be corrected.

        Raises:
            ConfigError: A step that was begun has other words now, or a YAML file among them says something else.
        """
        for step in steps:
            record = self.record(step)
            if record and not record.failed and (changes := record.changes(step)):
                listed = "\n  ".join(changes)
                raise ConfigError(
                    f"{self._path(step, '.json')} says that step {step.name} was run with other words:\n  {listed}\n"
                    f"Set them back, choose another --folder, or delete the step's record and its outputs."
                )

    def _done_before(self, steps: Sequence[Step]) -> set[str]:
        """Names of the steps that need not be run: what a step made of output that is made anew is out of date."""
        done: set[str] = set()
        for step in steps:
            if (record := self.record(step)) and record.done and done.issuperset(step.after):
                done.add(step.name)
        return done

    def _start_ready(self, waiting: list[Step]) -> None:
        """Starts steps while there is room; forgets those whose input will never come."""
        for step in list(waiting):
            coming = {other.name for other in waiting} | {running.step.name for running in self._running}
            if not set(step.after) <= self._done | coming:
                waiting.remove(step)
            elif len(self._running) < self.jobs and self._done.issuperset(step.after):
                waiting.remove(step)
                self._running.append(self._start(step))
                self._progress.started(step)

    def _start(self, step: Step) -> _Running:
        path = self._path(step, ".log")
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("ab")
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            log.close()
            raise ConfigError(f"step {step.name} is at work from an earlier start: wait for it, or end it") from error
        before = self.seconds(step)
        settings = step.settings()
        StepRecord(list(step.words), before, settings=settings).write(self._path(step, ".json"))
        log.write(f"$ {step.command}\n".encode())
        log.flush()
        # A session of its own, so that Ctrl-C reaches it once, through `_stopped_at_the_end`.
        process = subprocess.Popen(
            [*self.program, *step.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": str(max(1, _cores() // self.jobs)), **os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        return _Running(step, settings, process, log, time.monotonic(), before)

    def _settle_ended(self) -> None:
        """Deals with the processes that have ended, after a moment of waiting where none has."""
        ended = [running for running in self._running if running.process.poll() is not None]
        if not ended and self._running:
            time.sleep(0.2)
        self._running = [running for running in self._running if running not in ended]
        for running in ended:
            self._settle(running)

    def _settle(self, ended: _Running) -> None:
        """Writes down how a process ended."""
        step, status = ended.step, ended.process.returncode
        seconds = self._close(ended, status)
        if status == 0:
            self._done.add(step.name)
        else:
            path = self._path(step, ".log")
            self._failed[step.name] = f"{step.name} failed with status {status}; the end of {path}:\n{_tail(path)}"
        self._progress.ended(step, seconds, status)

    def _close(self, ended: _Running, status: int | None) -> float:
        """Stores the record of a process that has ended, with its seconds so far, and gives up the lock."""
        seconds = ended.before + time.monotonic() - ended.begin
        record = StepRecord(list(ended.step.words), seconds, status, ended.settings)
        record.write(self._path(ended.step, ".json"))
        ended.log.close()
        return seconds

    @contextmanager
    def _stopped_at_the_end(self) -> Iterator[None]:
        """Ends the processes that still run when the block is left, and lets them save their state."""
        try:
            yield
        finally:
            if self._running:
                tqdm.write("Stopping; the running steps save their state. Start the study again to continue it.")
            for running in self._running:
                running.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + GRACE_SECONDS
            for running in self._running:
                self._await_end(running, deadline)
            self._running = []

    def _await_end(self, running: _Running, deadline: float) -> None:
        try:
            running.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            running.process.kill()
            running.process.wait()
        self._close(running, None)

    def _path(self, step: Step, suffix: str) -> Path:
        return self.folder / "steps" / f"{step.name}{suffix}"


@contextmanager
def _signals_end() -> Iterator[None]:
    """Inside the block Ctrl-C and SIGTERM end this process without a traceback, with the status that shells expect."""

    def leave(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    former = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _failure(failed: dict[str, str], left: Sequence[str]) -> str:
    omitted = f"\nNot run, since they need it: {', '.join(left)}." if left else ""
    return (
        "\n\n".join(failed.values()) + omitted + "\nNo table is written. Correct the cause and start the study again:"
        " what is done is not repeated."
    )


def _tail(path: Path) -> str:
    lines = path.read_text(errors="replace").replace("\r", "\n").splitlines()
    return "\n".join(f"    {line}" for line in lines[-TAIL_LINES:])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
