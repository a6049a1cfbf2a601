"""Time and memory of the forms of the unrolled loop.

    python benchmarks/unroll.py                                  # ConvNet-3, width 128, 20 x 3 x 32 x 32
    python benchmarks/unroll.py --channels 1 --size 8 --depth 2 --width 32 --batch 10 --steps 10 --augment

One iteration is the forward pass, the trajectory distance and the backward pass. The forms are timed
alternating in one process; the floor is 9 forward passes per image and step (one forward, two for the
gradient, six for its derivative), at the speed that this machine reaches in a plain training step (3 forward
passes). Memory is the peak resident size of a fresh process per form; the base is that of a process which
only sets the problem up.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pdd_lightning.augment import DSA
from pdd_lightning.networks import ConvNet, flatten
from pdd_lightning.objectives import trajectory_distance
from pdd_lightning.unroll import InnerProblem, unroll

FORMS = ("stored", "higher", "constant")


def parse() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"channels": 3, "size": 32, "depth": 3, "width": 128, "batch": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 50], help="numbers of student steps")
    parser.add_argument("--augment", action="store_true", help="augment each batch (DSA)")
    parser.add_argument("--repeats", type=int, default=3, help="timed iterations of each form")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--child", choices=[*FORMS, "none"], help=argparse.SUPPRESS)
    return parser.parse_args()


class Iteration:
    """One trajectory-matching iteration on random images."""

    def __init__(self, args: argparse.Namespace, steps: int) -> None:
        torch.manual_seed(0)
        self.network = ConvNet(args.channels, 10, args.size, args.depth, args.width).to(args.device)
        self.params = {name: p.detach() for name, p in self.network.named_parameters()}
        shape = (args.batch, args.channels, args.size, args.size)
        self.images = torch.randn(shape, device=args.device, requires_grad=True)
        self.labels = torch.arange(args.batch, device=args.device) % 10
        self.lr = torch.tensor(0.01, device=args.device, requires_grad=True)
        self.start = flatten(self.params)
        self.target = self.start + 0.01 * torch.randn_like(self.start)
        dsa, generator = (
            DSA("color_crop_cutout_flip_scale_rotate" if args.augment else "none"),
            torch.Generator(),
        )
        draws = [dsa.draw(args.batch, (args.size, args.size), generator) for _ in range(steps)]
        self.problem = InnerProblem(self.network, lambda step, images: (dsa(images, draws[step]), self.labels))
        self.steps, self.device = steps, args.device

    def __call__(self, form: str) -> float:
        """Return the seconds of one iteration."""
        begin = self.now()
        final = unroll(self.problem, self.params, (self.images,), self.lr, self.steps, form)
        trajectory_distance(flatten(final), self.start, self.target).backward()
        return self.now() - begin

    def floor(self) -> float:
        """Return the seconds that 9 forward passes per step take at the speed of a plain training step."""
        begin = self.now()
        for _ in range(3):
            loss = F.cross_entropy(self.network(self.images), self.labels)
            torch.autograd.grad(loss, [self.images, *self.network.parameters()])
        return (self.now() - begin) * self.steps

    def now(self) -> float:
        """Return the time in seconds when all work so far is done."""
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()


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


def measure_child(form: str, steps: int) -> int:
    """Return the peak bytes of a fresh process: two iterations of a form, or none at all with `none`."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", form, "--steps", str(steps)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(args: argparse.Namespace, steps: int) -> list[dict[str, object]]:
    """Return one row per form: times alternating in this process, memory in fresh ones."""
    iteration = Iteration(args, steps)
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    floors = []
    for repeat in range(args.repeats + 1):
        floors.append(iteration.floor())
        for form in FORMS:
            times[form].append(iteration(form))
        if repeat == 0:  # the first round warms up
            floors.clear()
            for seconds in times.values():
                seconds.clear()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        iteration.network(iteration.images)
    flops, base = 9 * counter.get_total_flops() * steps, measure_child("none", steps)
    rows = []
    for form in FORMS:
        peak, seconds = measure_child(form, steps), statistics.median(times[form])
        rows.append(
            {
                "form": form,
                "steps": steps,
                "seconds": seconds,
                "seconds_min": min(times[form]),
                "to_stored": seconds / statistics.median(times["stored"]),
                "to_floor": seconds / statistics.median(floors),
                "gflops": flops / seconds / 1e9,
                "peak_mb": peak / 1e6,
                "above_base_mb": (peak - base) / 1e6,
            }
        )
    return rows


def main() -> None:
    """Measure and report, or be the process whose memory is measured."""
    args = parse()
    torch.set_num_threads(args.threads)
    if args.child:
        iteration = Iteration(args, args.steps[0])
        for _ in range(0 if args.child == "none" else 2):
            iteration(args.child)
        print(peak_bytes(args.device))
        return
    rows = [row for steps in args.steps for row in measure(args, steps)]
    print("| form | steps | s / iteration | to stored | to floor | GFLOP/s | peak MB | above base MB |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        numbers = (f"{row[key]:.{digits}f}" for key, digits in COLUMNS.items())
        print(f"| {row['form']} | {row['steps']} | {' | '.join(numbers)} |")
    if args.output:
        settings = {key: value for key, value in vars(args).items() if key not in ("output", "child")}
        report = {"settings": settings, "torch": torch.__version__, "rows": rows}
        args.output.write_text(json.dumps(report, indent=2) + "\n")


COLUMNS = {"seconds": 4, "to_stored": 2, "to_floor": 2, "gflops": 0, "peak_mb": 0, "above_base_mb": 0}

if __name__ == "__main__":
    main()
