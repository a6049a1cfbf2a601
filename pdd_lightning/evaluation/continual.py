"""Continual learning: classes arrive task by task, and a small memory represents those of earlier tasks."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from pydantic import AfterValidator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError, check_at_least
from pdd_lightning.evaluation.baselines import check_counts, herding_task, random_set, real_set
from pdd_lightning.evaluation.learning_tasks import LearningTask, join_memories
from pdd_lightning.evaluation.plan import check_choices, protocol_phases
from pdd_lightning.evaluation.subject import train_with_progress
from pdd_lightning.evaluation.tasks import OnSteps, Task, run_tasks
from pdd_lightning.metrics.accuracies import average_accuracy, average_forgetting
from pdd_lightning.networks.spec import network_spec
from pdd_lightning.randomness import derive_seed, generator_for
from pdd_lightning.results.tables import mean_and_std
from pdd_lightning.stored import Seconds, Share, Stored
from pdd_lightning.training import TrainingSettings

ContinualProtocol: TypeAlias = Literal["gdumb", "replay"]
Memory: TypeAlias = Literal["distilled", "random", "herding", "none"]
_BATCH_SIZE = 512


class _NetworkResult(Stored):
    """Accuracies of a network on the tasks so far, after each task."""

    accuracies: list[list[Share]]
    seconds: Seconds


@dataclass(frozen=True)
class ContinualSettings:
    """Settings of continual learning.

    Attributes:
        protocols: "gdumb" trains a fresh network on the memory alone after each task; "replay" trains one network on
            each task's real images together with the memory of the earlier tasks.
        memories: Memory of each task, of the same size for all: "distilled" images, "random" real images, real images
            chosen by "herding" (in a network trained on the task's images as in "replay"), or "none" ("replay" only).
        num_networks: Networks per row, each with its own initialization.
        gdumb: Training of a fresh network; epochs are passes over the decoded distilled memory. All memories are given
            the same steps, which their stages share equally. A learning rate learned with a distilled set is preferred
            to this one.
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
        check_at_least(1, num_networks=self.num_networks)
        check_choices("protocols", self.protocols, get_args(ContinualProtocol))
        check_choices("memories", self.memories, get_args(Memory))
        if not self.arms:
            raise ConfigError(
                '"gdumb" trains on the memory alone, and "none" is no memory: add another memory or protocol'
            )

    @property
    def arms(self) -> list[tuple[ContinualProtocol, Memory]]:
        """Return the combinations of protocols and memories that are possible."""
        arms = [(protocol, memory) for protocol in self.protocols for memory in self.memories]
        return [arm for arm in arms if arm != ("gdumb", "none")]


def learn_tasks(
    tasks: Sequence[LearningTask], settings: ContinualSettings, progress: bool = True
) -> list[dict[str, Any]]:
    """Learn tasks in turn with each memory and protocol, and score the networks on all classes seen so far.

    Learning is class-incremental: a network is never told which task an image belongs to. Nothing of a task is used
    before its turn; the memory of a task consists of its own images. Network number n has the same initialization in
    every row. Processes share the networks, and each gets all rows. Results in the tasks' store are not computed again.

    Returns:
        Rows as JSON: `accuracy_matrix` [T, T], the mean over networks of the accuracy on task j (column) after task i
        (row), None if it was not learned yet; `average_accuracy` [T], over the tasks seen so far after each of them;
        `mean`, `std` and `accuracies` over networks of the last of these; `forgetting` and `forgetting_std`; `seconds`,
        summed over networks.

    Raises:
        DataError: A class has fewer real images than the memory needs.

    Reference:
        GDumb: Prabhu, Torr and Dokania, "GDumb: A Simple Approach that Questions Our Progress in Continual Learning",
        ECCV 2020; with distilled memory: Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023,
        section 4.3. Replay: Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019.
    """
    learner = _Learner(tasks, settings)
    numbers = range(settings.num_networks)
    work = [learner.task(*arm, number) for arm in settings.arms for number in numbers]
    values = iter(run_tasks(work, tasks[0].store, progress))
    rows = []
    for protocol, memory in settings.arms:
        networks = [next(values) for _ in numbers]
        images = 0 if memory == "none" else sum(len(task.synthetic) for task in tasks)
        row = {"row": memory, "protocol": protocol, "part": tasks[0].part, "images": images}
        ragged = [[torch.tensor(line, dtype=torch.float64) for line in network["accuracies"]] for network in networks]
        row |= summarize([pad_sequence(lines, batch_first=True, padding_value=math.nan) for lines in ragged])
        rows.append({**row, "seconds": sum(network["seconds"] for network in networks)})
    return rows


def summarize(matrices: Sequence[Tensor]) -> dict[str, Any]:
    """Summarize the accuracy matrices `[T, T]` of networks, see `learn_tasks`."""
    mean_matrix = torch.stack(list(matrices)).mean(0)
    accuracies = [float(average_accuracy(matrix)) for matrix in matrices]
    mean, std = mean_and_std(accuracies)
    forgetting, forgetting_std = mean_and_std([float(average_forgetting(matrix)) for matrix in matrices])
    return {
        "mean": mean,
        "std": std or 0.0,
        "n": len(accuracies),
        "accuracies": accuracies,
        "forgetting": forgetting,
        "forgetting_std": forgetting_std or 0.0,
        "average_accuracy": [float(row[:seen].mean()) for seen, row in enumerate(mean_matrix, 1)],
        "accuracy_matrix": [
            [value if task < seen else None for task, value in enumerate(row)]
            for seen, row in enumerate(mean_matrix.tolist(), 1)
        ],
    }


class _Learner:
    """Trains networks on all tasks in turn."""

    def __init__(self, tasks: Sequence[LearningTask], settings: ContinualSettings) -> None:
        self.tasks = tasks
        self.settings = settings
        self.common = tasks[0]  # for all that the tasks share
        self.num_classes = tasks[-1].seen
        if {"random", "herding"} & set(settings.memories):
            for task in tasks:
                check_counts(task)
        self._herding = [herding_task(task, settings.replay, task.augment, task.first) for task in tasks]

    def task(self, protocol: ContinualProtocol, memory: Memory, number: int) -> Task:
        """Return the task of learning all tasks with one network."""
        common, needs = self.common, self._herding if memory == "herding" else []
        depends_on = {
            "continual": {"protocol": protocol, "memory": memory, "number": number},
            "tasks": [task.identity for task in self.tasks],
            "network": network_spec(common.factory),
            "training": asdict(getattr(self.settings, protocol)),
            "augment": vars(common.augment),
            "part": common.part,
            "seed": common.seed,
            "herding": [need.depends_on for need in needs],
        }
        steps = sum(self._steps(protocol, memory, index) for index in range(len(self.tasks)))
        compute = partial(self._learn, protocol, memory, number)
        value_type = Annotated[_NetworkResult, AfterValidator(self._check)]
        return Task(f"{protocol}, {memory} {number + 1}", steps, depends_on, compute, needs, value_type)

    def _check(self, result: _NetworkResult) -> _NetworkResult:
        if [len(row) for row in result.accuracies] != list(range(1, len(self.tasks) + 1)):
            raise ValueError("accuracies: expected one after the first task, two after the second, ..")
        return result

    def _learn(
        self, protocol: ContinualProtocol, memory: Memory, number: int, on_steps: OnSteps, *herded: list[int]
    ) -> dict[str, Any]:
        begin = time.perf_counter()
        memories = self._memories(memory, number, herded)
        generator = generator_for(self.common.seed, "continual", protocol, memory, number)
        network = self._network(number)
        accuracies = []
        for index in range(len(self.tasks)):
            if protocol == "gdumb":
                network = self._network(number)
                joined = join_memories(memories[: index + 1], self.tasks)
                self._train_on_memory(network, joined, self._steps(protocol, memory, index), generator, on_steps)
            else:
                self._train_with_replay(network, index, memories[:index], generator, on_steps)
            accuracies.append(self._scores(network, index))
        return {"accuracies": accuracies, "seconds": time.perf_counter() - begin}

    def _memories(self, memory: Memory, number: int, herded: Sequence[list[int]]) -> list[SyntheticSet]:
        """Return the memory of each task; empty for "none"."""
        if memory == "none":
            return []
        if memory == "distilled":
            return [task.synthetic for task in self.tasks]
        if memory == "herding":
            return [real_set(task, torch.tensor(indices)) for task, indices in zip(self.tasks, herded, strict=True)]
        seed = derive_seed(self.common.seed, memory, number)
        return [random_set(task, seed) for task in self.tasks]

    def _network(self, number: int) -> nn.Module:
        return self.common.network("continual init", number, num_classes=self.num_classes)

    def _steps(self, protocol: ContinualProtocol, memory: Memory, index: int) -> int:
        """Return the optimizer steps of a task; on the memory alone they are the same for every memory."""
        decoded = [len(task.synthetic) * task.synthetic.decode_factor**2 for task in self.tasks]
        if protocol == "gdumb":
            return self.settings.gdumb.steps(sum(decoded[: index + 1]))
        stored = [0 if memory == "none" else len(task.synthetic) for task in self.tasks]
        real, kept = len(self.tasks[index].real.train), sum((decoded if memory == "distilled" else stored)[:index])
        return self.settings.replay.steps(real + kept * _repeats(real, kept))

    def _train_on_memory(
        self, network: nn.Module, memory: SyntheticSet, steps: int, generator: torch.Generator, on_steps: OnSteps
    ) -> None:
        """Train on the unions of the memory's stages in turn, which share the steps equally."""
        bounds = [steps * stage // memory.num_stages for stage in range(memory.num_stages + 1)]
        shares = [end - start for start, end in pairwise(bounds)]
        counts = memory.stages.bincount()[1:].tolist()
        for phase in protocol_phases("progressive", counts, memory.learning_rates, self.settings.gdumb, shares):
            union = memory.union(phase.stages[1]).to(self.common.device)
            data, augment = (union.images, union.labels), self.common.augment
            train_with_progress(network, *data, phase.training, augment, generator, on_steps, phase.steps)

    def _train_with_replay(
        self,
        network: nn.Module,
        index: int,
        memories: list[SyntheticSet],
        generator: torch.Generator,
        on_steps: OnSteps,
    ) -> None:
        """Train on the task's images and the memory, which is repeated to make half of the images."""
        task = self.tasks[index]
        encoded, labels = task.real_images("train")
        images, labels = encoded[torch.arange(len(encoded))], labels + task.first
        if memories:
            memory = join_memories(memories, self.tasks).to(task.device)
            repeats = _repeats(len(labels), len(memory))
            if memory.labels.ndim == 2:
                labels = F.one_hot(labels, self.num_classes).float()
            images = torch.cat([images, memory.images.repeat(repeats, 1, 1, 1)])
            labels = torch.cat([labels, memory.labels.repeat(repeats, *[1] * (memory.labels.ndim - 1))])
        train_with_progress(network, images, labels, self.settings.replay, task.augment, generator, on_steps)

    @torch.no_grad()
    def _scores(self, network: nn.Module, last: int) -> list[float]:
        """Return the accuracy on each task so far, with predictions among the classes so far."""
        network.eval()
        scores = []
        for task in self.tasks[: last + 1]:
            images, labels = task.real_images(task.part)
            batches = torch.arange(len(images)).split(_BATCH_SIZE)
            predicted = torch.cat([network(images[batch])[:, : self.tasks[last].seen].argmax(1) for batch in batches])
            scores.append(float((predicted == labels + task.first).cpu().double().mean()))
        return scores


def _repeats(real: int, memory: int) -> int:
    """Return how often a memory is repeated to make half of the images."""
    return max(1, round(real / memory)) if memory else 0
