"""Some classes of a real image set, as an image set of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch

from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.splits import ImageSplit
from pdd_lightning.errors import ConfigError
from pdd_lightning.randomness import generator_for


class _Subset(RealDataModule):
    """The images of some classes of a data set; subclasses `choose` which.

    Every image stays in its part: what is learned from the subset may be scored on the held-out images of the whole.
    """

    def __init__(self, real: RealDataModule) -> None:
        super().__init__(real.val_fraction, real.seed, real.normalization, real.mean, real.std, real.batch_size)
        self.real = real

    @abstractmethod
    def choose(self, class_names: Sequence[str]) -> list[int]:
        """Return the labels of the classes to keep, in the order in which they become 0, 1, .."""

    def prepare_data(self) -> None:
        """Let the whole data set download what it needs."""
        self.real.prepare_data()

    def load(self) -> tuple[ImageSplit, ImageSplit, list[str]]:
        """Load the whole data set and pick.

        Raises:
            ConfigError: It lacks such classes.
        """
        self.real.setup()
        names = self.real.class_names
        labels = self.choose(names)
        train = _pick((self.real.train, self.real.val), labels)
        return train, _pick((self.real.test,), labels), [names[label] for label in labels]

    def split_validation(self, train: ImageSplit, class_names: Sequence[str]) -> tuple[ImageSplit, ImageSplit]:
        """Hold out what the whole data set holds out."""
        held = torch.isin(train.indices, self.real.val.indices)
        return train.subset((~held).nonzero().flatten()), train.subset(held.nonzero().flatten())

    def _given_statistics(self) -> tuple[list[float], list[float]] | None:
        return self.real._given_statistics()


class ClassSubset(_Subset):
    """The images of some classes of a data set, which become classes 0, 1, .. in the order given.

    Every image stays in the part (train, validation or test) that it has in the whole set. The pixel space is fitted
    to the subset's own training images, unless mean and deviation are given or published.

    Args:
        real: The whole data set; it has the settings of splits and normalisation.
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
        """Return the labels of the classes that were named.

        Raises:
            ConfigError: There is no such class, or one is named twice.
        """
        labels = [_label(entry, class_names) for entry in self.classes]
        if len(set(labels)) < len(labels):
            raise ConfigError(f"classes names a class twice: {self.classes}")
        return labels


class ClassTask(_Subset):
    """One of several tasks that share the classes of a data set among them, for learning one task after another.

    Every image stays in the part (train, validation or test) that it has in the whole set. The pixel space is fitted
    to the task's own training images, unless mean and deviation are given or published.

    Args:
        real: The whole data set; it has the settings of splits and normalisation.
        tasks: Number of tasks.
        task: Which of them, from 1.
        order_seed: Seed of the order in which classes come.

    Raises:
        ConfigError: There is no such task.
    """

    def __init__(self, real: RealDataModule, tasks: int, task: int, order_seed: int = 0) -> None:
        super().__init__(real)
        if not 1 <= task <= tasks:
            raise ConfigError(f"task must be one of 1 to {tasks}, the number of tasks, got {task}")
        self.tasks = tasks
        self.task = task
        self.order_seed = order_seed
        self.name = f"{real.name}, task {task} of {tasks}"

    def choose(self, class_names: Sequence[str]) -> list[int]:
        """Return the labels of the task's classes.

        Raises:
            ConfigError: There are too few classes for so many tasks.
        """
        return split_classes(len(class_names), self.tasks, self.order_seed)[self.task - 1]


def split_classes(num_classes: int, tasks: int, seed: int) -> list[list[int]]:
    """Share classes out to tasks at random.

    Args:
        num_classes: Number of classes.
        tasks: Number of tasks.
        seed: Seed of the order.

    Returns:
        The labels of each task; sizes differ by one at most.

    Raises:
        ConfigError: A task would have fewer than two classes.
    """
    if num_classes < 2 * tasks:
        raise ConfigError(f"{tasks} tasks of at least two classes need {2 * tasks} classes, there are {num_classes}")
    order = torch.randperm(num_classes, generator=generator_for(seed, "class order"))
    return [part.tolist() for part in order.tensor_split(tasks)]


def _label(entry: str | int, class_names: Sequence[str]) -> int:
    """Return the label of a class given by name or by label."""
    if isinstance(entry, int) and 0 <= entry < len(class_names):
        return entry
    if entry not in class_names:
        raise ConfigError(f"there is no class {entry!r}: the classes are {', '.join(class_names)}")
    return class_names.index(str(entry))


def _pick(parts: Sequence[ImageSplit], labels: Sequence[int]) -> ImageSplit:
    """Return the examples of some classes in the order of the source, with labels 0, 1, .. in the order of `labels`."""
    fields = [torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels", "indices")]
    whole = ImageSplit(*fields)
    member = torch.isin(whole.labels, torch.tensor(labels)).nonzero().flatten()
    picked = whole.subset(member[whole.indices[member].argsort()])
    new = torch.tensor([labels.index(label) for label in picked.labels.tolist()])
    return ImageSplit(picked.images, new, picked.indices)
