"""Characteristic function matching under progression (NCFM, and PDD on it)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pdd_lightning import distributed
from pdd_lightning.augment import DSA, DSADraw
from pdd_lightning.data import ClassBatches, by_class
from pdd_lightning.errors import check_at_least, check_positive
from pdd_lightning.networks.features import features_and_logits
from pdd_lightning.networks.parameters import load_flat
from pdd_lightning.objectives import characteristic_distance
from pdd_lightning.randomness import seeded
from pdd_lightning.stages.decoded_images import DecodedImages
from pdd_lightning.typing import NetworkFactory

LOG_SCALE = 2.0
"""Frequencies are scaled by at most exp of this, up or down."""


class CharacteristicBatch(NamedTuple):
    """One iteration.

    Attributes:
        params: Parameters of the network whose features are compared, flat `[P]`.
        real: Real images of each class.
        draws: Per class, the augmentation of its real and its synthetic images.
    """

    params: Tensor
    real: ClassBatches
    draws: list[DSADraw]


class CharacteristicFunctionMatching(DecodedImages):
    """Learns images whose features have the characteristic function of real images' features, class by class.

    The distance of two characteristic functions is taken at random frequencies, see
    `pdd_lightning.objectives.characteristic_distance`. A small network learns which frequencies tell the two sides
    apart: in each iteration it takes a step that increases the distance, then the images take one that decreases it.

    Features come from a network between an expert's start and its end: (1 - a) theta_start + a theta_end with a drawn
    uniformly. In stage 1 the start is a random initialization, later theta_{i-1}, the network trained on the unions of
    earlier stages; the end is `epochs` epochs on real images later. The synthetic side is the union. Each stage begins
    with a new sampling network.

    The paper leaves open the scale of features and the sampling network's architecture. Here features are scaled such
    that those of the real images have length 1 on average, and a frequency is normal noise, each of whose entries is
    multiplied by exp(u), where two layers make u in [-`LOG_SCALE`, `LOG_SCALE`] from further noise. Batch norms, if
    any, take their statistics from a joint batch of real images. Dropout is off. Every process has its own batches and
    its own sampling network.

    Args:
        network: See `DistillationStage`; must end with a linear layer, whose input are the features.
        ipc: Stored images per class and stage.
        factor: Pieces per side of a stored image, each of which is enlarged to a training image.
        frequencies: Number of frequencies.
        alpha: Weight of the difference in amplitude.
        beta: Weight of the difference in phase.
        epochs: Epochs on real images from a network's start to its end.
        real_batch: Real images per class; all of a class that has fewer.
        lr_img: Learning rate of the pixels on the [0, 1] scale.
        momentum: Momentum of the images' SGD.
        lr_sampler: Learning rate of the sampling network, by Adam.
        width: Hidden units of the sampling network.
        init: Start from factor^2 reduced real images in each (mix), from real images, or from noise.
        augment: Augmentation, one draw per class for both sides.
        align_corners: Sampling of scale and rotation.

    Raises:
        ConfigError: A setting is out of range.

    Reference:
        Wang et al., Dataset Distillation with Neural Characteristic Function: A Minmax Perspective (CVPR 2025).
        Chen et al., Data Distillation Can Be Like Vodka (ICLR 2024), section 3.
    """

    def __init__(
        self,
        network: NetworkFactory,
        ipc: int = 1,
        factor: int = 2,
        frequencies: int = 1024,
        alpha: float = 0.5,
        beta: float = 0.5,
        epochs: int = 20,
        real_batch: int = 256,
        lr_img: float = 10.0,
        momentum: float = 0.5,
        lr_sampler: float = 1e-3,
        width: int = 64,
        init: Literal["mix", "real", "noise"] = "mix",
        augment: str = "color_crop_cutout_flip_scale_rotate",
        align_corners: bool = False,
    ) -> None:
        super().__init__(network, ipc, factor, lr_img, momentum, init, augment, align_corners)
        check_at_least(1, frequencies=frequencies, epochs=epochs, real_batch=real_batch, width=width)
        check_at_least(0, alpha=alpha, beta=beta)
        check_positive(alpha_and_beta=alpha + beta, lr_sampler=lr_sampler)
        self.augment = DSA(augment, align_corners, together=True)
        self.frequencies = frequencies
        self.alpha = alpha
        self.beta = beta
        self.epochs = epochs
        self.real_batch = real_batch
        self.lr_sampler = lr_sampler
        self.width = width
        self._sampler: FrequencySampler | None = None
        self._stored: dict[str, Any] | None = None

    @property
    def trajectory_epochs(self) -> int:
        """Epochs on real images to record of each network."""
        return self.epochs

    def restart(self, generator: torch.Generator) -> None:
        """Begin a new stage with new images and a new sampling network."""
        super().restart(generator)
        self._sampler = self._stored = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add every process's sampling network and its optimizer."""
        state = self._stored if self._sampler is None else self._sampler.state_dict()
        checkpoint["frequency_samplers"] = distributed.gather(state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore this process's sampling network; see `DistillationStage` for what is refused."""
        super().on_load_checkpoint(checkpoint)
        stored = checkpoint.get("frequency_samplers", [None])
        self._sampler, self._stored = None, stored[distributed.rank() % len(stored)]

    def draw_batch(self, iteration: int, generator: torch.Generator) -> CharacteristicBatch:
        """Draw a network between its start and its end, real images of each class, and augmentations."""
        trajectories = self.state.trajectories
        assert trajectories is not None
        expert = int(torch.randint(trajectories.number, (), generator=generator))
        start, end = trajectories.segment(expert, 0, self.epochs)
        params = start.lerp(end, float(torch.rand((), generator=generator)))
        return CharacteristicBatch(params, *self.draw_real(self.real_batch, generator))

    def matching_loss(self, batch: CharacteristicBatch) -> Tensor:
        """Return the mean over classes of the distance, after a step of the sampling network."""
        network, union = self._network(batch), self.data.union
        with torch.no_grad():
            real = self._real_features(network, batch)
            scale = 1 / torch.cat(real).norm(dim=1).mean().clamp(min=1e-6)
            frozen = [self._features_by_class(network, union.images, union.labels, batch.draws)] if len(union) else []
        learned = self._features_by_class(network, self.learned_images(), self.labels, batch.draws)
        synthetic = torch.cat([*frozen, learned], 1) * scale
        sides = [(features, target * scale) for features, target in zip(synthetic, real, strict=True)]

        def distance(frequencies: Tensor, sides: list[tuple[Tensor, Tensor]]) -> Tensor:
            values = [characteristic_distance(*side, frequencies, self.alpha, self.beta) for side in sides]
            return torch.stack(values).mean()

        constant = [(synthetic.detach(), target) for synthetic, target in sides]
        return distance(self._frequencies(lambda at: distance(at, constant), real[0].shape[1]), sides)

    def _frequencies(self, distance: Callable[[Tensor], Tensor], features: int) -> Tensor:
        """Return frequencies `[frequencies, features]` after a step that increases the distance."""
        if self._sampler is None:
            with seeded(self.data.seed, "sampling network", self.state.stage):
                self._sampler = FrequencySampler(features, self.width, self.lr_sampler, self.device)
            if self._stored is not None:
                self._sampler.load_state_dict(self._stored)
                self._stored = None
        return self._sampler.climb(distance, self.frequencies)

    def _real_features(self, network: nn.Module, batch: CharacteristicBatch) -> tuple[Tensor, ...]:
        """Return features `[n, F]` of each class's real images."""
        images = self.data.class_sampler(self.device).images
        parts = [self.augment(images[batch.real.of_class(c)], draw) for c, draw in enumerate(batch.draws)]
        return torch.split(_features(network, torch.cat(parts)), batch.real.counts)

    def _features_by_class(self, network: nn.Module, images: Tensor, labels: Tensor, draws: list[DSADraw]) -> Tensor:
        """Return features `[classes, n * factor^2, F]` of stored images `[classes * n, C, H, W]`."""
        parts = by_class(images, labels, len(draws))
        decoded = [self.augment(self.decoded(part), draw) for part, draw in zip(parts, draws, strict=True)]
        features = _features(network, torch.cat(decoded))
        return features.view(len(draws), -1, features.shape[1])

    def _network(self, batch: CharacteristicBatch) -> nn.Module:
        """Return the network of an iteration, in evaluation mode."""
        with seeded(0, "matching network"):
            network = self.build_network().requires_grad_(False)
        load_flat(network, batch.params)
        self.prepare_statistics(network, batch.real)
        return network


class FrequencySampler:
    """Draws frequencies: normal noise times exp(u), where two layers of `width` units learn u from further noise."""

    def __init__(self, features: int, width: int, lr: float, device: torch.device) -> None:
        last = nn.Linear(width, features)
        self.network = nn.Sequential(nn.Linear(width, width), nn.ReLU(), last, nn.Tanh())
        nn.init.zeros_(last.weight)  # so that the first frequencies are plain normal noise
        nn.init.zeros_(last.bias)
        self.network.to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr)
        self.features, self.width, self.device = features, width, device

    def climb(self, distance: Callable[[Tensor], Tensor], number: int) -> Tensor:
        """Take a step that increases a distance, and return frequencies `[number, features]` from the same noise."""
        noise = torch.randn(number, self.features, device=self.device)
        latent = torch.randn(number, self.width, device=self.device)
        parameters = tuple(self.network.parameters())
        gradients = torch.autograd.grad(-distance(self._frequencies(noise, latent)), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            return self._frequencies(noise, latent)

    def _frequencies(self, noise: Tensor, latent: Tensor) -> Tensor:
        frequencies: Tensor = noise * (LOG_SCALE * self.network(latent)).exp()
        return frequencies

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, on the CPU, and the state of the optimizer."""
        weights = {name: value.detach().cpu() for name, value in self.network.state_dict().items()}
        return {"network": weights, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


def _features(network: nn.Module, images: Tensor) -> Tensor:
    """Return features `[N, F]`, float32."""
    return features_and_logits(network, images).features.float()
