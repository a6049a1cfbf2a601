"""Run the steps of a study: `pdd` commands as processes, on this machine or on a Dask cluster."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, NamedTuple

from pdd_lightning import endings
from pdd_lightning.errors import ConfigError, StudyError, check_at_least

PDD = (sys.executable, "-m", "pdd_lightning")
TAIL_LINES = 15
POLL_SECONDS = 0.2
CONNECT_SECONDS = 10
GRACE_SECONDS = 60.0
"""Time for an interrupted step to save its state."""

_interrupted: set[str] = set()
"""Keys of interrupted studies, in each process that runs steps."""


@dataclass(frozen=True)
class Step:
    """A `pdd` command line, which does nothing if its work is done.

    Attributes:
        name: Unique in the study; also the name of its log, so it may contain `/`.
        after: Names of the steps whose output it needs.
    """

    name: str
    args: tuple[str, ...]
    after: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command line for a shell."""
        return shlex.join(["pdd", *self.args])


def run_step(
    step: Step, folder: Path, directory: Path, key: str = "", threads: int | None = None, program: Sequence[str] = PDD
) -> float:
    """Run a step as a process, which inherits an exclusive lock on the log of the step, `steps/<name>.log`.

    So a step never runs twice at a time, even if the worker that started it was killed: the second start waits.

    Args:
        step: The step.
        folder: Folder of the study.
        directory: Working directory.
        key: Key of the study for `interrupt`.
        threads: `OMP_NUM_THREADS` of the process; by default that of the environment.
        program: What the arguments of the step are given to.

    Returns:
        The seconds that it took.

    Raises:
        ConfigError: The file system has no locks.
        StudyError: It failed or was interrupted; the message has the end of its log.
    """
    path = folder / "steps" / f"{step.name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        _lock(log, step.name, key)
        begin = time.monotonic()
        log.write(f"$ {step.command}\n".encode())
        log.flush()
        process = subprocess.Popen(
            [*program, *step.args],
            cwd=directory,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **({"OMP_NUM_THREADS": str(threads)} if threads else {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches it once, by `interrupt`
        )
        status = _wait(process, key)
    if status:
        lines = path.read_text(errors="replace").replace("\r", "\n").splitlines()[-TAIL_LINES:]
        raise StudyError("\n    ".join([f"{step.name} failed with status {status}; the end of {path}:", *lines]))
    return time.monotonic() - begin


def interrupt(key: str) -> None:
    """End the steps of a study that run in this process, and refuse further ones."""
    _interrupted.add(key)


def _lock(log: IO[bytes], name: str, key: str) -> None:
    """Lock a log, and wait if it is locked."""
    is_waiting = False
    while key not in _interrupted:
        try:
            return fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not is_waiting:
                _print(f"{name} still runs from an earlier start: waiting for its end")
            is_waiting = True
            time.sleep(POLL_SECONDS)
        except OSError as error:
            raise ConfigError(f"cannot lock {log.name} ({error}): choose a folder where files can be locked") from error
    raise StudyError(f"{name} was not started")


def _wait(process: subprocess.Popen[bytes], key: str) -> int:
    """Wait for the exit status; an interrupted process is given time to save its state."""
    while key not in _interrupted:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(POLL_SECONDS)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        return process.wait(GRACE_SECONDS)
    process.kill()
    return process.wait()


class _Workers(NamedTuple):
    """Functions of threads or Dask workers that run steps, and threads of each step if not as in the environment."""

    submit: Callable[..., Future[float]]
    capacity: Callable[[], int]
    interrupt: Callable[[str], Any]
    threads: int | None = None


def run_steps(
    steps: Sequence[Step], folder: Path, jobs: int = 1, scheduler: str | None = None, program: Sequence[str] = PDD
) -> dict[str, float]:
    """Run steps, each after those that it needs, and otherwise in the given order.

    Steps that need the output of a failed one are skipped. Ctrl-C and SIGTERM end the running steps, which save their
    state.

    Args:
        steps: The steps.
        folder: Folder of the study.
        jobs: Steps at a time on this machine; they share the cores, unless `OMP_NUM_THREADS` is set.
        scheduler: Address of a Dask scheduler whose workers run the steps instead, one per thread. They must see the
            folder and the working directory under the same names. If workers offer a resource `GPU`, each step takes
            one. The steps of a lost worker are run again.
        program: What the arguments of the steps are given to.

    Returns:
        Seconds that each step took, by name.

    Raises:
        ConfigError: `jobs` is below 1, or the scheduler cannot be reached.
        StudyError: Steps failed; the message has the ends of their logs.
    """
    check_at_least(1, jobs=jobs)
    with _exit_on_signals(), _local_workers(jobs) if scheduler is None else _dask_workers(scheduler) as workers:
        runner = _Runner(steps, folder.resolve(), workers, tuple(program))
        try:
            runner.run()
        finally:
            runner.stop()
    if runner.failures or runner.waiting:
        left = ", ".join(step.name for step in runner.waiting)
        skipped = [f"Not run, since they need it: {left}."] if left else []
        remedy = "No table is written. Correct the cause and start the study again: finished work is not repeated."
        raise StudyError("\n".join([*runner.failures.values(), *skipped, remedy]))
    return runner.seconds


class _Runner:
    """Runs the steps of a study."""

    def __init__(self, steps: Sequence[Step], folder: Path, workers: _Workers, program: tuple[str, ...]) -> None:
        self.waiting = list(steps)
        self.seconds: dict[str, float] = {}
        self.failures: dict[str, str] = {}
        self._running: dict[Future[float], Step] = {}
        self._workers, self._key = workers, uuid.uuid4().hex
        self._arguments = (folder, Path.cwd(), self._key, workers.threads, program)
        self._total, self._begin = len(steps), time.monotonic()

    def run(self) -> None:
        """Start and await steps until no more can be started."""
        self._start_ready()
        while self._running:
            for future in wait(self._running, CONNECT_SECONDS, FIRST_COMPLETED).done:
                self._record(self._running.pop(future), future)
            self._start_ready()

    def stop(self) -> None:
        """End the running steps, and wait until they have saved their state."""
        if self._running:
            _print("Stopping; the running steps save their state.")
            self._workers.interrupt(self._key)
            wait(self._running, GRACE_SECONDS + CONNECT_SECONDS)

    def _start_ready(self) -> None:
        ready = [step for step in self.waiting if self.seconds.keys() >= set(step.after)]
        for step in ready[: max(0, self._workers.capacity() - len(self._running))]:
            self.waiting.remove(step)
            self._running[self._workers.submit(run_step, step, *self._arguments)] = step
            _print(f"started {step.name}")

    def _record(self, step: Step, future: Future[float]) -> None:
        try:
            self.seconds[step.name] = future.result()
            outcome = f"done in {timedelta(seconds=round(self.seconds[step.name]))}"
        except Exception as error:
            self.failures[step.name] = str(error) or repr(error)
            outcome = "FAILED"
        ended = len(self.seconds) + len(self.failures)
        left = round((time.monotonic() - self._begin) / ended * (self._total - ended))
        estimate = f"; about {timedelta(seconds=left)} left" if self._total > ended else ""
        _print(f"step {ended} of {self._total}: {step.name} {outcome}{estimate}")


@contextmanager
def _local_workers(jobs: int) -> Iterator[_Workers]:
    """Yield threads of this process, which wait for the processes of the steps."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = None if "OMP_NUM_THREADS" in os.environ else max(1, cores // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        yield _Workers(pool.submit, lambda: jobs, interrupt, threads)


@contextmanager
def _dask_workers(scheduler: str) -> Iterator[_Workers]:
    """Yield the workers of a Dask cluster."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError("--scheduler needs Dask: pip install 'pdd-lightning[cluster]'") from error
    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Dask scheduler at {scheduler}: {error}") from error
    try:
        with client:
            executor = client.get_executor(pure=False)

            def submit(*call: Any) -> Future[float]:
                workers = client.scheduler_info()["workers"].values()
                gpu = {"resources": {"GPU": 1}} if any("GPU" in worker["resources"] for worker in workers) else {}
                future: Future[float] = executor.submit(*call, **gpu)
                return future

            yield _Workers(
                submit,
                lambda: max(1, sum(client.nthreads().values())),
                lambda key: client.run(interrupt, key, on_error="ignore"),
            )
    except OSError as error:
        raise StudyError(f"lost the Dask scheduler at {scheduler} ({error}): start the study again") from error


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Exit on Ctrl-C and SIGTERM without a traceback, with the status that shells expect."""

    def leave(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    with ExitStack() as stack:
        for number in endings.SIGNALS:
            stack.callback(signal.signal, number, signal.signal(number, leave))
        endings.delay_stop(GRACE_SECONDS + 2 * CONNECT_SECONDS)
        stack.callback(endings.delay_stop, 0.0)
        yield


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
