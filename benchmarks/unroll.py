"""Time and memory of the modes of the unrolled loop.

python -m benchmarks.unroll                                  # ConvNet-3, width 128, 20 x 3 x 32 x 32
python -m benchmarks.unroll --channels 1 --size 8 --depth 2 --width 32 --batch 10 --steps 10 --augment
"""

import argparse
import contextlib
import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.measure import alternating, flops, peak_of, table, training_step
from benchmarks.plain import torch_alone
from pdd_lightning.augment import DSA
from pdd_lightning.networks import ConvNet, flatten
from pdd_lightning.objectives import trajectory_distance
from pdd_lightning.unroll import InnerProblem, unroll

FORMS = ("stored", "constant", "plain", "higher")
TEXT = """\
One iteration is the forward pass, the trajectory distance and the backward pass. `plain` stores the graph of torch's
own operations, and so does `higher`. The forms are timed alternating, in medians; the floor is 9 forward passes per
image and step (one forward, two for the gradient, six for its derivative), at the speed of a training step in the same
run. Memory is the peak of a fresh process per form, and what of it is above one that only sets the problem up."""
COLUMNS = {
    "form": "form|", "steps": "steps|d", "seconds": "s / iteration|.4f", "to_plain": "to plain|.2f",
    "to_floor": "to floor|.2f", "gflops": "GFLOP/s|.0f", "peak_mb": "peak MB|.0f",
    "above_base_mb": "above base MB|.0f",
}  # fmt: skip


@dataclass(frozen=True)
class Loop:
    """What is unrolled: a ConvNet, `batch` square images of `size` pixels a step, and so many steps."""

    steps: int = 10
    channels: int = 3
    size: int = 32
    depth: int = 3
    width: int = 128
    batch: int = 20
    augment: bool = False
    device: str = "cpu"


class Iteration:
    """One trajectory-matching iteration on random images."""

    def __init__(self, loop: Loop) -> None:
        torch.manual_seed(0)
        self.network = ConvNet(loop.channels, 10, loop.size, loop.depth, loop.width).to(loop.device)
        self.params = {name: p.detach() for name, p in self.network.named_parameters()}
        shape = (loop.batch, loop.channels, loop.size, loop.size)
        self.images = torch.randn(shape, device=loop.device, requires_grad=True)
        labels = torch.arange(loop.batch, device=loop.device) % 10
        self.lr = torch.tensor(0.01, device=loop.device, requires_grad=True)
        self.start = flatten(self.params)
        self.target = self.start + 0.01 * torch.randn_like(self.start)
        dsa = DSA("color_crop_cutout_flip_scale_rotate" if loop.augment else "none")
        generator = torch.Generator()
        draws = [dsa.draw(loop.batch, (loop.size, loop.size), generator) for _ in range(loop.steps)]
        self.problem = InnerProblem(self.network, lambda step, images: (dsa(images, draws[step]), labels))
        self.steps = loop.steps

    def __call__(self, form: str, turn: int = 0) -> None:
        """Do an iteration; all turns are alike."""
        ours = form in ("stored", "constant")
        kind = "stored" if form == "plain" else form
        with contextlib.nullcontext() if ours else torch_alone():
            final = unroll(self.problem, self.params, (self.images,), self.lr, self.steps, kind)
            trajectory_distance(flatten(final), self.start, self.target).backward()


def measure(steps: list[int], repeats: int, **settings: Any) -> list[dict[str, Any]]:
    """Return one row per number of steps and form.

    Args:
        steps: Numbers of steps.
        repeats: Timed rounds.
        settings: Further fields of `Loop`.
    """
    return [row for count in steps for row in _measure(Loop(count, **settings), repeats)]


def _measure(loop: Loop, repeats: int) -> list[dict[str, Any]]:
    iteration = Iteration(loop)
    calls = {form: partial(iteration, form) for form in FORMS}
    step = {"training": lambda _: training_step(iteration.network, iteration.images)}
    times = {name: statistics.median(t) for name, t in alternating({**step, **calls}, repeats, loop.device).items()}
    with torch.no_grad():
        work = 9 * flops(lambda: iteration.network(iteration.images)) * loop.steps
    base, rows = peak_of(partial(Iteration, loop), None, loop.device), []
    for form in FORMS:
        peak, seconds = peak_of(partial(Iteration, loop), form, loop.device), times[form]
        rows.append(
            {
                "form": form,
                "steps": loop.steps,
                "seconds": seconds,
                "to_plain": seconds / times["plain"],
                "to_floor": seconds / (3 * times["training"] * loop.steps),
                "gflops": work / seconds / 1e9,
                "peak_mb": peak / 1e6,
                "above_base_mb": (peak - base) / 1e6,
            }
        )
    return rows


def report(rows: list[dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    return table(COLUMNS, rows)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 50], help="numbers of student steps")
    parser.add_argument("--augment", action="store_true", help="augment each batch (DSA)")
    parser.add_argument("--repeats", type=int, default=3, help="timed iterations of each form")
    for name in ("channels", "size", "depth", "width", "batch", "device"):
        default = getattr(Loop(), name)
        parser.add_argument(f"--{name}", type=type(default), default=default)
    print(report(measure(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
