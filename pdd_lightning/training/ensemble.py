"""Training several networks of one architecture together."""

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
    """Train `E` networks in place together, with the results of `train_network` up to rounding.

    The weights are stacked, so that one operation processes all networks; batch orders, augmentation, mixing and
    running statistics of batch norm are per network. This is faster if steps are so small that launching operations
    takes longer than computing them.

    Args:
        networks: Networks of one architecture, on the images' device; left in training mode.
        images: `N` images per network, see `train_network`.
        labels: Labels per network, see `train_network`.
        settings: Settings of the training.
        augment: Augmentation; per-sample parameters are drawn from a network's generator.
        generators: A CPU generator per network.
        on_epoch: Called after each epoch with the number of finished epochs and the networks' records of it. The
            networks themselves receive their weights at the end.

    Returns:
        Per network one record per epoch.

    Raises:
        ConfigError: The networks cannot be trained together: they differ in the number of images, draw random numbers
            (dropout), or take sharpness-aware steps.
    """
    if len(networks) == 1:
        callback = None if on_epoch is None else lambda epoch, record: on_epoch(epoch, [record])
        return [train_network(networks[0], images[0], labels[0], settings, augment, generators[0], callback)]
    if len(counts := {len(part) for part in images}) > 1:
        raise ConfigError(f"networks trained together need equally many images each, got {sorted(counts)}")
    if settings.rho:
        raise ConfigError("sharpness-aware steps (rho) are for networks trained one by one")
    with torch.inference_mode(False), torch.enable_grad():
        stack = _Stack([network.train() for network in networks], settings)
        epochs = []
        for epoch in range(settings.epochs):
            stack.optimizer.param_groups[0]["lr"] = settings.lr_at(epoch)
            epochs.append(_train_epoch(stack, images, labels, settings, augment, generators))
            if on_epoch is not None:
                on_epoch(epoch + 1, epochs[-1])
        stack.unstack()
    return [list(records) for records in zip(*epochs, strict=True)] if epochs else [[] for _ in networks]


def check_at_once(build: Callable[[], nn.Module], image_shape: tuple[int, int, int], device: torch.device) -> None:
    """Refuse networks for images `(C, H, W)` that cannot be trained together, before a long run.

    Raises:
        ConfigError: See `train_networks`.
    """
    with seeded(0, "trial"):
        networks = [build() for _ in range(2)]
    images = [torch.zeros(2, *image_shape, device=device)] * 2
    labels = [torch.zeros(2, dtype=torch.int64, device=device)] * 2
    train_networks(networks, images, labels, TrainingSettings(epochs=1), DSA("none"), [torch.Generator()] * 2)


class _Stack:
    """Stacked weights `[E, ..]` of several networks, and their optimizer."""

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
                f"{name} cannot be trained at once with other networks, since it draws random numbers (dropout) or has"
                f" data-dependent control flow: train networks one by one ({str(error).splitlines()[0]})"
            ) from error
        return logits

    @torch.no_grad()
    def unstack(self) -> None:
        """Copy the weights and buffers to the networks."""
        for number, network in enumerate(self.networks):
            stacked = {**self.params, **self.buffers}
            for name, value in (*network.named_parameters(), *network.named_buffers()):
                value.copy_(stacked[name][number])


def _train_epoch(
    stack: _Stack,
    images: Sequence[Images],
    labels: Sequence[Tensor],
    settings: TrainingSettings,
    augment: DSA,
    generators: Sequence[torch.Generator],
) -> list[EpochRecord]:
    """Train each network for one epoch."""
    count, device = len(images[0]), labels[0].device
    losses = torch.zeros(len(images), device=device)
    correct = torch.zeros(len(images), count, dtype=torch.bool, device=device)
    orders = [torch.randperm(count, generator=generator).split(settings.batch_size) for generator in generators]
    for chunks in zip(*orders, strict=True):
        indices = torch.stack(chunks).to(device)
        sources = zip(images, labels, indices, generators, strict=True)
        batches = [take_batch(x, y, rows, augment, generator, settings) for x, y, rows, generator in sources]
        logits = stack(torch.stack([batch.images for batch, _ in batches]))
        loss = torch.stack([batch.loss(row, targets) for row, (batch, targets) in zip(logits, batches, strict=True)])
        stack.optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        stack.optimizer.step()
        classes = torch.stack([targets if targets.ndim == 1 else targets.argmax(1) for _, targets in batches])
        losses += loss.detach() * indices.shape[1]
        correct.scatter_(1, indices, logits.detach().argmax(2) == classes)
    rows = zip(losses.tolist(), correct.sum(1).tolist(), correct, strict=True)
    return [EpochRecord(loss / count, hits / count, row) for loss, hits, row in rows]
