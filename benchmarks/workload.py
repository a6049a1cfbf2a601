"""What ours and the official code are given to do, each in a process of its own."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import peak_bytes
from pdd_lightning.data.folder import class_folders, find_images, read_images


@dataclass(frozen=True)
class Workload:
    """A part of the work, for one process.

    Attributes:
        part: `iteration`: a student's steps, the matching loss and its gradient, and the update; `expert`: an epoch on
            real images, for the official code with its scoring on test images; `transition`: epochs on a union.
        root: Folder of CIFAR-10 as image files, `train/<class>/` and `test/<class>/`.
        scratch: Folder for what a process writes.
        code: Checkout of the official code; empty for ours.
        steps: Student steps of an iteration.
        batch: Images of a student step.
        ipc: Images per class of the synthetic set.
        real: Real training images, as many of each class, of an epoch; a fifth as many test images.
        union: Images of the union that a transition trains on.
        epochs: Its epochs in a round.
        width: Channels of the ConvNet's blocks.
        device: cpu or cuda.
        threads: Threads of the process.
    """

    part: str
    root: str
    scratch: str
    code: str = ""
    steps: int = 20
    batch: int = 20
    ipc: int = 2
    real: int = 5000
    union: int = 100
    epochs: int = 5
    width: int = 128
    device: str = "cpu"
    threads: int = 2


class Rounds:
    """Rounds of work in this process, each started by a line of input and reported as a line of JSON."""

    def __init__(self, device: str) -> None:
        self._device, self._answers = device, sys.stdout
        sys.stdout = sys.stderr  # whatever is printed elsewhere is no answer
        self._begin = 0.0

    def begin(self) -> None:
        """Wait for a line; there are no more rounds when the input ends."""
        if not sys.stdin.readline():
            raise SystemExit
        self._begin = self._now()

    def end(self) -> None:
        """Report the seconds since the round began, and the peak memory of the process so far."""
        answer = {"seconds": self._now() - self._begin, "peak_mb": peak_bytes(self._device) / 1e6}
        print(json.dumps(answer), file=self._answers, flush=True)

    def _now(self) -> float:
        if self._device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()


def words(load: Workload) -> list[str]:
    """Return a workload as words of a command line, which `parse` reads."""
    return [f"--{name}={value}" for name, value in asdict(load).items()]


def parse(arguments: Sequence[str]) -> Workload:
    """Return the workload that words stand for, and set the threads."""
    parser = argparse.ArgumentParser()
    for field in fields(Workload):
        parser.add_argument(f"--{field.name}", type=field.type, required=True)  # type: ignore[arg-type]
    load = Workload(**vars(parser.parse_args(arguments)))
    torch.set_num_threads(load.threads)
    torch.manual_seed(0)
    return load


def real_images(load: Workload) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return training and test images `[N, 3, 32, 32]` uint8 with their labels."""
    train, test = Path(load.root, "train"), Path(load.root, "test")
    return _split(train, load.real), _split(test, load.real // 5)


def _split(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    names = class_folders(folder)
    each = count // len(names)
    paths = [path for files in find_images([folder / name for name in names]) for path in files[:each]]
    return read_images(paths), torch.arange(len(names)).repeat_interleave(each)
