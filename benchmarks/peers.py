"""Ours beside the official code of trajectory matching: iterations, experts, transitions.

git clone https://github.com/GeorgeCazenavette/mtt-distillation
python -m benchmarks.peers --code mtt-distillation --root path/to/cifar10-as-files
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

import torch

from benchmarks.measure import table
from benchmarks.workload import Workload, words

TEXT = """\
The official code of MTT runs unchanged beside ours, each in a process of its own, in turn: a round of one, a round of
the next. A first round, which warms up, does not count; seconds are medians. An iteration is everything from drawing to
the update of the images: student steps with the full augmentation, loss, gradient. An expert's epoch is one over so
many images of CIFAR-10 (JPEG) in batches of 256; the official code scores its network on a fifth as many test images
after each, ours does not. A transition trains a network on the union in batches of 256. Memory is the peak of the
process."""
COLUMNS = {
    "work": "work|", "code": "code|", "seconds": "s|.3f", "spread": "lowest - highest|",
    "to_official": "to official|.2f", "peak_mb": "peak MB|.0f", "peak_to_official": "peak to official|.2f",
}  # fmt: skip
_FEW = {"part": "iteration", "real": 500}  # real images: to start from
WORK: dict[str, dict[str, Any]] = {
    "iteration, 10 steps x 20 images": {**_FEW, "steps": 10},
    "iteration, 20 steps x 20 images": {**_FEW, "steps": 20},
    "iteration, 50 steps x 20 images": {**_FEW, "steps": 50},
    "iteration, 30 steps x 100 of 500 images": {**_FEW, "steps": 30, "batch": 100, "ipc": 50},
    "expert, epoch of 5,000 images": {"part": "expert"},
    "expert, epoch of 50,000 images": {"part": "expert", "real": 50000},
    "transition, 5 epochs on 100 images": {"part": "transition"},
}
CODES = {"official": "benchmarks.official_mtt", "ours": "benchmarks.ours"}
Answer: TypeAlias = dict[str, float]


def measure(
    code: str, root: str, repeats: int, work: Sequence[str] = tuple(WORK), **settings: Any
) -> list[dict[str, Any]]:
    """Return one row per kind of work and code.

    Args:
        code: Checkout of the official code; empty: ours alone.
        root: Folder of CIFAR-10 as image files; empty: without the work that needs it.
        repeats: Rounds that count.
        work: Names of kinds of work.
        settings: Further fields of all workloads.
    """
    places = {"code": code and str(Path(code).resolve()), "root": root and str(Path(root).resolve())}
    kinds = [
        name
        for name in work
        if root or WORK[name]["part"] == "transition" or not (code or WORK[name]["part"] == "expert")
    ]
    return [row for name in kinds for row in _measure(name, repeats, {**WORK[name], **places, **settings})]


def _measure(name: str, repeats: int, fields: dict[str, Any]) -> list[dict[str, Any]]:
    answers: dict[str, list[Answer]] = {}
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        rounds = {}
        for kind, module in CODES.items():
            if kind != "official" or fields["code"]:
                rounds[kind] = stack.enter_context(_worker(module, Workload(scratch=scratch, **fields)))
        for turn in range(repeats + 1):
            for kind, answer in rounds.items():
                got = next(answer)
                if turn:
                    answers.setdefault(kind, []).append(got)
    return [_row(name, kind, got, answers.get("official")) for kind, got in answers.items()]


@contextmanager
def _worker(module: str, load: Workload) -> Iterator[Iterator[Answer]]:
    """Start a process, and give its rounds."""
    project = str(Path(__file__).parents[1])
    program = f"import sys, runpy; sys.path.insert(0, {project!r}); runpy.run_module({module!r}, run_name='__main__')"
    hidden = (
        {"CUDA_VISIBLE_DEVICES": ""} if load.device == "cpu" else {}
    )  # the official code takes a GPU if there is one
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program, *words(load)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=load.scratch,
            env={**os.environ, **hidden},
        )  # fmt: skip
        try:
            yield _rounds(process, errors)
        finally:
            process.kill()
            process.communicate()


def _rounds(process: "subprocess.Popen[str]", errors: IO[str]) -> Iterator[Answer]:
    assert process.stdin is not None and process.stdout is not None
    while True:
        try:
            process.stdin.write("\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            errors.seek(0)
            raise SystemExit(f"a benchmark process ended: {errors.read()[-2000:]}")
        yield json.loads(line)


def _row(name: str, kind: str, answers: list[Answer], official: list[Answer] | None) -> dict[str, Any]:
    seconds = [answer["seconds"] for answer in answers]
    row = {"work": name, "code": kind, "seconds": statistics.median(seconds), "peak_mb": answers[-1]["peak_mb"],
           "spread": f"{min(seconds):.3f} - {max(seconds):.3f}"}  # fmt: skip
    if official is not None:
        row["to_official"] = row["seconds"] / statistics.median(answer["seconds"] for answer in official)
        row["peak_to_official"] = row["peak_mb"] / official[-1]["peak_mb"]
    return row


def report(rows: list[dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    return table(COLUMNS, rows)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--code", default="", help="checkout of the official code; without it ours alone")
    parser.add_argument("--root", default="", help="CIFAR-10 as image files: train/<class>/, test/<class>/")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", default=list(WORK), metavar="WORK", help=f"of {'; '.join(WORK)}")
    args = parser.parse_args()
    print(report(measure(args.code, args.root, args.repeats, args.only, device=args.device, threads=args.threads)))


if __name__ == "__main__":
    main()
