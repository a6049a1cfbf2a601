"""Gradient matching with all classes in one pass (vmap) beside one class after another.

python -m benchmarks.classes --widths 32 --sizes 16 --classes 10
"""

import argparse
import statistics
from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.cases import TOLERANCE, Case, Iteration
from benchmarks.measure import alternating, peak_of, table

TEXT = """\
The switch `classes` of gradient matching (DC; 2 learned images of each class, none frozen). Both settings give the
same loss and gradient, which is checked in float64 first; they are timed alternating, in medians. Memory is the
peak of a fresh process above one that only sets the case up."""
COLUMNS = {
    "width": "width|d", "size": "pixels|d", "classes": "classes|d", "real_batch": "real images a class|d",
    "in_turn": "in_turn, s|.3f", "together": "together, s|.3f", "ratio": "together / in_turn|.2f",
    "in_turn_mb": "in_turn, MB|.0f", "together_mb": "together, MB|.0f",
}  # fmt: skip


def measure(
    widths: list[int], sizes: list[int], classes: list[int], repeats: int, real_batch: int, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Return one row per width, image size and number of classes, for ConvNets of depth 3 (2 below 8 pixels)."""
    rows = []
    for width, size, count in product(widths, sizes, classes):
        depth = 3 if size >= 8 else 2
        case = {"width": width, "size": size, "classes": count, "real_batch": real_batch, "depth": depth}
        rows.append({"width": width, "size": size, "classes": count, "real_batch": real_batch})
        rows[-1].update(_compare({**case, "device": device}, repeats))
    return rows


def _compare(case: dict[str, Any], repeats: int) -> dict[str, float]:
    _check({**case, "width": 6, "real_batch": 4, "device": "cpu"})
    ways = {name: Case("DC", **case, together=name == "together") for name in ("in_turn", "together")}
    calls = {name: partial(Iteration(way), "ours") for name, way in ways.items()}
    row = {name: statistics.median(times) for name, times in alternating(calls, repeats, case["device"]).items()}
    base = peak_of(partial(Iteration, ways["in_turn"]), None, case["device"])
    peaks = {name: peak_of(partial(Iteration, way), "ours", case["device"]) for name, way in ways.items()}
    memory = {f"{name}_mb": (peak - base) / 1e6 for name, peak in peaks.items()}
    return {**row, "ratio": row["together"] / row["in_turn"], **memory}


def _check(case: dict[str, Any]) -> None:
    results = [Iteration(Case("DC", **case, together=together, double=True))("ours") for together in (False, True)]
    errors = [(one - other).norm() / other.norm() for one, other in zip(*results, strict=True)]
    if not max(errors) < TOLERANCE:
        raise SystemExit(f"the two ways over the classes differ by {max(errors):.1e}")


def report(rows: list[dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    return table(COLUMNS, rows)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, values in {"widths": [32, 128], "sizes": [16, 32], "classes": [10, 100]}.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=values)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--real_batch", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = vars(parser.parse_args())
    torch.set_num_threads(options.pop("threads"))
    print(report(measure(**options)))


if __name__ == "__main__":
    main()
