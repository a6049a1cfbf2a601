"""Evaluation as a list of independent tasks: each trains one fresh network and scores it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from pdd_lightning.augment import DSA
from pdd_lightning.data.pixels import PixelSpace
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.splits import EncodedImages
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation.baselines import random_real_set
from pdd_lightning.evaluation.protocols import Protocol, check_protocol, protocol_phases
from pdd_lightning.progress import progress_bar
from pdd_lightning.randomness import derive_seed, generator_for, seeded
from pdd_lightning.training import Score, TrainingSettings, score_network, train_network
from pdd_lightning.typing import NetworkFactory

Part = Literal["val", "test"]


@dataclass(frozen=True)
class EvaluationSettings:
    """How a set is evaluated.

    Attributes:
        num_networks: Networks per row, each with its own initialisation, which no expert used.
        epochs: Epochs of each progressive phase.
        protocol: How the networks are trained on a staged set.
        lr: Learning rate for sets without a learned one.
        batch_size: Images per step.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty of SGD.
        full_data_epochs: Epochs of training on the full real set; 0 leaves that row out.
        milestones: Fractions of a phase's epochs, in (0, 1), after which the learning rate drops.
        gamma: Factor of each drop.
        cutmix: Probability with which a batch is mixed by CutMix.
    """

    num_networks: int = 5
    epochs: int = 500
    protocol: Protocol = "progressive"
    lr: float = 0.01
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    full_data_epochs: int = 0
    milestones: tuple[float, ...] = (0.5,)
    gamma: float = 0.1
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.num_networks < 1:
            raise ConfigError(f"num_networks must be >= 1, got {self.num_networks}")
        if self.epochs < 1:
            raise ConfigError(f"evaluation epochs must be >= 1, got {self.epochs}")
        if self.full_data_epochs < 0:
            raise ConfigError(f"full_data_epochs must be >= 0, got {self.full_data_epochs}")
        check_protocol(self.protocol)
        _ = self.training  # refuses what cannot work before hours are spent on what shall be evaluated

    @property
    def training(self) -> TrainingSettings:
        """Training of one progressive phase."""
        return TrainingSettings(
            epochs=self.epochs,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            milestones=self.milestones,
            gamma=self.gamma,
            cutmix=self.cutmix,
        )


@dataclass(frozen=True)
class TaskResult:
    """One trained and scored network; `images` is the number of images it was trained on."""

    row: str
    protocol: str
    part: Part
    images: int
    seed: int
    score: Score
    seconds: float


class EvaluationTask:
    """Trains one network and scores it.

    Not a dataclass: Lightning would run a copy of it.

    Args:
        label: What the progress bar says.
        work: Trains and scores; None from a task that only keeps processes in step.

    Attributes:
        result: The outcome, once `run` was called.
    """

    def __init__(self, label: str, work: Callable[[], TaskResult | None]) -> None:
        self.label = label
        self.work = work
        self.result: TaskResult | None = None

    def run(self) -> TaskResult | None:
        """Trains and scores the network; may be called in Lightning's inference mode."""
        with torch.inference_mode(False):
            self.result = self.work()
        return self.result


@torch.inference_mode(False)
def evaluation_tasks(
    synthetic: SyntheticSet,
    real: RealDataModule,
    pixels: PixelSpace,
    factory: NetworkFactory,
    settings: EvaluationSettings,
    augment: DSA,
    part: Part,
    seed: int,
    device: torch.device,
    baselines: bool,
) -> list[EvaluationTask]:
    """One task per network: on the distilled set, on random real images, and on the full real set.

    Network number n has the same initialisation in every row; the random images are drawn anew for each.

    Args:
        synthetic: The distilled set as it is stored. Networks are trained on the decoded images; random real images
            are as many as the stored ones.
        real: Real images, set up.
        pixels: The model space of the distilled set; real images are brought into it.
        factory: Makes the networks.
        settings: See `EvaluationSettings`.
        augment: Augmentation of the training images.
        part: Which real images the networks are scored on.
        seed: Seed of initialisations, batch orders, augmentation and random images.
        device: Where to train.
        baselines: Whether random and full real images are evaluated too.
    """
    evaluator = _Evaluator(real, pixels, factory, settings, augment, part, seed, device)
    synthetic = synthetic.to(device)
    numbers = range(settings.num_networks)
    tasks = [evaluator.staged_task("distilled", lambda _: synthetic, number) for number in numbers]
    if baselines:
        # Drawn now: whether there are enough real images is not to be found out after hours.
        seeds = [derive_seed(seed, "random real", number) for number in numbers]
        sets = [random_real_set(real, pixels, synthetic, choice) for choice in seeds]
        tasks += [evaluator.staged_task("random real", sets.__getitem__, number) for number in numbers]
        if settings.full_data_epochs:
            tasks += [evaluator.full_task(number) for number in numbers]
    return tasks


def run_tasks(tasks: Sequence[EvaluationTask], progress: bool = True) -> list[TaskResult]:
    """Runs tasks one after another under a progress bar."""
    results = []
    with progress_bar(len(tasks), "Evaluating", "network", progress) as bar:
        for task in tasks:
            bar.set_description(f"Evaluating {task.label}")
            if (result := task.run()) is not None:
                results.append(result)
            bar.update()
    return results


class _Evaluator:
    """What the tasks of one evaluation share."""

    def __init__(
        self,
        real: RealDataModule,
        pixels: PixelSpace,
        factory: NetworkFactory,
        settings: EvaluationSettings,
        augment: DSA,
        part: Part,
        seed: int,
        device: torch.device,
    ) -> None:
        self.real = real
        self.pixels = pixels
        self.factory = factory
        self.settings = settings
        self.augment = augment
        self.part: Part = part
        self.seed = seed
        self.device = device
        self._encoded: dict[str, tuple[EncodedImages, Tensor]] = {}

    def staged_task(self, row: str, images: Callable[[int], SyntheticSet], number: int) -> EvaluationTask:
        def work() -> TaskResult:
            begin = time.perf_counter()
            staged = images(number).to(self.device)
            network = self._network(number)
            generator = generator_for(self.seed, "evaluation", row, number)
            trained_on = staged.decoded(self.pixels)
            for phase in protocol_phases(trained_on, self.settings.protocol, self.settings.training):
                data = phase.images
                train_network(network, data.images, data.labels, phase.training, self.augment, generator)
            return self._result(row, self.settings.protocol, len(staged.labels), number, network, begin)

        return EvaluationTask(f"{row} {number + 1}/{self.settings.num_networks}", work)

    def full_task(self, number: int) -> EvaluationTask:
        def work() -> TaskResult:
            begin = time.perf_counter()
            images, labels = self._part("train")
            network = self._network(number)
            generator = generator_for(self.seed, "evaluation", "full real", number)
            training = replace(self.settings.training, epochs=self.settings.full_data_epochs)
            train_network(network, images, labels, training, self.augment, generator)
            return self._result("full real", "all images", len(images), number, network, begin)

        return EvaluationTask(f"full real {number + 1}/{self.settings.num_networks}", work)

    def _network(self, number: int) -> nn.Module:
        channels, size, _ = self.real.image_shape
        with seeded(self.seed, "evaluation init", number):
            return self.factory(channels, self.real.num_classes, size).to(self.device)

    def _part(self, name: Literal["train", "val", "test"]) -> tuple[EncodedImages, Tensor]:
        if name not in self._encoded:
            split = getattr(self.real, name)
            images = EncodedImages(split.images, self.pixels, self.device)
            self._encoded[name] = (images, split.labels.to(self.device))
        return self._encoded[name]

    def _result(
        self, row: str, protocol: str, images: int, number: int, network: nn.Module, begin: float
    ) -> TaskResult:
        score = score_network(network, *self._part(self.part), self.real.num_classes)
        seconds = time.perf_counter() - begin
        return TaskResult(row, protocol, self.part, images, number, score, seconds)
