"""Image sets made of some classes of another one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch

from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.splits import ImageSplit
from pdd_lightning.errors import ConfigError
from pdd_lightning.randomness import generator_for


class _Subset(RealDataModule):
    """Images of some classes of a data set; subclasses `choose` the classes.

    Every image stays in the part (train, validation or test) that it has in the full set. The pixel space is fitted
    to the subset's own training images, unless mean and deviation are given or published.
    """

    def __init__(self, real: RealDataModule) -> None:
        super().__init__(real.val_fraction, real.seed, real.normalization, real.mean, real.std, real.batch_size)
        self.real = real

    @abstractmethod
    def choose(self, class_names: Sequence[str]) -> list[int]:
        """Return the labels of the classes to keep, which become 0, 1, .. in this order.

        Raises:
            ConfigError: The data set lacks such classes.
        """

    def prepare_data(self) -> None:
        """Download the full data set if necessary."""
        self.real.prepare_data()

    def load(self) -> tuple[ImageSplit, ImageSplit, list[str]]:
        """Load the full data set and select the classes."""
        self.real.setup()
        names = self.real.class_names
        labels = self.choose(names)
        train = _select((self.real.train, self.real.val), labels)
        return train, _select((self.real.test,), labels), [names[label] for label in labels]

    def split_validation(self, train: ImageSplit, class_names: Sequence[str]) -> tuple[ImageSplit, ImageSplit]:
        """Hold out the images that the full data set holds out."""
        held = torch.isin(train.indices, self.real.val.indices)
        return train.subset((~held).nonzero().flatten()), train.subset(held.nonzero().flatten())

    def _given_statistics(self) -> tuple[list[float], list[float]] | None:
        return self.real._given_statistics()


class ClassSubset(_Subset):
    """Images of some classes of a data set, which become classes 0, 1, .. in the given order.

    Args:
        real: The full data set, with the settings of splits and normalization.
        classes: Names (text) or labels (numbers) of at least two classes.

    Raises:
        ConfigError: Too few classes.
    """

    def __init__(self, real: RealDataModule, classes: list[str | int]) -> None:
        super().__init__(real)
        if len(classes) < 2:
            raise ConfigError(f"classes must name at least two, got {classes}")
        self.classes = classes
        self.name = f"{real.name}, classes {', '.join(map(str, classes))}"

    def choose(self, class_names: Sequence[str]) -> list[int]:
        """Return the labels of the named classes."""
        labels = [_find_label(entry, class_names) for entry in self.classes]
        if len(set(labels)) < len(labels):
            raise ConfigError(f"classes names a class twice: {self.classes}")
        return labels


class ClassTask(_Subset):
    """One of several tasks into which the classes of a data set are divided, for continual learning.

    Args:
        real: The full data set, with the settings of splits and normalization.
        tasks: Number of tasks.
        task: Number of this task, from 1.
        order_seed: Seed of the random order of the classes.

    Raises:
        ConfigError: There is no such task.
    """

    def __init__(self, real: RealDataModule, tasks: int, task: int, order_seed: int = 0) -> None:
        super().__init__(real)
        if not 1 <= task <= tasks:
            raise ConfigError(f"task must be from 1 to {tasks}, the number of tasks, got {task}")
        self.tasks = tasks
        self.task = task
        self.order_seed = order_seed
        self.name = f"{real.name}, task {task} of {tasks}"

    def choose(self, class_names: Sequence[str]) -> list[int]:
        """Return the labels of the task's classes."""
        return split_classes(len(class_names), self.tasks, self.order_seed)[self.task - 1]


def split_classes(num_classes: int, tasks: int, seed: int) -> list[list[int]]:
    """Divide classes into tasks at random, and return the labels of each task; sizes differ by at most one.

    Raises:
        ConfigError: A task would have fewer than two classes.
    """
    if num_classes < 2 * tasks:
        raise ConfigError(f"{tasks} tasks of at least two classes need {2 * tasks} classes, there are {num_classes}")
    order = torch.randperm(num_classes, generator=generator_for(seed, "class order"))
    return [part.tolist() for part in order.tensor_split(tasks)]


def _find_label(entry: str | int, class_names: Sequence[str]) -> int:
    """Return the label of a class that is given by name or label."""
    if isinstance(entry, int) and 0 <= entry < len(class_names):
        return entry
    if entry not in class_names:
        raise ConfigError(f"there is no class {entry!r}: the classes are {', '.join(class_names)}")
    return class_names.index(str(entry))


def _select(parts: Sequence[ImageSplit], labels: Sequence[int]) -> ImageSplit:
    """Return the examples of some classes in source order, with labels 0, 1, .. in the order of `labels`."""
    fields = [torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels", "indices")]
    full = ImageSplit(*fields)
    members = torch.isin(full.labels, torch.tensor(labels)).nonzero().flatten()
    selected = full.subset(members[full.indices[members].argsort()])
    new_labels = torch.tensor([labels.index(label) for label in selected.labels.tolist()])
    return replace(selected, labels=new_labels)
