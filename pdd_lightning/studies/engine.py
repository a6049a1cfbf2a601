"""Running the steps of a study: `pdd` commands as processes, on this machine or on a Dask cluster."""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from pdd_lightning import endings
from pdd_lightning.errors import ConfigError, StudyError, check_at_least

PDD = (sys.executable, "-m", "pdd_lightning")
TAIL_LINES = 15
POLL_SECONDS = 0.2
CONNECT_SECONDS = 10
GRACE_SECONDS = 60.0
"""How long an interrupted step may take to save its state."""

_interrupted: set[str] = set()
"""Keys of interrupted studies of which this process runs steps."""


@dataclass(frozen=True)
class Step:
    """A command line of `pdd` that can be repeated by hand, and that does nothing anew where its work is done.

    Attributes:
        name: Unique in the study; also the name of its log, so it may contain `/`.
        args: What follows `pdd`.
        after: Names of the steps whose output it needs.
    """

    name: str
    args: tuple[str, ...]
    after: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command line for a reader to repeat."""
        return shlex.join(["pdd", *self.args])


def run_step(
    step: Step, folder: Path, directory: Path, key: str = "", threads: int | None = None, program: Sequence[str] = PDD
) -> float:
    """Runs a step as a process, which inherits an exclusive lock on the step's log, `steps/<name>.log`.

    So a step does not run twice at a time, even if the worker that started it was killed: the second start waits.

    Args:
        step: What to run.
        folder: Folder of the study.
        directory: Working directory of the process.
        key: What `interrupt` calls the study.
        threads: `OMP_NUM_THREADS` of the process, if not what the environment says.
        program: What the step's arguments are given to.

    Returns:
        The seconds that it took.

    Raises:
        ConfigError: The file system knows no locks.
        StudyError: It failed, or was interrupted; the message has the end of its log.
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
        status = _status(process, key)
    if status:
        lines = path.read_text(errors="replace").replace("\r", "\n").splitlines()[-TAIL_LINES:]
        end = "\n    ".join([f"{step.name} failed with status {status}; the end of {path}:", *lines])
        raise StudyError(end)
    return time.monotonic() - begin


def interrupt(key: str) -> None:
    """Ends the steps of a study that this process runs, and those that it would still be given."""
    _interrupted.add(key)


def _lock(log: IO[bytes], name: str, key: str) -> None:
    """Waits for the lock on a log."""
    waits = False
    while key not in _interrupted:
        try:
            return fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waits:
                _log(f"{name} is at work from an earlier start: waiting for its end")
            waits = True
            time.sleep(POLL_SECONDS)
        except OSError as error:
            raise ConfigError(f"cannot lock {log.name} ({error}): choose a folder where files can be locked") from error
    raise StudyError(f"{name} was not started")


def _status(process: subprocess.Popen[bytes], key: str) -> int:
    """Waits for the exit status; an interrupted process has some time to save its state."""
    while key not in _interrupted:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(POLL_SECONDS)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        return process.wait(GRACE_SECONDS)
    process.kill()
    return process.wait()


@dataclass(frozen=True)
class _Workers:
    """Where steps run.

    Attributes:
        submit: Has a function called with arguments, sooner or later.
        slots: How many steps can run at a time; more may come.
        interrupt: Calls `interrupt` in all processes that run steps.
        threads: Threads of each step, if not what the environment says.
    """

    submit: Callable[..., Future[float]]
    slots: Callable[[], int]
    interrupt: Callable[[str], Any]
    threads: int | None


def run_steps(
    steps: Sequence[Step],
    folder: Path,
    jobs: int = 1,
    scheduler: str | None = None,
    program: Sequence[str] = PDD,
) -> dict[str, float]:
    """Runs steps, each after those that it needs, and otherwise in the order given.

    Steps that need the output of a failed one are left out; all others go on. Ctrl-C and SIGTERM end the running
    steps, which save their state.

    Args:
        steps: What to run.
        folder: Folder of the study.
        jobs: Steps at a time on this machine; they share the cores, unless `OMP_NUM_THREADS` is set.
        scheduler: Address of a Dask scheduler whose workers run the steps instead, one per thread. They must see the
            folder and the working directory under the same names. Where workers offer a resource `GPU`, each step
            takes one. The steps of a lost worker are run again.
        program: What a step's arguments are given to.

    Returns:
        Seconds that each step took, by name.

    Raises:
        ConfigError: `jobs` is below 1, or the scheduler cannot be reached.
        StudyError: Steps failed; the message has the ends of their logs.
    """
    check_at_least(1, jobs=jobs)
    cluster = scheduler is not None or find_spec("distributed") is not None
    with _signals_end(), _dask(jobs, scheduler) if cluster else _pool(jobs) as workers:
        study = _Study(steps, folder.resolve(), workers, tuple(program))
        try:
            study.run()
        finally:
            study.end()
    if study.failed or study.waiting:
        left = ", ".join(step.name for step in study.waiting)
        omitted = [f"Not run, since they need it: {left}."] if left else []
        remedy = "No table is written. Correct the cause and start the study again: what is done is not done anew."
        raise StudyError("\n".join([*study.failed.values(), *omitted, remedy]))
    return study.seconds


class _Study:
    """The steps of a study while they run."""

    def __init__(self, steps: Sequence[Step], folder: Path, workers: _Workers, program: tuple[str, ...]) -> None:
        self.waiting = list(steps)
        self.seconds: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self._running: dict[Future[float], Step] = {}
        self._workers, self._key = workers, uuid.uuid4().hex
        self._about = (folder, Path.cwd(), self._key, workers.threads, program)
        self._number, self._begin = len(steps), time.monotonic()

    def run(self) -> None:
        """Starts and awaits steps until no more can be started."""
        self._start_ready()
        while self._running:
            for future in wait(self._running, CONNECT_SECONDS, FIRST_COMPLETED).done:
                self._settle(self._running.pop(future), future)
            self._start_ready()

    def end(self) -> None:
        """Ends the steps that still run, and waits until they have saved their state."""
        if self._running:
            _log("Stopping; the running steps save their state.")
            self._workers.interrupt(self._key)
            wait(self._running, GRACE_SECONDS + CONNECT_SECONDS)

    def _start_ready(self) -> None:
        ready = [step for step in self.waiting if self.seconds.keys() >= set(step.after)]
        for step in ready[: max(0, self._workers.slots() - len(self._running))]:
            self.waiting.remove(step)
            self._running[self._workers.submit(run_step, step, *self._about)] = step
            _log(f"started {step.name}")

    def _settle(self, step: Step, future: Future[float]) -> None:
        try:
            self.seconds[step.name] = future.result()
        except Exception as error:
            self.failed[step.name] = str(error) or repr(error)
        ended = len(self.seconds) + len(self.failed)
        left = (time.monotonic() - self._begin) / ended * (self._number - ended)
        how = "FAILED" if step.name in self.failed else f"done in {_duration(self.seconds[step.name])}"
        _log(f"step {ended} of {self._number}: {step.name} {how}" + (f"; about {_duration(left)} left" if left else ""))


@contextmanager
def _pool(jobs: int) -> Iterator[_Workers]:
    """Threads of this process, which wait for the processes of the steps."""
    with ThreadPoolExecutor(jobs) as pool:
        yield _Workers(pool.submit, lambda: jobs, interrupt, _share(jobs))


@contextmanager
def _dask(jobs: int, scheduler: str | None) -> Iterator[_Workers]:
    """Workers of a Dask cluster: of one that exists, or of one in this process, since steps are processes anyway."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError("--scheduler needs Dask: pip install 'pdd-lightning[cluster]'") from error
    local: dict[str, Any] = {
        "n_workers": jobs,
        "threads_per_worker": 1,
        "processes": False,
        "silence_logs": logging.CRITICAL,  # a failed step is reported in the end, not by the worker
        "dashboard_address": "127.0.0.1:0",
        "worker_dashboard_address": "127.0.0.1:0",
    }
    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS, **({} if scheduler else local))
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Dask scheduler at {scheduler}: {error}") from error
    try:
        with client:
            pool = client.get_executor(pure=False)

            def submit(*call: Any) -> Future[float]:
                workers = client.scheduler_info()["workers"].values()
                gpu = {"resources": {"GPU": 1}} if any("GPU" in worker["resources"] for worker in workers) else {}
                future: Future[float] = pool.submit(*call, **gpu)
                return future

            yield _Workers(
                submit,
                lambda: max(1, sum(client.nthreads().values())),
                lambda key: client.run(interrupt, key, on_error="ignore"),
                None if scheduler else _share(jobs),
            )
    except OSError as error:
        raise StudyError(f"lost the Dask scheduler at {scheduler} ({error}): start the study again") from error


def _share(jobs: int) -> int | None:
    """Threads of each of so many processes, unless the environment says how many."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return None if "OMP_NUM_THREADS" in os.environ else max(1, cores // jobs)


@contextmanager
def _signals_end() -> Iterator[None]:
    """Inside the block Ctrl-C and SIGTERM end this process without a traceback, with the status that shells expect."""

    def leave(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    former = {number: signal.signal(number, leave) for number in endings.SIGNALS}
    endings.delay_stop(GRACE_SECONDS + 2 * CONNECT_SECONDS)
    try:
        yield
    finally:
        endings.delay_stop(0.0)
        for number, handler in former.items():
            signal.signal(number, handler)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _duration(seconds: float) -> timedelta:
    return timedelta(seconds=round(seconds))
