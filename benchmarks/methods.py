"""Time, throughput and peak memory of an iteration of each method, beside plain loops over the classes.

python -m benchmarks.methods --methods IDC DC --stages 1 5 --width 32
"""

import argparse
import statistics
from functools import partial
from typing import Any

import torch

from benchmarks.cases import METHODS, Case, Iteration, check
from benchmarks.measure import alternating, flops, peak_of, table, training_step

FORMS = ("ours", "plain")
TEXT = """\
One iteration is loss and gradient of the image step: for IDC of one class, for the others of all classes; images of
earlier stages are frozen. `plain` is the method as its paper writes it: autograd, class by class, second
derivatives through all synthetic images. Both forms agreed in float64 before they were timed, and are timed
alternating, in medians. The floor counts 3 forward passes for an image whose gradient is a constant, 7 for one that
is learned (9 in trajectory matching; 1 and 2 for DM's features), at the speed of an ordinary training step in the same
run; `work` are the operations that were counted, over those of the floor. Memory is the peak of a fresh process per
line, and what of it is above one that only sets the case up."""
COLUMNS = {
    "method": "method|", "stage": "stage|d", "form": "form|", "seconds": "s / iteration|.4f",
    "images_per_second": "images / s|.0f", "to_plain": "to plain|.2f", "to_floor": "to floor|.2f",
    "work_to_floor": "work|.2f", "peak_mb": "peak MB|.0f", "above_base_mb": "above base MB|.0f",
}  # fmt: skip


def measure(methods: list[str], stages: list[int], repeats: int, **settings: Any) -> list[dict[str, Any]]:
    """Return one row per method, stage and form.

    Args:
        methods: Names of methods.
        stages: Stages, from 1.
        repeats: Timed rounds.
        settings: Further fields of `Case`.
    """
    return [row for method in methods for row in _measure(method, stages, repeats, settings)]


def _measure(method: str, stages: list[int], repeats: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    cases = [Case(method, stage, **settings) for stage in stages]
    for case in cases:
        check(case)
    iterations = {case.stage: Iteration(case) for case in cases}
    calls = {(form, stage): partial(iterations[stage], form) for stage in stages for form in FORMS}
    first = cases[0]
    network = iterations[first.stage].network(3, first.classes, first.size).to(first.device)
    images = torch.randn(64, 3, first.size, first.size, device=first.device)
    step = {("training", 0): lambda _: training_step(network, images)}
    times = {name: statistics.median(t) for name, t in alternating({**step, **calls}, repeats, first.device).items()}
    pass_seconds = times["training", 0] / (3 * len(images))
    rows = []
    for case in cases:
        base = peak_of(partial(Iteration, case), None, case.device)
        for form in FORMS:
            seconds = times[form, case.stage]
            row = _row(iterations[case.stage], form, seconds, pass_seconds)
            peak = peak_of(partial(Iteration, case), form, case.device)
            memory = {"peak_mb": peak / 1e6, "above_base_mb": (peak - base) / 1e6}
            rows.append({**row, "to_plain": seconds / times["plain", case.stage], **memory})
    return rows


def _row(iteration: Iteration, form: str, seconds: float, pass_seconds: float) -> dict[str, Any]:
    case, passes = iteration.case, iteration.floor_passes
    return {
        "method": case.method,
        "stage": case.stage,
        "form": form,
        "seconds": seconds,
        "images_per_second": iteration.images / seconds,
        "to_floor": seconds / (passes * pass_seconds),
        "work_to_floor": flops(lambda: iteration(form)) / (passes * iteration.pass_flops),
    }


def growth(rows: list[dict[str, Any]]) -> str:
    """Return how much longer an iteration of the last stage takes than one of the first, as a sentence."""
    stages = sorted({row["stage"] for row in rows})
    seconds = {(row["method"], row["stage"]): row["seconds"] for row in rows if row["form"] == "ours"}
    methods = dict.fromkeys(row["method"] for row in rows)
    ratios = [f"{method} {seconds[method, stages[-1]] / seconds[method, stages[0]]:.2f}" for method in methods]
    return f"Time of an iteration of stage {stages[-1]} over one of stage {stages[0]}: {', '.join(ratios)}."


def report(rows: list[dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    return f"{table(COLUMNS, rows)}\n\n{growth(rows)}"


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--repeats", type=int, default=3)
    for name in ("classes", "ipc", "real_batch", "syn_steps", "size", "depth", "width", "device"):
        default = getattr(Case("DC"), name)
        parser.add_argument(f"--{name}", type=type(default), default=default)
    print(report(measure(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
