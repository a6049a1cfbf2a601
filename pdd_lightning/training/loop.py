"""The training loop of experts, transitions and evaluation networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pdd_lightning.augment import DSA
from pdd_lightning.errors import ConfigError, check_at_least, check_momentum, check_positive
from pdd_lightning.randomness import seeded
from pdd_lightning.training.cutmix import Mixed, mix
from pdd_lightning.training.sharpness import sharpen_gradients


class Images(Protocol):
    """Images in model space that are indexed by batch: a tensor or `EncodedImages`."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class TrainingSettings:
    """Stochastic gradient descent on mini-batches.

    Attributes:
        epochs: Passes over the images.
        lr: Learning rate.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty of SGD.
        batch_size: Images per step; a smaller set is one batch.
        milestones: Fractions of the epochs, in (0, 1), after which the learning rate decays.
        gamma: Factor of each decay.
        rho: Radius of sharpness-aware steps, see `sharpen_gradients`; 0 takes plain steps, at half the cost.
        alpha: Weight of the surrogate gap in sharpness-aware steps.
        cutmix: Probability of mixing a batch by CutMix, see `mix`.
    """

    epochs: int
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256
    milestones: tuple[float, ...] = (0.5,)
    gamma: float = 0.1
    rho: float = 0.0
    alpha: float = 0.0
    cutmix: float = 0.0

    @classmethod
    def of(cls, settings: object, **changes: Any) -> TrainingSettings:
        """Return the fields of this class taken from another object, with changes."""
        names = {field.name for field in fields(cls)}
        return cls(**{**{name: value for name, value in vars(settings).items() if name in names}, **changes})

    def __post_init__(self) -> None:
        check_at_least(0, epochs=self.epochs, weight_decay=self.weight_decay, rho=self.rho, alpha=self.alpha)
        check_at_least(1, batch_size=self.batch_size)
        check_positive(lr=self.lr, gamma=self.gamma)
        check_momentum(momentum=self.momentum)
        if self.alpha and not self.rho:
            raise ConfigError(f"alpha {self.alpha} requires sharpness-aware steps: set rho > 0, or alpha to 0")
        if self.rho and self.cutmix:
            raise ConfigError("sharpness-aware steps (rho) and cutmix exclude each other: set one of them to 0")
        if not all(0 < fraction < 1 for fraction in self.milestones):
            raise ConfigError(
                f"milestones are fractions of the epochs between 0 and 1, both excluded, got {list(self.milestones)}"
            )
        if not 0 <= self.cutmix <= 1:
            raise ConfigError(f"cutmix is a probability and must be in [0, 1], got {self.cutmix}")

    def lr_at(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        drops = sum(epoch >= fraction * self.epochs for fraction in self.milestones)
        return self.lr * self.gamma**drops

    def steps(self, count: int) -> int:
        """Return the number of optimizer steps on a set of `count` images."""
        return self.epochs * -(-count // self.batch_size)


class EpochRecord(NamedTuple):
    """Metrics of one epoch on its (augmented) training batches.

    Attributes:
        loss: Mean loss over the images of the epoch.
        accuracy: Share of them that were classified correctly, in [0, 1].
        correct: Whether each image was `[N]`, bool, on the images' device; false for those not in the epoch.
    """

    loss: float
    accuracy: float
    correct: Tensor


def train_network(
    network: nn.Module,
    images: Images,
    labels: Tensor,
    settings: TrainingSettings,
    augment: DSA,
    generator: torch.Generator,
    on_epoch: Callable[[int, EpochRecord], None] | None = None,
    max_steps: int | None = None,
    images_per_epoch: int | None = None,
) -> list[EpochRecord]:
    """Train `network` in place by SGD with cross-entropy on augmented (and mixed) mini-batches.

    Gradients are enabled even inside Lightning's evaluation hooks.

    Args:
        network: Network on the images' device; left in training mode.
        images: `N` images in model space, see `Images`.
        labels: Classes `[N]`, or class probabilities `[N, classes]`, on the images' device.
        settings: Settings of the training.
        augment: Augmentation; per-sample parameters drawn from `generator`.
        generator: CPU generator of batch order, augmentation, mixing and dropout.
        on_epoch: Called after each epoch with the number of finished epochs and that epoch's record.
        max_steps: Maximum number of optimizer steps; training may end within an epoch.
        images_per_epoch: Number of images drawn for each epoch, in several passes if it is above `N`; by default, all.

    Returns:
        One record per started epoch.
    """
    records = []
    count = images_per_epoch or len(images)
    steps_left = settings.steps(count) if max_steps is None else max_steps
    with torch.inference_mode(False), torch.enable_grad(), seeded_dropout(generator):
        network.train()
        optimizer = sgd(network.parameters(), settings)
        for epoch in range(settings.epochs):
            optimizer.param_groups[0]["lr"] = settings.lr_at(epoch)
            passes = [torch.randperm(len(images), generator=generator) for _ in range(-(-count // len(images)))]
            order = torch.cat(passes)[:count].split(settings.batch_size)[:steps_left]
            if not order:
                break
            steps_left -= len(order)
            records.append(train_epoch(network, optimizer, images, labels, order, augment, generator, settings))
            if on_epoch is not None:
                on_epoch(epoch + 1, records[-1])
    return records


def sgd(parameters: Iterable[Tensor], settings: TrainingSettings) -> torch.optim.SGD:
    """Return the optimizer of a training, at its initial learning rate."""
    return torch.optim.SGD(
        list(parameters), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def seeded_dropout(generator: torch.Generator) -> AbstractContextManager[None]:
    """Seed the global random numbers, which dropout draws, from `generator` without changing it."""
    copy = torch.Generator()
    copy.set_state(generator.get_state())
    return seeded(int(torch.randint(2**62, (), generator=copy)), "dropout")


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Images,
    labels: Tensor,
    order: Sequence[Tensor],
    augment: DSA,
    generator: torch.Generator,
    settings: TrainingSettings,
) -> EpochRecord:
    """Train a network in training mode on the mini-batches with the indices `order`; see `train_network`."""
    total_loss = torch.zeros((), device=labels.device)
    correct = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    hits = torch.zeros((), dtype=torch.int64, device=labels.device)
    for chunk in order:
        indices = chunk.to(labels.device)
        mixed, targets = take_batch(images, labels, indices, augment, generator, settings)
        logits = network(mixed.images)
        loss = mixed.loss(logits, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if settings.rho:
            sharpen_gradients(network, mixed.images, targets, settings.rho, settings.alpha)
        optimizer.step()
        classes = targets if targets.ndim == 1 else targets.argmax(1)
        total_loss += loss.detach() * len(chunk)
        correct[indices] = logits.detach().argmax(1) == classes
        hits += correct[indices].sum()
    seen = sum(map(len, order))
    return EpochRecord(float(total_loss) / seen, float(hits) / seen, correct)


def take_batch(
    images: Images,
    labels: Tensor,
    indices: Tensor,
    augment: DSA,
    generator: torch.Generator,
    settings: TrainingSettings,
) -> tuple[Mixed, Tensor]:
    """Return the augmented and mixed images at `indices` `[B]`, and their labels; see `train_network`."""
    batch = images[indices]
    draw = augment.draw(len(indices), (batch.shape[-2], batch.shape[-1]), generator)
    return mix(augment(batch, draw), settings.cutmix, generator), labels[indices]
