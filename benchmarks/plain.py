"""The methods' losses as their papers write them: plain autograd, one class after another, no shortcuts."""

from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pdd_lightning.augment import decode
from pdd_lightning.augment.multiformation import GREY
from pdd_lightning.experts import start_network
from pdd_lightning.networks import unflatten
from pdd_lightning.stages.decoded_images import DecodedImages


def torch_alone() -> AbstractContextManager[object]:
    """Have networks computed by torch's own operations, one after another."""
    return mock.patch("pdd_lightning.kernels.usable", return_value=False)


def gradient(network: nn.Module, images: Tensor, label: Tensor | int, create_graph: bool = False) -> tuple[Tensor, ...]:
    """Return the gradient of the mean cross-entropy on images of one class."""
    labels = torch.full((len(images),), int(label), device=images.device)
    loss = F.cross_entropy(network(images), labels)
    return torch.autograd.grad(loss, tuple(network.parameters()), create_graph=create_graph)


def of_class(stage: Any, label: int) -> Tensor:
    """Return a class's images of all stages, frozen and new `[n, C, H, W]`."""
    frozen = stage.data.union
    return torch.cat([frozen.images[frozen.labels == label], stage.images[stage.labels == label]])


def gradient_loss(stage: Any, batch: Any) -> Tensor:
    """Return the loss of DC and DSA: per output channel 1 - cosine of the gradients (Zhao et al. 2021, equation 10)."""
    network = start_network(stage.build_network, batch.start)
    real_images, total = stage.data.class_sampler(stage.device).images, torch.zeros((), device=stage.device)
    for label, draw in enumerate(batch.draws):
        real = gradient(network, stage.augment(real_images[batch.real.of_class(label)], draw), label)
        synthetic = gradient(network, stage.augment(of_class(stage, label), draw), label, create_graph=True)
        for one, other in zip(real, synthetic, strict=True):
            if one.dim() > 1:
                r, s = one.flatten(1), other.flatten(1)
                total = total + (1 - (r * s).sum(1) / (r.norm(dim=1) * s.norm(dim=1) + 1e-6)).sum()
    return total


def distribution_loss(stage: Any, batch: Any) -> Tensor:
    """Return the loss of DM: squared distance of mean features (Zhao and Bilen 2023, equation 6)."""
    network = start_network(stage.build_network, batch.start).requires_grad_(False)
    features, total = network.get_submodule("features"), torch.zeros((), device=stage.device)
    real_images = stage.data.class_sampler(stage.device).images
    for label, draw in enumerate(batch.draws):
        real = features(stage.augment(real_images[batch.real.of_class(label)], draw)).mean(0)
        synthetic = features(stage.augment(of_class(stage, label), draw)).mean(0)
        total = total + (synthetic - real).square().sum()
    return total


def characteristic_loss(stage: Any, batch: Any) -> Tensor:
    """Return the loss of NCFM: distance of characteristic functions, in complex numbers (Wang et al. 2025)."""
    features = stage._network(batch).get_submodule("features")
    real_images, grey = stage.data.class_sampler(stage.device).images, stage.data.real.pixels.level(GREY)
    sides = []
    for label, draw in enumerate(batch.draws):
        decoded, _ = decode(of_class(stage, label), stage.labels[:0], stage.factor, grey)
        real = real_images[batch.real.of_class(label)]
        sides.append([features(stage.augment(images, draw)) for images in (decoded, real)])
    length = torch.cat([real for _, real in sides]).norm(dim=1).mean()

    def distance(frequencies: Tensor) -> Tensor:
        total = torch.zeros((), device=stage.device)
        for side in sides:
            first, second = ((1j * (one / length @ frequencies.T.to(one))).exp().mean(0) for one in side)
            amplitude = (first.abs() - second.abs()).square()
            phase = 2 * first.abs() * second.abs() * (1 - (first.angle() - second.angle()).cos())
            total = total + (stage.alpha * amplitude + stage.beta * phase + 1e-12).sqrt().mean()  # smooth at 0
        return total / len(sides)

    return distance(stage._frequencies(distance, sides[0][0].shape[1]))


def idc_loss(stage: Any, batch: Any) -> Tensor:
    """Return the loss of IDC: squared differences of the kernels' gradients (Kim et al. 2022, section 5)."""
    network = stage._matching_network(batch.iteration)
    label = batch.iteration % stage.data.real.num_classes
    decoded, _ = decode(of_class(stage, label), stage.labels[:0], stage.factor, stage.data.real.pixels.level(GREY))
    real = gradient(network, stage.match_augment(stage._real[0][batch.real], batch.draw), label)
    chosen = decoded[torch.cat([batch.frozen, batch.new])]
    synthetic = gradient(network, stage.match_augment(chosen, batch.draw), label, create_graph=True)
    pairs = [pair for pair in zip(real, synthetic, strict=True) if pair[0].dim() == 4]
    return torch.stack([(r - s).square().sum() for r, s in pairs]).sum()


def gradient_scale(stage: Any) -> Tensor | float:
    """Return what turns the gradient into that of the method: where images are decoded, it is of pixels in [0, 1]."""
    if not isinstance(stage, DecodedImages):
        return 1.0
    pixels = stage.data.real.pixels
    return (pixels.level(1.0) - pixels.level(0.0)).square().to(stage.images)


def trajectory_loss(stage: Any, batch: Any) -> Tensor:
    """Return the loss of MTT: the student's distance to the expert after its steps (Cazenavette et al. 2022)."""
    student, lr, theta = stage._student[0], stage.log_lr.exp(), batch.start.clone().requires_grad_()
    like = dict(student.named_parameters())
    images = torch.cat([stage.data.union.images, stage.images])
    labels = torch.cat([stage.data.union.labels, stage.labels])
    for chosen, draw in zip(batch.indices, batch.draws, strict=True):
        logits = functional_call(student, unflatten(theta, like), (stage.augment(images[chosen], draw),))
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels[chosen]), theta, create_graph=True)
        theta = theta - lr * gradient
    start, target = batch.start, batch.target
    return (theta - target).square().sum() / (start - target).square().sum()
