"""Training many networks of one architecture at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from pdd_lightning.augment import DSA
from pdd_lightning.errors import ConfigError
from pdd_lightning.randomness import seeded
from pdd_lightning.training.loop import EpochRecord, Images, TrainingSettings, sgd, take_batch, train_network


def train_networks(
    networks: Sequence[nn.Module],
    images: Sequence[Images],
    labels: Sequence[Tensor],
    settings: TrainingSettings,
    augment: DSA,
    generators: Sequence[torch.Generator],
    on_epoch: Callable[[int, list[EpochRecord]], None] | None = None,
) -> list[list[EpochRecord]]:
    """Trains `E` networks in place as `train_network` does one by one, up to rounding, in common steps.

    The networks' weights are stacked, so that one operation works on all of them; orders, augmentation and mixing are
    each network's own. Running statistics of batch norm are kept per network. Worth its while where a step is so
    small that starting its operations takes longer than computing them. A single network is left to `train_network`.

    Args:
        networks: Networks of one architecture, on the images' device; left in training mode.
        images: Of each network its `N` images, see `train_network`; the same object may stand for all.
        labels: Of each network its labels, see `train_network`.
        settings: Epochs, learning rate and so on, for all.
        augment: Augmentation; per-sample parameters drawn from a network's generator.
        generators: Of each network its CPU generator.
        on_epoch: Called after each epoch with the number of epochs done and the networks' records of it. The networks
            themselves get their weights at the end.

    Returns:
        Per network one record per epoch.

    Raises:
        ConfigError: If the networks cannot be trained at once: they have images in different numbers, draw random
            numbers (dropout), or take sharpness-aware steps.
    """
    if len(networks) == 1:
        tell = None if on_epoch is None else lambda done, record: on_epoch(done, [record])
        return [train_network(networks[0], images[0], labels[0], settings, augment, generators[0], tell)]
    _check(images, settings)
    with torch.inference_mode(False), torch.enable_grad():
        stack = _Stack([network.train() for network in networks], settings)
        epochs = []
        for epoch in range(settings.epochs):
            stack.optimizer.param_groups[0]["lr"] = settings.lr_at(epoch)
            epochs.append(_train_epoch(stack, images, labels, settings, augment, generators))
            if on_epoch is not None:
                on_epoch(epoch + 1, epochs[-1])
        stack.give_back()
    return [list(records) for records in zip(*epochs, strict=True)] if epochs else [[] for _ in networks]


def check_at_once(build: Callable[[], nn.Module], image_shape: tuple[int, int, int], device: torch.device) -> None:
    """Refuses networks that cannot be trained at once, before hours are spent on what comes before.

    Args:
        build: Makes a network, on the device.
        image_shape: Channels, height and width of its images.
        device: Where networks are trained.

    Raises:
        ConfigError: See `train_networks`.
    """
    with seeded(0, "trial"):
        networks = [build() for _ in range(2)]
    images = [torch.zeros(2, *image_shape, device=device)] * 2
    labels = [torch.zeros(2, dtype=torch.int64, device=device)] * 2
    train_networks(networks, images, labels, TrainingSettings(epochs=1), DSA("none"), [torch.Generator()] * 2)


def _check(images: Sequence[Images], settings: TrainingSettings) -> None:
    counts = {len(own) for own in images}
    if len(counts) > 1:
        raise ConfigError(f"networks trained at once need equally many images each, got {sorted(counts)}")
    if settings.rho:
        raise ConfigError("sharpness-aware steps (rho) are for networks trained one by one")


class _Stack:
    """The weights of several networks in tensors `[E, ..]`, and their optimiser."""

    def __init__(self, networks: Sequence[nn.Module], settings: TrainingSettings) -> None:
        self.networks = networks
        self.params, self.buffers = stack_module_state(list(networks))
        self.optimizer = sgd(self.params.values(), settings)
        self._forward = torch.vmap(
            lambda params, buffers, batch: functional_call(networks[0], (params, buffers), batch)
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits `[E, N, classes]` of images `[E, N, C, H, W]`."""
        try:
            logits: Tensor = self._forward(self.params, self.buffers, images)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            name = type(self.networks[0]).__name__
            raise ConfigError(
                f"{name} cannot be trained at once with others of its kind, since it draws random numbers (dropout) or"
                f" decides by its data: train its networks one by one ({str(error).splitlines()[0]})"
            ) from error
        return logits

    @torch.no_grad()
    def give_back(self) -> None:
        """Writes the weights and buffers to the networks."""
        for number, network in enumerate(self.networks):
            for own, stacked in ((network.named_parameters(), self.params), (network.named_buffers(), self.buffers)):
                for name, value in own:
                    value.copy_(stacked[name][number])


def _train_epoch(
    stack: _Stack,
    images: Sequence[Images],
    labels: Sequence[Tensor],
    settings: TrainingSettings,
    augment: DSA,
    generators: Sequence[torch.Generator],
) -> list[EpochRecord]:
    """One pass of each network over its images."""
    count, device = len(images[0]), labels[0].device
    losses = torch.zeros(len(images), device=device)
    correct = torch.zeros(len(images), count, dtype=torch.bool, device=device)
    orders = [torch.randperm(count, generator=generator).split(settings.batch_size) for generator in generators]
    for chunks in zip(*orders, strict=True):
        indices = torch.stack(chunks).to(device)
        own = zip(images, labels, indices, generators, strict=True)
        batches = [take_batch(a, b, chosen, augment, generator, settings) for a, b, chosen, generator in own]
        logits = stack(torch.stack([batch.images for batch, _ in batches]))
        each = torch.stack([batch.loss(row, targets) for row, (batch, targets) in zip(logits, batches, strict=True)])
        stack.optimizer.zero_grad(set_to_none=True)
        each.sum().backward()
        stack.optimizer.step()
        classes = torch.stack([targets if targets.ndim == 1 else targets.argmax(1) for _, targets in batches])
        losses += each.detach() * indices.shape[1]
        correct.scatter_(1, indices, logits.detach().argmax(2) == classes)
    rows = zip(losses.tolist(), correct.sum(1).tolist(), correct, strict=True)
    return [EpochRecord(loss / count, hits / count, own) for loss, hits, own in rows]
