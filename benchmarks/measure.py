"""What the benchmarks share: timing, peak memory, and how results are written down."""

import contextlib
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import lightning
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pdd_lightning import __version__
from pdd_lightning.kernels import operators

Name = TypeVar("Name", bound=Hashable)


def now(device: str) -> float:
    """Return the time in seconds when all work so far is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def alternating(calls: Mapping[Name, Callable[[int], object]], repeats: int, device: str) -> dict[Name, list[float]]:
    """Return the seconds of each call, made in turn; a first round, which warms up, does not count.

    Args:
        calls: What to time; called with the number of the round.
        repeats: Rounds that count.
        device: cpu or cuda.
    """
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            begin = now(device)
            call(turn)
            seconds = now(device) - begin
            if turn:
                times[name].append(seconds)
    return times


def training_step(network: nn.Module, images: torch.Tensor) -> None:
    """Do 3 forward passes' worth of work: one, and the gradient by parameters and images."""
    images = images.detach().requires_grad_()
    loss = F.cross_entropy(network(images), torch.zeros(len(images), dtype=torch.int64, device=images.device))
    torch.autograd.grad(loss, [images, *network.parameters()])


def flops(call: Callable[[], object]) -> int:
    """Return the floating-point operations of a call, in matrix products and convolutions."""
    with _Flops() as counter:
        call()
    return counter.total


class _Flops(TorchDispatchMode):
    """Counts operations. Torch's own counter hooks into modules, for which networks take another way than else."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and count what it does: if it consists of others, what these do."""
        kwargs = kwargs or {}
        formula = flop_registry.get(func.overloadpacket)
        if formula is None:
            with self:
                if func.namespace == "pdd_lightning":
                    return _by_plain_convolutions(operators.KERNELS[func.overloadpacket.__name__][0], args)
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        self.total += formula(*args, **kwargs, out_val=result) if formula else 0
        return result


def _by_plain_convolutions(kernel: Callable[..., Any], args: Any) -> Any:
    """What one of our own operators does, with torch's convolutions."""
    with contextlib.ExitStack() as stack:
        for choice in ("convolution.suits_winograd", "chain.suits_image_block"):
            stack.enter_context(mock.patch(f"pdd_lightning.kernels.{choice}", return_value=False))
        return kernel(*args)


def peak_bytes(device: str) -> int:
    """Return the peak memory of this process: resident on a CPU, allocated on a GPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts what the parent had in the resource usage, but not here
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_of(build: Callable[[], Callable[[str], object]], form: str | None, device: str) -> int:
    """Return the peak bytes of a process of its own.

    Args:
        build: Sets an iteration up; can be pickled.
        form: What the iteration is called with, twice; None: not at all.
        device: cpu or cuda.
    """
    context = multiprocessing.get_context("forkserver")  # imports once, for all processes that it makes
    context.set_forkserver_preload(["benchmarks.cases", "benchmarks.unroll"])
    with context.Pool(1) as pool:
        return pool.apply(_peak, (build, form, device, torch.get_num_threads()))


def _peak(build: Callable[[], Callable[[str], object]], form: str | None, device: str, threads: int) -> int:
    torch.set_num_threads(threads)
    iteration = build()
    for _ in range(0 if form is None else 2):
        iteration(form)
    return peak_bytes(device)


def environment(device: str) -> dict[str, Any]:
    """Return what figures depend on: machine, load and versions."""
    return {
        "machine": torch.cuda.get_device_name() if device != "cpu" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "pdd_lightning": __version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def table(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table.

    Args:
        columns: Heading and format of each column, such as `{"seconds": "s / iteration|.3f"}`, by key of the rows.
        rows: The rows; a missing value leaves its cell empty.
    """
    heads = {key: text.partition("|") for key, text in columns.items()}
    lines = ["| " + " | ".join(head for head, _, _ in heads.values()) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = (format(row[key], form) if key in row else "" for key, (_, _, form) in heads.items())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
