"""Processes that share work: starting them, and the few collective operations that the package needs.

Each operation works without a process group, too.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pdd_lightning.errors import ConfigError, PDDError, ProcessError
from pdd_lightning.memory import keep_freed_memory

T = TypeVar("T")
_HOST = "127.0.0.1"
# A process may wait for the others for as long as their networks take.
_LONGEST_WAIT = timedelta(days=365)


def is_distributed() -> bool:
    """Whether several processes take part."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def gather(value: T) -> list[T]:
    """Every process's picklable `value`, in rank order, on every process."""
    if not is_distributed():
        return [value]
    values: list[T] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """The first process's picklable `value`, on every process."""
    if not is_distributed():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def barrier() -> None:
    """Waits until every process is here."""
    if is_distributed():
        dist.barrier()


@contextmanager
def first_before_others() -> Iterator[None]:
    """Lets the first process go through the block before the others, who find what it has downloaded."""
    if rank() > 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


@contextmanager
def process_group(processes: int, others: Callable[[], object]) -> Iterator[None]:
    """Runs the block as the first of several processes on this machine, which share the threads of this one.

    Does nothing in a process that belongs to a group already.

    Args:
        processes: Number of processes.
        others: What the other processes do; it must be picklable.

    Raises:
        ConfigError: The number is not positive.
        ProcessError: Another process ended in the middle of its work.
    """
    if processes < 1:
        raise ConfigError(f"processes must be >= 1, got {processes}")
    if processes == 1 or is_distributed():
        yield
        return
    store = dist.TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    context, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    share = max(1, threads // processes)
    started = [
        context.Process(target=_join, args=(store.port, number, processes, share, others), daemon=True)
        for number in range(1, processes)
    ]
    try:
        for process in started:
            process.start()
        _wait_for(started, store)
        _initialize(store, 0, processes, share)
        yield
        for process in started:
            process.join()
    except RuntimeError as error:  # of a collective operation
        _check_alive(started, error)
        raise
    finally:
        for process in started:
            process.terminate()
        if dist.is_initialized():
            dist.destroy_process_group()
        torch.set_num_threads(threads)


def _join(port: int, number: int, processes: int, threads: int, work: Callable[[], object]) -> None:
    """What another process does."""
    keep_freed_memory()
    store = dist.TCPStore(_HOST, port, is_master=False)  # type: ignore[attr-defined]
    store.set(f"started {number}", "")
    _initialize(store, number, processes, threads)
    try:
        work()
    except PDDError:  # which the first process raises, too
        sys.exit(1)


def _initialize(store: Any, number: int, processes: int, threads: int) -> None:
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", store=store, rank=number, world_size=processes, timeout=_LONGEST_WAIT)


def _wait_for(started: Sequence[SpawnProcess], store: Any) -> None:
    keys = [f"started {number}" for number in range(1, len(started) + 1)]
    while not store.check(keys):
        _check_alive(started)
        time.sleep(0.05)


def _check_alive(started: Sequence[SpawnProcess], cause: Exception | None = None) -> None:
    for number, process in enumerate(started, 2):
        process.join(0 if cause is None else 5)
        if process.exitcode:
            raise ProcessError(
                f"process {number} of {len(started) + 1} ended with exit code {process.exitcode}, perhaps for lack of"
                " memory: the same command continues, take fewer processes if need be"
            ) from cause
