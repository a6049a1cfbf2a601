"""Sets that a distilled set is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias, get_args

import torch
from pydantic import Field
from torch import Tensor

from pdd_lightning.augment import DSA
from pdd_lightning.data.splits import to_unit
from pdd_lightning.data.synthetic import SyntheticSet, hard_labels
from pdd_lightning.errors import DataError
from pdd_lightning.evaluation.subject import Subject, outputs_of, train_counting
from pdd_lightning.evaluation.tasks import OnSteps, Task
from pdd_lightning.networks.spec import network_spec
from pdd_lightning.randomness import derive_seed, generator_for
from pdd_lightning.training import TrainingSettings

Baseline: TypeAlias = Literal["random", "herding", "kmeans"]
BASELINES: tuple[str, ...] = get_args(Baseline)


def random_set(subject: Subject, seed: int) -> SyntheticSet:
    """Random real images with the labels and stages of the distilled set, without repeats.

    Baselines have as many images as the distilled set stores, also where each of these stands for several. The
    comparison is then at equal storage: a real image stands for itself.

    Args:
        subject: The distilled set, and the real images.
        seed: Seed of the choice.
    """
    generator = generator_for(seed, "random real images")
    chosen = torch.empty(len(subject.synthetic), dtype=torch.int64)
    for members, indices in _classes(subject):
        chosen[indices] = members[torch.randperm(len(members), generator=generator)[: len(indices)]]
    return chosen_set(subject, chosen)


def kmeans_set(subject: Subject) -> SyntheticSet:
    """Centres of k-means in model space, class by class; the largest clusters go to the first stage."""
    from sklearn.cluster import KMeans

    real = subject.real
    images = torch.empty(len(subject.synthetic), *real.image_shape)
    for label, (members, indices) in enumerate(_classes(subject)):
        state = derive_seed(subject.seed, "kmeans", label) % 2**32
        flat = subject.pixels.encode(to_unit(real.train.images[members])).flatten(1).numpy()
        fitted = KMeans(len(indices), random_state=state).fit(flat)
        sizes = torch.bincount(torch.from_numpy(fitted.labels_).long(), minlength=len(indices))
        centres = torch.from_numpy(fitted.cluster_centers_).float().view(-1, *real.image_shape)
        images[indices] = centres[sizes.argsort(descending=True, stable=True)]
    return _staged(images, subject.synthetic)


def chosen_set(subject: Subject, chosen: Tensor) -> SyntheticSet:
    """Real training images, given by their indices `[N]`, as a set with the stages of the distilled one."""
    return _staged(subject.pixels.encode(to_unit(subject.real.train.images[chosen])), subject.synthetic)


def herding_choice(subject: Subject, features: Tensor) -> Tensor:
    """Real training images whose mean feature follows the class mean, chosen one by one without repeats.

    Each step takes the image that brings the mean of the chosen features nearest to the mean of the class. Those taken
    first go to the first stage. Features are compared as they are; iCaRL scales them to unit length before.

    Args:
        subject: The distilled set, and the real images.
        features: Features of the train part `[images, F]`.

    Returns:
        Indices `[N]` in the train part.

    Reference:
        Welling, Herding Dynamical Weights to Learn (ICML 2009), in the form of Rebuffi et al., iCaRL (CVPR 2017),
        algorithm 4; Castro et al., End-to-End Incremental Learning (ECCV 2018).
    """
    chosen = torch.empty(len(subject.synthetic), dtype=torch.int64)
    for members, indices in _classes(subject):
        chosen[indices] = members[_herd(features[members.to(features.device)], len(indices)).cpu()]
    return chosen


def herding_task(subject: Subject, training: TrainingSettings, augment: DSA, *purpose: str | int) -> Task:
    """The task of choosing real images by herding, in the features of a network trained on all of them.

    Args:
        subject: The distilled set, and the real images.
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
        return herding_choice(subject, outputs_of(network, images).features).tolist()

    about = {"training": training, "augment": vars(augment), "network": network_spec(subject.factory)}
    depends_on = {**subject.identity, "herding": about, "seed": subject.seed}
    if purpose:
        depends_on["purpose"] = purpose
    real, number = len(subject.real.train), len(subject.synthetic)
    index: Any = Annotated[int, Field(ge=0, lt=real)]
    form = Annotated[list[index], Field(min_length=number, max_length=number)]
    return Task("network of herding", training.steps(real), depends_on, compute, form=form)


def check_counts(subject: Subject) -> None:
    """Refuses real images that are too few for a baseline.

    Raises:
        DataError: A class has fewer real images than the distilled set has.
    """
    for label, needed in enumerate(hard_labels(subject.synthetic.labels).bincount().tolist()):
        there = len(subject.real.train.images_of_class(label))
        if there < needed:
            raise DataError(
                f"class {subject.real.class_names[label]!r} has {there} training images, fewer than the {needed} that"
                " the baselines need: leave them out, or add images"
            )


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


def _classes(subject: Subject) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each class, the indices of its images in the train part, and in the distilled set, those of stage 1 first."""
    labels, stages = hard_labels(subject.synthetic.labels).cpu(), subject.synthetic.stages.cpu()
    for label in labels.unique().tolist():
        indices = (labels == label).nonzero().flatten()
        yield subject.real.train.images_of_class(label), indices[stages[indices].argsort(stable=True)]


def _staged(images: Tensor, like: SyntheticSet) -> SyntheticSet:
    return SyntheticSet(images, hard_labels(like.labels).cpu(), like.stages.cpu(), (None,) * like.num_stages)
