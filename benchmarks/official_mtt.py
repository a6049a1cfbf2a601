"""Runs the official trajectory matching code (Cazenavette et al. 2022, MIT) as it is, and says how long its parts take.

Started by `benchmarks.peers`. The code is imported from a checkout and nowhere changed. What it asks of other packages
is given stand-ins: `wandb`, whose call after each iteration is where the clock is read; `kornia` and SciPy's former
`interpolation`, which these parts do not use; and `get_dataset`, since torchvision's CIFAR-10 takes only the original
files.
"""

import runpy
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms import Normalize

from benchmarks.workload import Rounds, Workload, parse, real_images

STATISTICS = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class Anything(types.ModuleType):
    """A module in which every name is a function that does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class Wandb(types.ModuleType):
    """Stands for `wandb`: what is logged after an iteration ends a round."""

    def __init__(self, rounds: Rounds) -> None:
        super().__init__("wandb")
        self.rounds, self.run = rounds, types.SimpleNamespace(name="run")
        self.config: Any = None

    def init(self, config: Any, **_: Any) -> None:
        """Take the settings over."""
        self.config = types.SimpleNamespace(_items=dict(vars(config)))

    def log(self, values: dict[str, Any], **_: Any) -> None:
        """The learned rate is logged before an iteration's work, the loss after it."""
        if "Synthetic_LR" in values:
            self.rounds.begin()
        elif "Grand_Loss" in values:
            self.rounds.end()

    def Histogram(self, *_: Any) -> None:
        """Nothing to show."""

    def Image(self, *_: Any) -> None:
        """Nothing to show."""


def official_utils(load: Workload, rounds: Rounds) -> Any:
    """Make the official modules importable, with our images, and return their `utils`."""
    sys.path.insert(0, load.code)
    for name in ("kornia", "scipy.ndimage.interpolation"):
        sys.modules[name] = Anything(name)
    sys.modules["wandb"] = Wandb(rounds)
    import utils  # type: ignore[import-not-found]

    utils.get_dataset = lambda *_, **__: dataset(load)
    return utils


def dataset(load: Workload) -> tuple[Any, ...]:
    """Return what the official `get_dataset` does, for a part of the images."""
    mean, std = STATISTICS
    normalize = Normalize(mean, std)
    train, test = (
        [(normalize(image.float() / 255), int(label)) for image, label in zip(*split, strict=True)]
        for split in real_images(load)
    )
    loader = torch.utils.data.DataLoader(test, batch_size=256, shuffle=False, num_workers=0)  # type: ignore[arg-type]
    names, same = [str(number) for number in range(10)], {number: number for number in range(10)}
    return 3, (32, 32), 10, names, list(mean), list(std), train, test, loader, {}, same, same


def iterations(load: Workload, rounds: Rounds) -> None:
    """Run `distill.py`; each of its iterations is a round."""
    utils = official_utils(load, rounds)
    folder = Path(load.scratch, "CIFAR10_NO_ZCA", "ConvNet")
    folder.mkdir(parents=True, exist_ok=True)
    start = [parameter.detach().cpu() for parameter in utils.get_network("ConvNet", 3, 10, (32, 32)).parameters()]
    torch.save(
        [[[p + 0.01 * epoch * torch.randn_like(p) for p in start] for epoch in range(4)]], folder / "replay_buffer_0.pt"
    )
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self: self  # type: ignore[method-assign,assignment]
    run(load, "distill.py", num_eval=0, eval_it=10**6, ipc=load.ipc, syn_steps=load.steps, batch_syn=load.batch,
        buffer_path=load.scratch, expert_epochs=2, max_start_epoch=2)  # fmt: skip


def experts(load: Workload, rounds: Rounds) -> None:
    """Run `buffer.py`; an epoch and its scoring on test images are a round."""
    utils = official_utils(load, rounds)
    official = utils.epoch

    def epoch(mode: str, *args: Any, **options: Any) -> Any:
        if mode == "train":
            rounds.begin()
        result = official(mode, *args, **options)
        if mode == "test":
            rounds.end()
        return result

    utils.epoch = epoch
    run(load, "buffer.py", num_experts=1, train_epochs=10**6, buffer_path=load.scratch)


def transitions(load: Workload, rounds: Rounds) -> None:
    """Call `evaluate_synset`, which trains a network on synthetic images; each call is a round."""
    utils = official_utils(load, rounds)
    images, labels = torch.randn(load.union, 3, 32, 32), torch.arange(load.union) % 10
    args = types.SimpleNamespace(
        device=load.device, lr_net=0.01, epoch_eval_train=load.epochs - 1, batch_train=256, dataset="CIFAR10",
        dsa=True, dsa_strategy="color_crop_cutout_flip_scale_rotate", dsa_param=utils.ParamDiffAug(),
    )  # fmt: skip
    one = [(images[:1], labels[:1])]  # it scores the network at the end: on one image
    while True:
        network = utils.get_network("ConvNet", 3, 10, (32, 32))
        rounds.begin()
        utils.evaluate_synset(0, network, images, labels, one, args)
        rounds.end()


def run(load: Workload, script: str, **options: Any) -> None:
    """Run an official script with some options."""
    sys.argv = [script, *(f"--{name}={value}" for name, value in options.items())]
    runpy.run_path(str(Path(load.code, script)), run_name="__main__")


PARTS = {"iteration": iterations, "expert": experts, "transition": transitions}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    workload = parse(sys.argv[1:])
    PARTS[workload.part](workload, Rounds(workload.device))
