"""Processes that share work, and collective operations, which work without a process group, too."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import resource_tracker
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessExitedException, spawn

from pdd_lightning import endings
from pdd_lightning.errors import PDDError, ProcessError, check_at_least
from pdd_lightning.memory import keep_freed_memory

T = TypeVar("T")
_TIMEOUT = timedelta(days=365)  # of a process that waits while others train their networks
_LOST = (
    "another process ended before its work was done, perhaps for lack of memory: the same command continues, take fewer"
    " processes if need be"
)


def is_distributed() -> bool:
    """Return whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def gather(value: T) -> list[T]:
    """Return every process's picklable `value`, in rank order, on every process."""
    if not is_distributed():
        return [value]
    values: list[T] = [value] * world_size()
    with _all_present():
        dist.all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """Return the first process's picklable `value`, on every process."""
    if not is_distributed():
        return value
    values = [value]
    with _all_present():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def barrier() -> None:
    """Wait until every process is here."""
    if is_distributed():
        with _all_present():
            dist.barrier()


@contextmanager
def first_before_others() -> Iterator[None]:
    """Let the first process run the block before the others, which find what it has downloaded."""
    if rank() > 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


def on_processes(processes: int, work: Callable[[], object]) -> None:
    """Call a function on several processes of this machine, which form a process group and share its threads.

    With one process it is called in this one.

    Args:
        processes: Number of processes.
        work: The function; picklable if there are several processes.

    Raises:
        ConfigError: `processes` is below 1.
        PDDError: The function raised it, on any process.
        ProcessError: A process ended before its work was done.
    """
    check_at_least(1, processes=processes)
    if processes == 1:
        work()
        return
    errors, reports = get_context("spawn").Pipe(duplex=False)  # a queue that is killed would leave semaphores
    with TemporaryDirectory() as folder, endings.temporary(Path(folder)):
        threads = max(1, torch.get_num_threads() // processes)
        arguments = (processes, f"file://{folder}/meeting", threads, work, reports)
        resource_tracker.ensure_running()  # which would unblock the signal
        # Blocked in the new processes, too, until they have imported everything: this one ends them.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            context = spawn(_join, arguments, processes, join=False)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        try:
            while not context.join():
                pass
        except ProcessExitedException as error:
            raise (errors.recv() if errors.poll() else ProcessError(_LOST)) from error
    if errors.poll():
        raise errors.recv()


def _join(number: int, processes: int, meeting: str, threads: int, work: Callable[[], object], reports: Any) -> None:
    """Run `work` in a new process."""
    endings.watch_signals(quiet=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    keep_freed_memory()
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", meeting, rank=number, world_size=processes, timeout=_TIMEOUT)
    try:
        work()
    except Exception as error:  # the others raise it, too, or notice that this one has ended
        reports.send(error if isinstance(error, PDDError) else PDDError(endings.explain(error)))
    dist.destroy_process_group()


@contextmanager
def _all_present() -> Iterator[None]:
    """Turn the failure of a collective operation into a `ProcessError`."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessError(_LOST) from error
