"""Sets that a distilled set is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from pdd_lightning.data.pixels import PixelSpace
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.splits import to_unit
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import DataError
from pdd_lightning.networks.features import features_and_logits
from pdd_lightning.randomness import derive_seed, generator_for
from pdd_lightning.training import Images

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
        Positions `[N]` in the train part.
    """
    generator = generator_for(seed, "random real images")
    chosen = torch.empty(len(like), dtype=torch.int64)
    for members, places in _classes(real, like):
        chosen[places] = members[torch.randperm(len(members), generator=generator)[: len(places)]]
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
        Positions `[N]` in the train part.

    Reference:
        Welling, Herding Dynamical Weights to Learn (ICML 2009), in the form of Rebuffi et al., iCaRL (CVPR 2017),
        algorithm 4; Castro et al., End-to-End Incremental Learning (ECCV 2018).
    """
    chosen = torch.empty(len(like), dtype=torch.int64)
    for members, places in _classes(real, like):
        chosen[places] = members[_herd(features[members.to(features.device)], len(places)).cpu()]
    return chosen


def chosen_set(real: RealDataModule, pixels: PixelSpace, like: SyntheticSet, chosen: Tensor) -> SyntheticSet:
    """Real training images as a set with the stages of a synthetic one.

    Args:
        real: Real images, set up.
        pixels: The model space of the result.
        like: The set whose stages are taken over.
        chosen: Positions `[N]` in the train part.
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
    for label, (members, places) in enumerate(_classes(real, like)):
        state = derive_seed(seed, "kmeans", label) % 2**32
        flat = pixels.encode(to_unit(real.train.images[members])).flatten(1).numpy()
        fitted = KMeans(len(places), random_state=state).fit(flat)
        sizes = torch.bincount(torch.from_numpy(fitted.labels_).long(), minlength=len(places))
        centres = torch.from_numpy(fitted.cluster_centers_).float().view(-1, *real.image_shape)
        images[places] = centres[sizes.argsort(descending=True, stable=True)]
    return _staged(images, like)


def check_counts(real: RealDataModule, like: SyntheticSet) -> None:
    """Refuses real images that are too few for a baseline.

    Raises:
        DataError: A class has fewer real images than the synthetic set has.
    """
    labels = _hard(like)
    for label in labels.unique().tolist():
        there, needed = len(real.train.images_of_class(label)), int((labels == label).sum())
        if there < needed:
            raise DataError(
                f"class {real.class_names[label]!r} has {there} training images, fewer than the {needed} that the"
                " baselines need: leave them out, or add images"
            )


def features_before_classifier(network: nn.Module, images: Images, batch_size: int = 512) -> Tensor:
    """What a network's last linear layer is given, for all images `[N, F]`, in evaluation mode.

    Args:
        network: A classifier on the images' device.
        images: `N` images in model space.
        batch_size: Images per forward pass.

    Raises:
        ConfigError: The network has no linear layer.
    """
    network.eval()
    with torch.no_grad():
        parts = torch.arange(len(images)).split(batch_size)
        return torch.cat([features_and_logits(network, images[indices]).features for indices in parts])


def _herd(features: Tensor, count: int) -> Tensor:
    """Positions `[count]` of the rows of `features` `[n, F]` that herding takes, in order."""
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
    """Of each class, its images' positions in the train part, and its places in the set, those of stage 1 first."""
    labels = _hard(like)
    for label in labels.unique().tolist():
        places = (labels == label).nonzero().flatten()
        yield real.train.images_of_class(label), places[like.stages.cpu()[places].argsort(stable=True)]


def _hard(like: SyntheticSet) -> Tensor:
    return (like.labels if like.labels.ndim == 1 else like.labels.argmax(1)).cpu()


def _staged(images: Tensor, like: SyntheticSet) -> SyntheticSet:
    return SyntheticSet(images, _hard(like), like.stages.cpu(), learning_rates=(None,) * like.num_stages)
