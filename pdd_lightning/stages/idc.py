"""Gradient matching with several training images in each stored one (IDC), under progression."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pdd_lightning.augment import DSA, DSADraw
from pdd_lightning.data.splits import EncodedImages, ImageSplit
from pdd_lightning.errors import ConfigError, check_at_least
from pdd_lightning.networks.norm import has_batch_norm
from pdd_lightning.networks.parameters import unflatten
from pdd_lightning.objectives import ClassSides, KernelMetric, class_distance, kernel_distance
from pdd_lightning.randomness import seeded
from pdd_lightning.stages.decoded_images import DecodedImages
from pdd_lightning.training import OngoingTraining, TrainingSettings
from pdd_lightning.typing import NetworkFactory


class IDCBatch(NamedTuple):
    """One image step.

    Attributes:
        iteration: Iterations done in the stage, which determine class and network.
        real: Positions of the class's real images in the train part `[<= batch_real]`.
        frozen: Which of the class's decoded union images take part, of earlier stages `[n]`.
        new: The same of this stage `[m]`; n + m <= batch_syn.
        draw: Augmentation shared by both.
    """

    iteration: int
    real: Tensor
    frozen: Tensor
    new: Tensor
    draw: DSADraw


class IDC(DecodedImages):
    """Matches gradients of one class at a time; every stored image is `factor`^2 training images.

    One iteration is one image step for one class, classes in turn: the distance between the gradients, over
    convolution kernels, of cross-entropy on `batch_real` real and on up to `batch_syn` decoded images of the union,
    both under one shared augmentation. After each round over the classes the network is trained on `net_images` real
    images; after `inner` rounds follows a new network: a randomly initialized one in the first stage, one of the
    networks trained through all former unions (theta_{i-1}) later. `stages.iterations` counts image steps: with C
    classes, n published outer iterations are n * inner * C here.

    Two details differ from the published code: the images are clamped after every step, not once per network, and mixed
    images are reduced with antialiasing, not by their nearest pixel.

    All processes hold the same network, determined by the run's seed; each has its own batches.

    Args:
        network: See `DistillationStage`.
        ipc: Stored images per class and stage.
        factor: Pieces per side of a stored image, each of which is enlarged to a training image.
        lr_img: Learning rate of the pixels on the [0, 1] scale; null takes the published 0.005 * ipc / 10.
        momentum: Momentum of the images, which lasts from class to class.
        init: Start from factor^2 reduced real images in each (mix), from real images, or from noise.
        metric: Squared (mse) or absolute (l1) differences of the gradients.
        inner: Rounds over all classes per network.
        batch_real: Real images per step; all of a class that has fewer.
        batch_syn: At most so many decoded images of the class's union per step.
        net_images: Real images of the network's training after each round.
        lr_net: Learning rate of that training, with momentum 0.9 and weight decay 5e-4.
        batch_net: Images per step of that training.
        cutmix: Probability of mixing a batch of that training.
        match_augment: Augmentation of the matched images, applied together.
        net_augment: Augmentation of the training of matching networks, applied together.
        augment: Augmentation at transitions and in evaluation, applied together; without flip for digits. CutMix
            replaces cutout.
        align_corners: Sampling of scale and rotation.

    Raises:
        ConfigError: A setting is out of range.

    Reference:
        Kim et al., Dataset Condensation via Efficient Synthetic-Data Parameterization (ICML 2022), algorithm 1.
        Chen et al., Data Distillation Can Be Like Vodka (ICLR 2024), section 3.
    """

    def __init__(
        self,
        network: NetworkFactory,
        ipc: int = 1,
        factor: int = 2,
        lr_img: float | None = None,
        momentum: float = 0.5,
        init: Literal["mix", "real", "noise"] = "mix",
        metric: KernelMetric = "mse",
        inner: int = 100,
        batch_real: int = 64,
        batch_syn: int = 128,
        net_images: int = 2000,
        lr_net: float = 0.01,
        batch_net: int = 64,
        cutmix: float = 0.5,
        match_augment: str = "color_crop_cutout",
        net_augment: str = "color_crop",
        augment: str = "color_crop_flip_scale_rotate",
        align_corners: bool = False,
    ) -> None:
        rate = 0.005 * ipc / 10 if lr_img is None else lr_img
        super().__init__(network, ipc, factor, rate, momentum, init, augment, align_corners)
        check_at_least(1, inner=inner, batch_real=batch_real, batch_syn=batch_syn, net_images=net_images)
        self.augment = DSA(augment, align_corners, together=True)
        self.match_augment = DSA(match_augment, align_corners, together=True)
        self.net_augment = DSA(net_augment, align_corners, together=True)
        self.metric: KernelMetric = metric
        self.inner = inner
        self.batch_real = batch_real
        self.batch_syn = batch_syn
        self.net_images = net_images
        self.lr_net = lr_net
        self.batch_net = batch_net
        self.cutmix = cutmix
        self.net_training = TrainingSettings(epochs=1, lr=lr_net, batch_size=batch_net, cutmix=cutmix)
        self._encoded: tuple[ImageSplit, EncodedImages, Tensor] | None = None
        self._training: OngoingTraining | None = None
        self._stored_training: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Create the parameters; refuse a network without convolutions."""
        super().setup(stage)
        with seeded(0, "trial"):
            _check_kernels(self.build_network())

    def restart(self, generator: torch.Generator) -> None:
        """Begin a new stage with new images, and no network yet."""
        super().restart(generator)
        self._training = self._stored_training = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the current network and its momentum."""
        # A continued run may be saved again before its first iteration.
        training = self._training
        checkpoint["matching_network"] = self._stored_training if training is None else training.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the current network; see `DistillationStage` for what is refused."""
        super().on_load_checkpoint(checkpoint)
        self._training, self._stored_training = None, checkpoint.get("matching_network")

    def draw_batch(self, iteration: int, generator: torch.Generator) -> IDCBatch:
        """Draw real images of the current class, decoded images of its union, and an augmentation."""
        data, classes = self.data, self.data.real.num_classes
        members = data.kept.images_of_class(iteration % classes)
        real = members[torch.randperm(len(members), generator=generator)[: self.batch_real]]
        frozen = len(data.union.labels) // classes
        count = (frozen + self.ipc) * self.factor**2
        chosen = torch.randperm(count, generator=generator)[: self.batch_syn]
        # The first piece of all images comes before the second of all, the frozen ones first each time.
        of_frozen = chosen % (frozen + self.ipc) < frozen
        height, width = data.real.image_shape[1:]
        draw = self.match_augment.draw(1, (height, width), generator, shared=True)
        return IDCBatch(iteration, real, chosen[of_frozen], chosen[~of_frozen], draw)

    def matching_loss(self, batch: IDCBatch) -> Tensor:
        """Return the distance between the gradients of one class's real and decoded union images."""
        network = self._matching_network(batch.iteration)
        params = {name: parameter.detach() for name, parameter in network.named_parameters()}
        sides = self._sides(batch, one_by_one=not has_batch_norm(network))
        return class_distance(network, params, sides, partial(kernel_distance, metric=self.metric))

    def _sides(self, batch: IDCBatch, one_by_one: bool) -> ClassSides:
        """Return what is compared; images of earlier stages are constants if the network treats images one by one."""
        label = batch.iteration % self.data.real.num_classes
        real = self.match_augment(self._real[0][batch.real], batch.draw)
        synthetic = self.match_augment(self._union_images(label)[torch.cat([batch.frozen, batch.new])], batch.draw)
        # Without any new image as a variable, the loss would not depend on them.
        constants = len(batch.frozen) if one_by_one and len(batch.new) else 0
        weights = self.images.new_full((len(real),), 1 / len(real))
        label_here = torch.full((), label, device=self.device)
        return ClassSides(label_here, real, weights, synthetic[:constants], synthetic[constants:])

    def _union_images(self, label: int) -> Tensor:
        """Return decoded images of one class, frozen and new `[n * factor^2, C, H, W]`."""
        images = self.learned_images()[label * self.ipc : (label + 1) * self.ipc]
        frozen = self.data.union
        order = frozen.labels.argsort(stable=True).view(self.data.real.num_classes, -1)
        return self.decoded(torch.cat([frozen.images[order[label]], images]))

    def _matching_network(self, iteration: int) -> nn.Module:
        """Return the network of an iteration: a new one, or the current one, trained after each round."""
        classes = self.data.real.num_classes
        life, done = divmod(iteration, classes * self.inner)
        if self._training is None or done == 0:
            self._training = self._new_training(life)
            if self._stored_training is not None and done > 0:
                self._training.load_state_dict(self._stored_training)
            self._stored_training = None
        if done > 0 and done % classes == 0:
            generator = self.data.generator("matching network pass", self.state.stage, iteration)
            self._training.train_pass(*self._real, self.net_images, self.net_augment, generator)
        return self._training.network

    def _new_training(self, life: int) -> OngoingTraining:
        """Return a random network in the first stage, later one of the networks trained on the union."""
        data, state = self.data, self.state
        with seeded(data.seed, "matching network", state.stage, life):
            network = self.build_network()
        if state.stage > 1:
            assert state.trajectories is not None
            generator = data.generator("matching network choice", state.stage, life)
            expert = int(torch.randint(state.trajectories.number, (), generator=generator))
            params = unflatten(state.trajectories.segment(expert, 0, 0)[0], dict(network.named_parameters()))
            network.load_state_dict(params, strict=False)  # buffers, if any, begin anew
        return OngoingTraining(network, self.net_training)

    @property
    def _real(self) -> tuple[EncodedImages, Tensor]:
        """Images and labels of the stage's real examples, on this device."""
        kept = self.data.kept
        if self._encoded is None or self._encoded[0] is not kept:
            images = EncodedImages(kept.images, self.data.real.pixels, self.device)
            self._encoded = kept, images, kept.labels.to(self.device)
        return self._encoded[1:]


def _check_kernels(network: nn.Module) -> None:
    """Refuse a network without convolution kernels."""
    if not any(parameter.dim() == 4 for parameter in network.parameters()):
        raise ConfigError(
            f"IDC matches gradients of convolution kernels, and {type(network).__name__} has none: choose a"
            " convolutional model.network"
        )
