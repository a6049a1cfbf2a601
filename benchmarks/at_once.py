"""Time of networks trained at once against one by one, per network and step.

    python benchmarks/at_once.py                                                          # 32 pixels, width 128
    python benchmarks/at_once.py --channels 1 --size 8 --depth 2 --width 32 --images 10 20 30 40 50
    python benchmarks/at_once.py --device cuda --images 20 100 256

Both ways take turns in one process; times are medians. Operations are those that compute (views left out): a GPU
starts each of them apart, which is what a step costs when it is small.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pdd_lightning.augment import DSA
from pdd_lightning.networks import ConvNet
from pdd_lightning.training import TrainingSettings, train_network, train_networks


class Operations(TorchDispatchMode):
    """Counts operations that compute."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and run one operation."""
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def parse() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"channels": 3, "size": 32, "depth": 3, "width": 128, "networks": 5, "steps": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--images", type=int, nargs="+", default=[10, 50], help="images per step")
    parser.add_argument("--augment", default="color_crop_cutout_flip_scale_rotate", help="strategy of DSA, or none")
    parser.add_argument("--repeats", type=int, default=5, help="timed trainings of each way")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser.parse_args()


class Trainings:
    """Networks to train on random images, by both ways."""

    def __init__(self, args: argparse.Namespace, count: int) -> None:
        shape = (args.channels, args.size, args.size)
        self.networks = [ConvNet(args.channels, 10, args.size, args.depth, args.width) for _ in range(args.networks)]
        for network in self.networks:
            network.to(args.device)
        self.images = torch.randn(count, *shape, device=args.device)
        self.labels = torch.arange(count, device=args.device) % 10
        self.settings = TrainingSettings(epochs=args.steps, batch_size=count)
        self.augment, self.device = DSA(args.augment), args.device

    def run(self, at_once: bool) -> None:
        """Train all networks, with the same draws every time."""
        sources = [torch.Generator().manual_seed(number) for number in range(len(self.networks))]
        if at_once:
            images, labels = [self.images] * len(sources), [self.labels] * len(sources)
            train_networks(self.networks, images, labels, self.settings, self.augment, sources)
            return
        for network, source in zip(self.networks, sources, strict=True):
            train_network(network, self.images, self.labels, self.settings, self.augment, source)

    def seconds(self, at_once: bool) -> float:
        """Return the seconds of a training."""
        begin = time.perf_counter()
        self.run(at_once)
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def operations(self, at_once: bool) -> int:
        """Return the number of operations of a training."""
        with Operations() as operations:
            self.run(at_once)
        return operations.count


def main() -> None:
    """Print a table."""
    args = parse()
    torch.set_num_threads(args.threads)
    print("images  one by one, ms  at once, ms  ratio  operations one by one  at once")
    for count in args.images:
        trainings, units = Trainings(args, count), args.networks * args.steps
        alone, at_once = (trainings.operations(way) / units for way in (False, True))
        times = [[trainings.seconds(way) for way in (False, True)] for _ in range(args.repeats)]
        slow, fast = (1000 * statistics.median(column) / units for column in zip(*times, strict=True))
        print(f"{count:6} {slow:15.2f} {fast:12.2f} {slow / fast:6.2f} {alone:22.0f} {at_once:8.0f}")


if __name__ == "__main__":
    main()
