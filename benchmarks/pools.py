"""Where matching networks come from: a pool of trained ones, or training from scratch for each.

python -m benchmarks.pools --width 32
"""

import argparse
import statistics
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.cases import Case, Iteration
from benchmarks.measure import alternating, table
from pdd_lightning.augment import DSA
from pdd_lightning.stages.gradient_matching import published_loops
from pdd_lightning.training import TrainingSettings, train_network

STAGE, CLASSES, IPC, POOL, RENEWALS = 5, 10, 2, 20, 10
TEXT = f"""\
Seconds per outer iteration, the life of one matching network, in stage {STAGE} of 5 with {IPC} images of {CLASSES}
classes a stage, and hours of a stage. Extrapolated: measured are one image step and one training step; all counts
are the published ones (IDC: 2,000 lives of 100 rounds, 200 epochs a union; DSA: 6,400 image steps, DM: 20,000,
1,000 epochs a union). `from scratch` trains each network through the former unions, as the authors' code of PDD
does; a pool has {POOL} networks, which every transition trains on the latest union, and `renewed` ones are trained
through all unions {RENEWALS - 1} more times in a stage (`stages.pool.renew_every`)."""
COLUMNS = {
    "method": "method|", "lives": "outer iterations|,d", "step": "image step, s|.4f", "image": "trained image, s|.2g",
    "matching": "matching, s / outer|.3g", "scratch": "+ from scratch|.3g", "pool": "+ pool|.3g",
    "renewed": "+ pool renewed|.3g", "scratch_hours": "from scratch, h|,.1f", "pool_hours": "pool, h|,.1f",
    "renewed_hours": "pool renewed, h|,.1f",
}  # fmt: skip


class Counts(NamedTuple):
    """Published counts of a stage.

    Attributes:
        lives: Networks in a stage, each matched for one outer iteration.
        steps: Image steps in a network's life.
        trained: Images that the network is trained on in its life.
        epochs: Epochs of training on each former union.
        pieces: Training images in each stored one.
        batch: Images per training step.
    """

    lives: int
    steps: int
    trained: int
    epochs: int
    pieces: int
    batch: int


def counts(method: str) -> Counts:
    """Return the counts of IDC, DSA or DM for 10 images of 10 classes, in the last of 5 stages."""
    if method == "IDC":
        return Counts(2000, 100 * CLASSES, 100 * 2000, 200, 4, 64)
    outer, inner = published_loops(STAGE * IPC) if method == "DSA" else (1, 0)
    trained = (outer - 1) * inner * STAGE * IPC * CLASSES
    return Counts(6400 // outer if method == "DSA" else 20000, outer, trained, 1000, 1, 256)


def measure(methods: list[str], repeats: int, **settings: Any) -> list[dict[str, Any]]:
    """Return one row per method."""
    return [_measure(method, repeats, settings) for method in methods]


def _measure(method: str, repeats: int, settings: dict[str, Any]) -> dict[str, Any]:
    case, published = Case(method, STAGE, CLASSES, IPC, **settings), counts(method)
    iteration = Iteration(case)
    network = iteration.network(3, case.classes, case.size).to(case.device)
    images = torch.randn(published.batch, 3, case.size, case.size, device=case.device)
    calls = {"step": partial(iteration, "ours"), "train": lambda _: _train(network, images)}
    times = {name: statistics.median(seconds) for name, seconds in alternating(calls, repeats, case.device).items()}
    return {"method": method, **extrapolate(published, times["step"], times["train"] / len(images))}


def _train(network: nn.Module, images: torch.Tensor) -> None:
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    settings = TrainingSettings(1, batch_size=len(images))
    train_network(network, images, labels, settings, DSA("color_crop"), torch.Generator().manual_seed(0))


def extrapolate(published: Counts, step: float, image: float) -> dict[str, Any]:
    """Return seconds per outer iteration, and hours of a stage.

    Args:
        published: Counts.
        step: Seconds of one image step.
        image: Seconds of training on one image.
    """
    unions = [stage * IPC * CLASSES * published.pieces for stage in range(1, STAGE)]
    matching = published.steps * step + published.trained * image
    chain = published.epochs * sum(unions) * image
    transition = published.epochs * unions[-1] * image
    extra = {
        "scratch": chain,
        "pool": POOL * transition / published.lives,
        "renewed": POOL * (transition + (RENEWALS - 1) * chain) / published.lives,
    }
    hours = {f"{name}_hours": published.lives * (matching + seconds) / 3600 for name, seconds in extra.items()}
    return {"lives": published.lives, "step": step, "image": image, "matching": matching, **extra, **hours}


def report(rows: list[dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    return table(COLUMNS, rows)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=["IDC", "DSA", "DM"], default=["IDC", "DSA", "DM"])
    parser.add_argument("--repeats", type=int, default=3)
    for name in ("real_batch", "size", "depth", "width", "device"):
        default = getattr(Case("DC"), name)
        parser.add_argument(f"--{name}", type=type(default), default=default)
    print(report(measure(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
