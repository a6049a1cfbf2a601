"""Does a workload by this package, in a process of its own; started by `benchmarks.peers`."""

import sys
from collections.abc import Callable

import torch

from benchmarks.cases import Case, Iteration
from benchmarks.workload import Rounds, Workload, parse, real_images
from pdd_lightning.augment import DSA
from pdd_lightning.data.pixels import Standardized
from pdd_lightning.data.splits import EncodedImages
from pdd_lightning.memory import keep_freed_memory
from pdd_lightning.networks import ConvNet, flatten
from pdd_lightning.training import TrainingSettings, train_network

STRATEGY = "color_crop_cutout_flip_scale_rotate"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def iteration(load: Workload) -> Callable[[int], object]:
    """Return an iteration of trajectory matching: what is drawn for it, loss, gradient, and update."""
    case = Case("MTT", ipc=load.ipc, syn_steps=load.steps, batch_syn=load.batch, width=load.width, device=load.device)
    ours = Iteration(case)
    optimizer = ours.stage.configure_optimizers()

    def step(turn: int) -> None:
        ours("ours", turn)
        optimizer.step()

    return step


def expert(load: Workload) -> Callable[[int], object]:
    """Return an epoch on real images, held as uint8, and the snapshot after it."""
    (images, labels), _ = real_images(load)
    encoded = EncodedImages(images, Standardized(MEAN, STD), torch.device(load.device))
    network, generator = _network(load), torch.Generator().manual_seed(0)
    settings = TrainingSettings(1, momentum=0.0, weight_decay=0.0, milestones=())
    labels = labels.to(load.device)

    def epoch(turn: int) -> None:
        train_network(network, encoded, labels, settings, DSA(STRATEGY), generator)
        flatten(dict(network.named_parameters())).detach().to("cpu", copy=True)

    return epoch


def transition(load: Workload) -> Callable[[int], object]:
    """Return the training of a network on a synthetic union."""
    images = torch.randn(load.union, 3, 32, 32, device=load.device)
    labels = torch.arange(load.union, device=load.device) % 10

    def train(turn: int) -> None:
        generator = torch.Generator().manual_seed(turn)
        train_network(_network(load), images, labels, TrainingSettings(load.epochs), DSA(STRATEGY), generator)

    return train


def _network(load: Workload) -> ConvNet:
    return ConvNet(3, 10, 32, width=load.width).to(load.device)


def main(load: Workload) -> None:
    """Do rounds until there are no more lines of input."""
    keep_freed_memory()  # as `pdd` does
    rounds = Rounds(load.device)
    work = {"iteration": iteration, "expert": expert, "transition": transition}[load.part](load)
    for turn in range(10**6):
        rounds.begin()
        work(turn)
        rounds.end()


if __name__ == "__main__":
    main(parse(sys.argv[1:]))
