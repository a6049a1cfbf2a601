"""Sets that a distilled set is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from pdd_lightning.augment import DSA
from pdd_lightning.data.pixels import PixelSpace
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.splits import to_unit
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import DataError
from pdd_lightning.evaluation.engine import OnSteps, Task
from pdd_lightning.evaluation.subject import Subject, outputs_of, train_counting
from pdd_lightning.networks.spec import network_spec
from pdd_lightning.randomness import derive_seed, generator_for
from pdd_lightning.training import TrainingSettings

Baseline: TypeAlias = Literal["random", "herding", "kmeans"]
BASELINES: tuple[str, ...] = get_args(Baseline)


def random_choice(real: RealDataModule, like: SyntheticSet, seed: int) -> Tensor:
    """Random real training images with the labels of a synthetic set, without repeats.

    Args:
        real: Real images, set up.
        like: The set whose number of images per stage and class is taken over: that of stored images, where each
            of them stands for several. The comparison is then at equal storage: a real image stands for itself.
        seed: Seed of the choice.

    Returns:
        Indices `[N]` in the train part.
    """
    generator = generator_for(seed, "random real images")
    chosen = torch.empty(len(like), dtype=torch.int64)
    for members, indices in _classes(real, like):
        chosen[indices] = members[torch.randperm(len(members), generator=generator)[: len(indices)]]
    return chosen


def herding_choice(real: RealDataModule, like: SyntheticSet, features: Tensor) -> Tensor:
    """Real training images whose mean feature follows the class mean, chosen one by one without repeats.

    Each step takes the image that brings the mean of the chosen features nearest to the mean of the class. Those taken
    first go to the first stage. Features are compared as they are; iCaRL scales them to unit length before.

    Args:
        real: Real images, set up.
        like: See `random_choice`.
        features: Features of the train part `[images, F]`.

    Returns:
        Indices `[N]` in the train part.

    Reference:
        Welling, Herding Dynamical Weights to Learn (ICML 2009), in the form of Rebuffi et al., iCaRL (CVPR 2017),
        algorithm 4; Castro et al., End-to-End Incremental Learning (ECCV 2018).
    """
    chosen = torch.empty(len(like), dtype=torch.int64)
    for members, indices in _classes(real, like):
        chosen[indices] = members[_herd(features[members.to(features.device)], len(indices)).cpu()]
    return chosen


def chosen_set(real: RealDataModule, pixels: PixelSpace, like: SyntheticSet, chosen: Tensor) -> SyntheticSet:
    """Real training images as a set with the stages of a synthetic one.

    Args:
        real: Real images, set up.
        pixels: The model space of the result.
        like: The set whose stages are taken over.
        chosen: Indices `[N]` in the train part.
    """
    return _staged(pixels.encode(to_unit(real.train.images[chosen])), like)


def kmeans_set(real: RealDataModule, pixels: PixelSpace, like: SyntheticSet, seed: int) -> SyntheticSet:
    """Centres of k-means in model space, class by class; the largest clusters go to the first stage.

    Args:
        real: Real images, set up.
        pixels: The model space.
        like: See `random_choice`.
        seed: Seed of the first centres.
    """
    from sklearn.cluster import KMeans

    images = torch.empty(len(like), *real.image_shape)
    for label, (members, indices) in enumerate(_classes(real, like)):
        state = derive_seed(seed, "kmeans", label) % 2**32
        flat = pixels.encode(to_unit(real.train.images[members])).flatten(1).numpy()
        fitted = KMeans(len(indices), random_state=state).fit(flat)
        sizes = torch.bincount(torch.from_numpy(fitted.labels_).long(), minlength=len(indices))
        centres = torch.from_numpy(fitted.cluster_centers_).float().view(-1, *real.image_shape)
        images[indices] = centres[sizes.argsort(descending=True, stable=True)]
    return _staged(images, like)


def check_counts(real: RealDataModule, like: SyntheticSet) -> None:
    """Refuses real images that are too few for a baseline.

    Raises:
        DataError: A class has fewer real images than the synthetic set has.
    """
    labels = hard_labels(like)
    for label in labels.unique().tolist():
        there, needed = len(real.train.images_of_class(label)), int((labels == label).sum())
        if there < needed:
            raise DataError(
                f"class {real.class_names[label]!r} has {there} training images, fewer than the {needed} that the"
                " baselines need: leave them out, or add images"
            )


def herding_task(subject: Subject, training: TrainingSettings, augment: DSA, *purpose: str | int) -> Task:
    """The task of choosing real images by herding, in the features of a network trained on all of them.

    Args:
        subject: The set whose number of images is taken over, and the real images.
        training: Training of the network.
        augment: Its augmentation.
        purpose: What the choice is for, which its random numbers depend on.

    Returns:
        A task whose value is the result of `herding_choice` as a list.
    """

    def compute(on_steps: OnSteps) -> list[int]:
        images, labels = subject.real_images("train")
        network = subject.network("herding init", *purpose)
        generator = generator_for(subject.seed, "herding", *purpose)
        train_counting(network, images, labels, training, augment, generator, on_steps)
        return herding_choice(subject.real, subject.synthetic, outputs_of(network, images).features).tolist()

    about = {"training": training, "augment": vars(augment), "network": network_spec(subject.factory)}
    depends_on = {**subject.identity, "herding": about, "seed": subject.seed}
    if purpose:
        depends_on["purpose"] = purpose
    return Task("network of herding", training.steps(len(subject.real.train)), depends_on, compute)


def hard_labels(synthetic: SyntheticSet) -> Tensor:
    """The class of each image `[N]`: the likeliest one of soft labels."""
    return synthetic.labels if synthetic.labels.ndim == 1 else synthetic.labels.argmax(1)


def _herd(features: Tensor, count: int) -> Tensor:
    """Indices `[count]` of the rows of `features` `[n, F]` that herding takes, in order."""
    mean, total = features.mean(0), torch.zeros_like(features[0])
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    chosen = []
    for number in range(1, count + 1):
        distances = ((total + features) / number - mean).square().sum(1)
        chosen.append(distances.where(free, torch.inf).argmin())
        total = total + features[chosen[-1]]
        free[chosen[-1]] = False
    return torch.stack(chosen)


def _classes(real: RealDataModule, like: SyntheticSet) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each class, the indices of its images in the train part, and in the set, those of stage 1 first."""
    labels = hard_labels(like).cpu()
    for label in labels.unique().tolist():
        indices = (labels == label).nonzero().flatten()
        yield real.train.images_of_class(label), indices[like.stages.cpu()[indices].argsort(stable=True)]


def _staged(images: Tensor, like: SyntheticSet) -> SyntheticSet:
    return SyntheticSet(images, hard_labels(like).cpu(), like.stages.cpu(), (None,) * like.num_stages)
