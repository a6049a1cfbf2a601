"""One iteration of each method on random images: as the package does it, and class by class in plain autograd."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from benchmarks import plain
from benchmarks.measure import flops
from pdd_lightning.augment import DSA, DSADraw
from pdd_lightning.data.progressive import ProgressiveDataModule, RunState
from pdd_lightning.data.real import ImageSplit, RealDataModule
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.networks import ConvNet, flatten
from pdd_lightning.stages import (
    IDC,
    CharacteristicFunctionMatching,
    DistillationStage,
    DistributionMatching,
    GradientMatching,
    TrajectoryMatching,
)

TOLERANCE = 1e-8
"""Largest relative difference of loss and gradient between the forms, in float64, unless a method has another."""


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        method: MTT, DC, DSA, DM, NCFM or IDC.
        stage: Stage of the progression, from 1: images of the stages before it are frozen.
        classes: Number of classes.
        ipc: Images per class and stage.
        real_batch: Real images per class; IDC takes a quarter, as published.
        frequencies: Frequencies of NCFM; their products with features do not count in the floor.
        syn_steps: Student steps of MTT.
        batch_syn: Images of a step, of all images of the union; None: as many as a stage has.
        size: Height and width in pixels; images have 3 channels.
        depth: Blocks of the ConvNet.
        width: Its channels.
        device: cpu or cuda.
        double: Compute in float64.
    """

    method: str
    stage: int = 1
    classes: int = 10
    ipc: int = 2
    real_batch: int = 256
    frequencies: int = 1024
    syn_steps: int = 50
    batch_syn: int | None = None
    size: int = 32
    depth: int = 3
    width: int = 128
    device: str = "cpu"
    double: bool = False


class Method(NamedTuple):
    """A method's class, its arguments for a case, its plain loss, and how far the two forms may differ in float64."""

    kind: type[DistillationStage]
    arguments: Callable[[Case], dict[str, Any]]
    plain_loss: Callable[..., Tensor]
    tolerance: float = TOLERANCE


METHODS = {
    "MTT": Method(
        TrajectoryMatching,
        lambda case: {"syn_steps": case.syn_steps, "batch_syn": case.batch_syn},
        plain.trajectory_loss,
    ),
    "DC": Method(GradientMatching, lambda case: {**_gradient(case), "augment": "none"}, plain.gradient_loss),
    "DSA": Method(GradientMatching, lambda case: _gradient(case), plain.gradient_loss),
    "DM": Method(DistributionMatching, lambda case: {"real_batch": case.real_batch}, plain.distribution_loss),
    "NCFM": Method(
        CharacteristicFunctionMatching,
        lambda case: {"real_batch": case.real_batch, "frequencies": case.frequencies},
        plain.characteristic_loss,
        tolerance=1e-6,  # the sampling network is float32 in any case
    ),
    "IDC": Method(IDC, lambda case: {"batch_real": idc_real(case)}, plain.idc_loss),
}


def _gradient(case: Case) -> dict[str, Any]:
    return {"real_batch": case.real_batch, "outer": 1}


def idc_real(case: Case) -> int:
    """Return the real images of an IDC step."""
    return max(1, case.real_batch // 4)


class RandomImages(RealDataModule):
    """Noise with labels: speed does not depend on what the images show."""

    def __init__(self, case: Case) -> None:
        super().__init__(val_fraction=0.1)
        self.case = case

    def load(self) -> tuple[ImageSplit, ImageSplit, list[str]]:
        """Make enough images for a batch of every class."""
        case = self.case
        per_class = 2 * max(case.real_batch, 4 * case.ipc, 10)
        labels = torch.arange(case.classes).repeat(per_class)
        images = torch.randint(256, (len(labels), 3, case.size, case.size), dtype=torch.uint8)
        names = [str(label) for label in range(case.classes)]
        test = ImageSplit.in_order(images[: case.classes], labels[: case.classes])
        return ImageSplit.in_order(images, labels), test, names


class DoubleDSA(DSA):
    """Augmentation that takes images to float64: real ones are kept in float32."""

    def __call__(self, images: Tensor, draw: DSADraw) -> Tensor:
        """Return the augmented images in float64."""
        return super().__call__(images.double(), draw)


def in_precision(union: SyntheticSet, case: Case) -> SyntheticSet:
    """Images of the finished stages on the device and in the precision of a case."""
    union = copy(union)  # a set of its own would be checked, and float64 refused
    images = union.images.to(case.device, torch.float64 if case.double else torch.float32)
    for name, value in {"images": images, "labels": union.labels.to(case.device)}.items():
        object.__setattr__(union, name, value)
    return union


class OneExpert:
    """A trajectory, and a pool, of one network."""

    number = 1

    def __init__(self, start: Tensor) -> None:
        self.start, self.target = start, start + 0.01 * torch.randn_like(start)

    def segment(self, expert: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Return start and target, whatever the epochs."""
        return self.start, self.target


class Iteration:
    """One iteration of a case, without a trainer: loss and gradient, in either form."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.case, self.method = case, METHODS[case.method]
        self.data = data = ProgressiveDataModule(RandomImages(case))
        data.setup()
        held = {"data": data, "log": lambda *_, **__: None}
        kind = type(self.method.kind.__name__, (self.method.kind,), held)
        self.stage = kind(self.network, ipc=case.ipc, **self.method.arguments(case)).to(case.device)
        start = flatten(dict(self.network(3, case.classes, case.size).named_parameters())).detach()
        union = in_precision(self._union(), case)
        data.state = RunState(union, case.stage, iterations=100, iteration=1, trajectories=OneExpert(start))
        self.stage.setup("fit")
        self.stage.restart(data.generator("initial images"))
        if case.double:
            self.stage.double()
            for name in {"augment", "match_augment"} & set(vars(self.stage)):
                getattr(self.stage, name).__class__ = DoubleDSA
        self._batches: dict[int, Any] = {}

    def network(self, channels: int, classes: int, size: int) -> nn.Module:
        """Make a network of the case."""
        network = ConvNet(channels, classes, size, self.case.depth, self.case.width)
        return network.double() if self.case.double else network

    def __call__(self, form: str, turn: int = 0) -> tuple[Tensor, Tensor]:
        """Return loss and image gradient of an iteration, `ours` or `plain`; a turn is a batch."""
        if turn not in self._batches:
            batch = self.stage.draw_batch(1, self.data.generator("batch", turn))
            self._batches[turn] = move_data_to_device(batch, self.case.device)
        self.stage.zero_grad()
        torch.manual_seed(turn)  # for what the loss itself draws
        if form == "ours":
            loss = self.stage.matching_loss(self._batches[turn])
            loss.backward()
        else:
            with plain.torch_alone():
                loss = self.method.plain_loss(self.stage, self._batches[turn])
                loss.backward()
        assert self.stage.images.grad is not None
        gradient = self.stage.images.grad
        return loss.detach(), gradient * plain.gradient_scale(self.stage) if form == "plain" else gradient

    @property
    def frozen(self) -> int:
        """Frozen images of one class."""
        return self.case.ipc * (self.case.stage - 1)

    @property
    def images(self) -> int:
        """Images that go through a network in one iteration."""
        case = self.case
        if case.method == "MTT":
            return case.syn_steps * (case.batch_syn or case.classes * case.ipc)
        if case.method == "IDC":
            return idc_real(case) + 4 * (self.frozen + case.ipc)
        if case.method == "NCFM":
            return case.classes * (case.real_batch + 4 * (self.frozen + case.ipc))
        return case.classes * (case.real_batch + self.frozen + case.ipc)

    @property
    def floor_passes(self) -> int:
        """Forward passes of one image that an iteration takes at the least.

        A gradient by the parameters takes 3; differentiating it again 6 more if that goes on through the parameters,
        as in trajectory matching, and 4 more if it ends at the images. Features of constants take 1, others 2.
        """
        case = self.case
        if case.method == "MTT":
            return 9 * self.images
        constant, new, classes = case.real_batch + self.frozen, case.ipc, case.classes
        if case.method == "DM":
            return classes * (constant + 2 * new)
        if case.method == "NCFM":
            return classes * (case.real_batch + 4 * (self.frozen + 2 * new))
        if case.method == "IDC":
            constant, new, classes = idc_real(case) + 4 * self.frozen, 4 * new, 1
        return classes * (3 * constant + 7 * new)

    @cached_property
    def pass_flops(self) -> int:
        """Floating-point operations of a forward pass of one image."""
        network = self.network(3, self.case.classes, self.case.size).float()
        return flops(lambda: network(torch.zeros(1, 3, self.case.size, self.case.size)))

    def _union(self) -> SyntheticSet:
        case = self.case
        union = SyntheticSet.empty((3, case.size, case.size), self.stage.decode_factor)
        labels = torch.arange(case.classes).repeat_interleave(case.ipc)
        rate = 0.01 if case.method == "MTT" else None
        for _ in range(case.stage - 1):
            union = union.append(torch.randn(len(labels), 3, case.size, case.size), labels, rate)
        return union


def check(case: Case) -> None:
    """Make sure that both forms agree, on a small case in float64.

    Raises:
        SystemExit: They do not.
    """
    small = {"size": min(16, case.size), "depth": 2, "width": 16, "syn_steps": 3, "real_batch": 8, "device": "cpu"}
    compared = [Iteration(replace(case, **small, double=True)) for _ in range(2)]  # NCFM's sampling network learns
    (loss, gradient), (expected, expected_gradient) = compared[0]("ours"), compared[1]("plain")
    errors = [abs(loss - expected) / expected, (gradient - expected_gradient).norm() / expected_gradient.norm()]
    if not max(errors) < METHODS[case.method].tolerance:
        raise SystemExit(f"{case.method}, stage {case.stage}: ours differs from the plain loop by {max(errors):.1e}")
