"""Continual learning: classes arrive task by task, and a small memory stands for those that are gone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pdd_lightning.augment import DSA
from pdd_lightning.data.splits import to_unit
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation.baselines import (
    check_counts,
    chosen_set,
    features_before_classifier,
    herding_choice,
    random_choice,
)
from pdd_lightning.evaluation.memory import LearningTask, LearningTasks, joined
from pdd_lightning.evaluation.plan import Part
from pdd_lightning.metrics.accuracies import average_accuracy, average_forgetting
from pdd_lightning.progress import progress_bar
from pdd_lightning.randomness import derive_seed, generator_for, seeded
from pdd_lightning.training import TrainingSettings, train_network
from pdd_lightning.typing import NetworkFactory

ContinualProtocol: TypeAlias = Literal["gdumb", "replay"]
Memory: TypeAlias = Literal["distilled", "random", "herding", "none"]
_BATCH = 512


@dataclass(frozen=True)
class ContinualSettings:
    """How tasks are learned one after another.

    Attributes:
        protocols: "gdumb" trains a fresh network on the memory alone after each task; "replay" trains one network on
            each task's real images together with the memory of the earlier tasks.
        memories: What is kept of each task, the same number of images for all: "distilled" images, "random" real
            images, real images chosen by "herding" (in a network trained on the task's images alone, as in "replay"),
            or "none" (in "replay" only).
        num_networks: Networks per row, each with its own initialisation.
        gdumb: Training of a fresh network; epochs are passes over the distilled memory, as networks are trained on it
            (decoded). Its stages share the steps equally, and every memory gets exactly as many, whatever the number
            of its images. A rate learned with a distilled set comes before this one.
        replay: Training of the one network, per task.

    Raises:
        ConfigError: A setting is out of its range.
    """

    protocols: tuple[ContinualProtocol, ...] = ("gdumb", "replay")
    memories: tuple[Memory, ...] = ("distilled", "random", "herding", "none")
    num_networks: int = 5
    gdumb: TrainingSettings = field(default_factory=lambda: TrainingSettings(epochs=1000))
    replay: TrainingSettings = field(default_factory=lambda: TrainingSettings(epochs=50, batch_size=64))

    def __post_init__(self) -> None:
        if self.num_networks < 1:
            raise ConfigError(f"num_networks must be >= 1, got {self.num_networks}")
        for name, known in (("protocols", ContinualProtocol), ("memories", Memory)):
            chosen, choices = getattr(self, name), get_args(known)
            if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(choices):
                raise ConfigError(f"{name} must name some of {', '.join(choices)}, each once, got {list(chosen)}")
        if not self.arms:
            raise ConfigError(
                '"gdumb" trains on the memory alone, and "none" is no memory: add another memory or protocol'
            )

    @property
    def arms(self) -> list[tuple[ContinualProtocol, Memory]]:
        """What is compared: protocols with memories, where a protocol can do with the memory."""
        arms = [(protocol, memory) for protocol in self.protocols for memory in self.memories]
        return [arm for arm in arms if arm != ("gdumb", "none")]


@torch.inference_mode(False)
def learn_tasks(
    tasks: LearningTasks,
    factory: NetworkFactory,
    settings: ContinualSettings,
    augment: DSA,
    part: Part = "test",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """Learns the tasks in turn with each memory and protocol, and scores the networks on all classes seen so far.

    Class-incremental: a network is never told which task an image belongs to. Nothing of a task is used before its
    turn; the memory of a task comes from its own images. Network number n has the same initialisation in every row.

    Args:
        tasks: The tasks and their distilled sets.
        factory: Makes the networks.
        settings: See `ContinualSettings`.
        augment: Augmentation of all training images.
        part: Real images to score on.
        seed: Seed of initialisations, orders, and random real images.
        device: Where to train.

    Returns:
        Rows as JSON values: `accuracy_matrix` [T, T], the mean over networks of the accuracy on task j (column) after
        task i (row), None where it was not learned yet; `average_accuracy` [T], over the tasks seen so far after each
        of them; `mean`, `std` and `accuracies` over networks of the last of these; `forgetting` and `forgetting_std`.

    Reference:
        GDumb: Prabhu, Torr and Dokania, "GDumb: A Simple Approach that Questions Our Progress in Continual Learning",
        ECCV 2020; with distilled memory: Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023,
        section 4.3. Replay: Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019.
    """
    learner = _Learner(tasks, factory, settings, augment, part, seed, torch.device(device))
    rows = []
    total = len(settings.arms) * settings.num_networks * len(tasks.tasks)
    with progress_bar(total, "Learning tasks", "task") as bar:
        for protocol, memory in settings.arms:
            begin = time.perf_counter()
            matrices = []
            for number in range(settings.num_networks):
                bar.set_description(f"{protocol}, {memory} {number + 1}/{settings.num_networks}")
                matrices.append(learner.accuracies(protocol, memory, number))
                bar.update(len(tasks.tasks))
            images = 0 if memory == "none" else sum(len(task.distilled) for task in tasks.tasks)
            facts = {"row": memory, "protocol": protocol, "part": part, "images": images}
            rows.append({**facts, **summary(matrices), "seconds": time.perf_counter() - begin})
    return rows


def summary(matrices: Sequence[Tensor]) -> dict[str, Any]:
    """Means and spreads over networks of what their matrices `[T, T]` of accuracies say, see `learn_tasks`."""
    mean = torch.stack(list(matrices)).mean(0)
    accuracies = [float(average_accuracy(matrix)) for matrix in matrices]
    forgetting = [float(average_forgetting(matrix)) for matrix in matrices]
    several = len(matrices) > 1
    return {
        "mean": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies) if several else 0.0,
        "n": len(accuracies),
        "accuracies": accuracies,
        "forgetting": statistics.fmean(forgetting),
        "forgetting_std": statistics.stdev(forgetting) if several else 0.0,
        "average_accuracy": [float(mean[task, : task + 1].mean()) for task in range(len(mean))],
        "accuracy_matrix": [
            [float(value) if column <= task else None for column, value in enumerate(line)]
            for task, line in enumerate(mean)
        ],
    }


class _Learner:
    """What all rows share."""

    def __init__(
        self,
        tasks: LearningTasks,
        factory: NetworkFactory,
        settings: ContinualSettings,
        augment: DSA,
        part: Part,
        seed: int,
        device: torch.device,
    ) -> None:
        self.all = tasks
        self.tasks = tasks.tasks
        self.factory = factory
        self.settings = settings
        self.augment = augment
        self.part: Part = part
        self.seed = seed
        self.device = device
        if {"random", "herding"} & set(settings.memories):
            for task in self.tasks:
                check_counts(task.real, task.distilled)

    def accuracies(self, protocol: ContinualProtocol, memory: Memory, number: int) -> Tensor:
        """Accuracy `[T, T]` of one network on task j after task i, NaN for tasks not learned yet."""
        kept = self._kept(memory, number)
        generator = generator_for(self.seed, "continual", protocol, memory, number)
        network = self._network(number)
        matrix = torch.full((len(self.tasks), len(self.tasks)), torch.nan, dtype=torch.float64)
        for task in range(len(self.tasks)):
            if protocol == "gdumb":
                network = self._network(number)
                self._train_on_memory(network, joined(kept[: task + 1], self.all), self._gdumb_steps(task), generator)
            else:
                self._train_with_replay(network, task, kept[:task], generator)
            matrix[task, : task + 1] = self._scores(network, task)
        return matrix

    def _kept(self, memory: Memory, number: int) -> list[SyntheticSet]:
        """Memory of each task; empty for none."""
        if memory == "none":
            return []
        if memory == "distilled":
            return [task.distilled for task in self.tasks]
        seed = derive_seed(self.seed, memory, number)
        chosen = [
            self._herded[index] if memory == "herding" else random_choice(task.real, task.distilled, seed)
            for index, task in enumerate(self.tasks)
        ]
        pixels = self.all.pixels
        return [
            chosen_set(task.real, pixels, task.distilled, which) for task, which in zip(self.tasks, chosen, strict=True)
        ]

    @cached_property
    def _herded(self) -> list[Tensor]:
        """Images of each task by herding, in the features of a network trained on that task's images alone."""
        return [self._herd(task) for task in self.tasks]

    def _herd(self, task: LearningTask) -> Tensor:
        images, labels = self._encoded(task.real.train.images).to(self.device), task.real.train.labels.to(self.device)
        channels, size, _ = task.real.image_shape
        with seeded(self.seed, "herding init", task.first):
            network = self.factory(channels, task.real.num_classes, size).to(self.device)
        generator = generator_for(self.seed, "herding", task.first)
        train_network(network, images, labels, self.settings.replay, self.augment, generator)
        return herding_choice(task.real, task.distilled, features_before_classifier(network, images))

    def _network(self, number: int) -> nn.Module:
        channels, size, _ = self.tasks[0].real.image_shape
        with seeded(self.seed, "continual init", number):
            return self.factory(channels, self.all.num_classes, size).to(self.device)

    def _gdumb_steps(self, last: int) -> int:
        """Optimiser steps on the memory of the tasks so far, whichever it is."""
        memories = [task.distilled for task in self.tasks[: last + 1]]
        return self.settings.gdumb.steps(sum(len(memory) * memory.decode_factor**2 for memory in memories))

    def _train_on_memory(
        self, network: nn.Module, memory: SyntheticSet, steps: int, generator: torch.Generator
    ) -> None:
        """Progressively: on the unions of the memory's stages in turn, which share the steps equally."""
        settings = self.settings.gdumb
        for stage in range(1, memory.num_stages + 1):
            share = steps * stage // memory.num_stages - steps * (stage - 1) // memory.num_stages
            union = memory.union(stage).to(self.device)
            epochs = -(-share // replace(settings, epochs=1).steps(len(union)))
            learned = union.learning_rates[-1]
            training = replace(settings, epochs=epochs, lr=settings.lr if learned is None else learned)
            train_network(network, union.images, union.labels, training, self.augment, generator, max_steps=share)

    def _train_with_replay(
        self, network: nn.Module, task: int, kept: Sequence[SyntheticSet], generator: torch.Generator
    ) -> None:
        """On the task's images and the memory, repeated so that half of the images are from it."""
        real = self.tasks[task].real.train
        images, labels = self._encoded(real.images), real.labels + self.tasks[task].first
        if kept:
            memory = joined(kept, self.all)
            times = max(1, round(len(labels) / len(memory)))
            if memory.labels.ndim == 2:
                labels = F.one_hot(labels, self.all.num_classes).float()
            images = torch.cat([images, memory.images.repeat(times, 1, 1, 1)])
            labels = torch.cat([labels, memory.labels.repeat(times, *[1] * (memory.labels.ndim - 1))])
        train_network(
            network, images.to(self.device), labels.to(self.device), self.settings.replay, self.augment, generator
        )

    @torch.no_grad()
    def _scores(self, network: nn.Module, last: int) -> Tensor:
        """Accuracy on each task so far `[last + 1]`, choosing among the classes so far."""
        seen = self.tasks[last].first + self.tasks[last].real.num_classes
        network.eval()
        scores = []
        for task in self.tasks[: last + 1]:
            split = getattr(task.real, self.part)
            images = self._encoded(split.images).to(self.device)
            chosen = torch.cat([network(batch)[:, :seen].argmax(1) for batch in images.split(_BATCH)])
            scores.append((chosen.cpu() == split.labels + task.first).double().mean())
        return torch.stack(scores)

    def _encoded(self, images: Tensor) -> Tensor:
        return self.all.pixels.encode(to_unit(images))
