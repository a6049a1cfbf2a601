"""Processes that share work: starting them, and the few collective operations that the package needs.

Each operation works without a process group, too.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pdd_lightning.errors import ConfigError, PDDError, ProcessError
from pdd_lightning.memory import keep_freed_memory

T = TypeVar("T")
_HOST = "127.0.0.1"
# A process may wait for the others for as long as their networks take.
_LONGEST_WAIT = timedelta(days=365)
# Seconds in which a process ends that has nothing more to do.
_PATIENCE = 5.0
_LOST = (
    "another process ended before its work was done, perhaps for lack of memory: the same command continues, take fewer"
    " processes if need be"
)


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
    with _all_present():
        dist.all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """The first process's picklable `value`, on every process."""
    if not is_distributed():
        return value
    values = [value]
    with _all_present():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def barrier() -> None:
    """Waits until every process is here."""
    if is_distributed():
        with _all_present():
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
        while not store.check([f"started {number}" for number in range(1, processes)]):
            if any(process.exitcode for process in started):
                raise ProcessError(_LOST)
            time.sleep(0.05)
        _initialize(store, 0, processes, share)
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        for process in started:
            process.join(_PATIENCE)
            process.terminate()
        torch.set_num_threads(threads)


def _join(port: int, number: int, processes: int, threads: int, work: Callable[[], object]) -> None:
    """What another process does. The errors that it is silent about are those of the first process, too."""
    keep_freed_memory()
    store = dist.TCPStore(_HOST, port, is_master=False)  # type: ignore[attr-defined]
    store.set(f"started {number}", "")
    _initialize(store, number, processes, threads)
    try:
        work()
    except (PDDError, KeyboardInterrupt):
        sys.exit(1)


def _initialize(store: Any, number: int, processes: int, threads: int) -> None:
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", store=store, rank=number, world_size=processes, timeout=_LONGEST_WAIT)


@contextmanager
def _all_present() -> Iterator[None]:
    """Says what it means if a collective operation fails."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessError(_LOST) from error
