"""Baselines: sets of real images, or means of them, as large as a distilled set."""

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
from pdd_lightning.evaluation.subject import Subject, outputs_of, train_with_progress
from pdd_lightning.evaluation.tasks import OnSteps, Task
from pdd_lightning.networks.spec import network_spec
from pdd_lightning.randomness import derive_seed, generator_for
from pdd_lightning.training import TrainingSettings

Baseline: TypeAlias = Literal["random", "herding", "kmeans"]
BASELINES: tuple[str, ...] = get_args(Baseline)


def random_set(subject: Subject, seed: int) -> SyntheticSet:
    """Choose random real images with the labels and stages of the distilled set, without repetition.

    Baselines have as many images as the distilled set stores, even if each of these is decoded to several: sets are
    compared at equal storage.
    """
    generator = generator_for(seed, "random real images")
    chosen = torch.empty(len(subject.synthetic), dtype=torch.int64)
    for members, indices in _classes(subject):
        chosen[indices] = members[torch.randperm(len(members), generator=generator)[: len(indices)]]
    return real_set(subject, chosen)


def kmeans_set(subject: Subject) -> SyntheticSet:
    """Return the centers of k-means in model space for each class; the largest clusters come first in the stages."""
    from sklearn.cluster import KMeans

    real = subject.real
    images = torch.empty(len(subject.synthetic), *real.image_shape)
    for label, (members, indices) in enumerate(_classes(subject)):
        state = derive_seed(subject.seed, "kmeans", label) % 2**32
        flat = subject.pixels.encode(to_unit(real.train.images[members])).flatten(1).numpy()
        fitted = KMeans(len(indices), random_state=state).fit(flat)
        sizes = torch.bincount(torch.from_numpy(fitted.labels_).long(), minlength=len(indices))
        centers = torch.from_numpy(fitted.cluster_centers_).float().view(-1, *real.image_shape)
        images[indices] = centers[sizes.argsort(descending=True, stable=True)]
    return _staged_set(subject, images)


def real_set(subject: Subject, indices: Tensor) -> SyntheticSet:
    """Return the real training images of indices `[N]` as a set with the labels and stages of the distilled one."""
    return _staged_set(subject, subject.pixels.encode(to_unit(subject.real.train.images[indices])))


def herding_choice(subject: Subject, features: Tensor) -> Tensor:
    """Choose real training images whose mean feature follows the class mean, one by one without repetition.

    Each step takes the image that brings the mean of the chosen features nearest to the mean of the class; images taken
    first belong to the first stage. Unlike in iCaRL, features are not normalized.

    Args:
        subject: The distilled set and the real images.
        features: Features of the train part `[images, F]`.

    Returns:
        Indices `[N]` in the train part.

    Reference:
        Welling, Herding Dynamical Weights to Learn (ICML 2009), in the form of Rebuffi et al., iCaRL (CVPR 2017),
        algorithm 4; Castro et al., End-to-End Incremental Learning (ECCV 2018).
    """
    chosen = torch.empty(len(subject.synthetic), dtype=torch.int64)
    for members, indices in _classes(subject):
        candidates = features[members.to(features.device)]
        mean, total = candidates.mean(0), torch.zeros_like(candidates[0])
        is_free = torch.ones(len(candidates), dtype=torch.bool, device=candidates.device)
        for number, index in enumerate(indices.tolist(), 1):
            distances = ((total + candidates) / number - mean).square().sum(1)
            nearest = distances.where(is_free, torch.inf).argmin()
            chosen[index] = members[nearest.cpu()]
            total = total + candidates[nearest]
            is_free[nearest] = False
    return chosen


def herding_task(subject: Subject, training: TrainingSettings, augment: DSA, *purpose: str | int) -> Task:
    """Return the task of `herding_choice` in the features of a network trained on all real images.

    Random numbers depend on the seed of the subject and the purpose.
    """

    def compute(on_steps: OnSteps) -> list[int]:
        images, labels = subject.real_images("train")
        network = subject.network("herding init", *purpose)
        generator = generator_for(subject.seed, "herding", *purpose)
        train_with_progress(network, images, labels, training, augment, generator, on_steps)
        return herding_choice(subject, outputs_of(network, images).features).tolist()

    herding = {"training": training, "augment": vars(augment), "network": network_spec(subject.factory)}
    depends_on = {**subject.identity, "herding": herding, "seed": subject.seed}
    if purpose:
        depends_on["purpose"] = purpose
    available, count = len(subject.real.train), len(subject.synthetic)
    index: Any = Annotated[int, Field(ge=0, lt=available)]
    value_type = Annotated[list[index], Field(min_length=count, max_length=count)]
    return Task("network of herding", training.steps(available), depends_on, compute, value_type=value_type)


def check_counts(subject: Subject) -> None:
    """Check that there are enough real images for the baselines.

    Raises:
        DataError: A class has fewer real images than distilled ones.
    """
    for label, needed in enumerate(hard_labels(subject.synthetic.labels).bincount().tolist()):
        available = len(subject.real.train.images_of_class(label))
        if available < needed:
            raise DataError(
                f"class {subject.real.class_names[label]!r} has {available} training images, fewer than the {needed}"
                " that the baselines need: leave them out, or add images"
            )


def _classes(subject: Subject) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the indices of each class in the train part, and in the distilled set in the order of stages."""
    labels, stages = hard_labels(subject.synthetic.labels).cpu(), subject.synthetic.stages.cpu()
    for label in labels.unique().tolist():
        indices = (labels == label).nonzero().flatten()
        yield subject.real.train.images_of_class(label), indices[stages[indices].argsort(stable=True)]


def _staged_set(subject: Subject, images: Tensor) -> SyntheticSet:
    synthetic = subject.synthetic
    labels, stages = hard_labels(synthetic.labels).cpu(), synthetic.stages.cpu()
    return SyntheticSet(images, labels, stages, (None,) * synthetic.num_stages)
