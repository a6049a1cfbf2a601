"""How the stages of a distilled set differ from each other and from real images, in numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pdd_lightning.augment import DSA
from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.splits import EncodedImages, to_unit
from pdd_lightning.errors import ConfigError
from pdd_lightning.metrics.images import (
    centroid_silhouette,
    colourfulness,
    label_confidence,
    nearest_distance,
    spectral_bands,
    total_variation,
)
from pdd_lightning.networks.features import Outputs, features_and_logits
from pdd_lightning.progress import progress_bar
from pdd_lightning.randomness import generator_for, seeded
from pdd_lightning.results.images import ranks
from pdd_lightning.results.tables import NUMBERS
from pdd_lightning.training import TrainingSettings, train_network
from pdd_lightning.typing import NetworkFactory

REAL = "real, held out"
"""The row of real images."""
EXAMPLES = 10
"""Images of a row that stand for all of them."""
_BATCH = 512


class Group(NamedTuple):
    """Images that make a row.

    Attributes:
        row: Its name.
        stage: The stage that they belong to; None for real images.
        images: `[N, C, H, W]` in the distilled set's model space.
        pixels: The same as pixels in [0, 1].
        labels: Classes `[N]`.
    """

    row: str
    stage: int | None
    images: Tensor
    pixels: Tensor
    labels: Tensor


def groups_of(distilled: DistilledDataset, real: RealDataModule) -> list[Group]:
    """The images of each stage, and the real validation images.

    Args:
        distilled: The distilled set; decoded, where each image stands for several.
        real: Real images of the same classes, set up.
    """
    labels = distilled.labels if distilled.labels.ndim == 1 else distilled.labels.argmax(1)
    pixels = distilled.to_pixels()
    groups = []
    for stage in range(1, distilled.num_stages + 1):
        member = distilled.stages == stage
        groups.append(Group(f"stage {stage}", stage, distilled.images[member], pixels[member], labels[member]))
    held_out = to_unit(real.val.images)
    return [*groups, Group(REAL, None, distilled.pixels.encode(held_out), held_out, real.val.labels)]


def example_images(distilled: DistilledDataset, real: RealDataModule) -> dict[str, Tensor]:
    """Pixels of a few images of each row, one of each class in turn, by the row's name; arguments as `groups_of`."""
    examples = {}
    for group in groups_of(distilled, real):
        labels = group.labels.tolist()
        turns = sorted(zip(ranks(labels), labels, range(len(labels)), strict=True))
        examples[group.row] = group.pixels[[place for _, _, place in turns[:EXAMPLES]]]
    return examples


@torch.inference_mode(False)
def describe_stages(
    distilled: DistilledDataset,
    real: RealDataModule,
    factory: NetworkFactory,
    training: TrainingSettings,
    augment: DSA,
    num_networks: int = 3,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """One row of numbers per stage, and one for real images that no network was trained on (the validation part).

    Each of `NUMBERS` is a mean over the images of the row, with the standard deviation over images as `<name>_std`:

    - of the pixels, clipped to [0, 1]: `colourfulness`, the shares `low`, `middle` and `high` of the spectrum's power
      in three bands, and `variation`, the total variation, see `pdd_lightning.metrics.images`;
    - in networks trained on the real training part, for each image the mean over these networks: `accuracy`, whether
      it is classified as labelled, `confidence`, the probability of its label, and `silhouette`, how much nearer its
      features are to the mean features of the real images of its own class than to those of any other, see
      `pdd_lightning.metrics.images`;
    - `nearest_real`, the distance to the nearest real training image of the class, in model space.

    Args:
        distilled: The distilled set; decoded, where each image stands for several.
        real: Real images of the same classes, set up.
        factory: Makes the networks.
        training: Their training on the real images.
        augment: Augmentation of that training.
        num_networks: Networks to average over.
        seed: Seed of their initialisation and training.
        device: Where to train.

    Raises:
        ConfigError: `num_networks` is not positive.
    """
    if num_networks < 1:
        raise ConfigError(f"num_networks must be >= 1, got {num_networks}")
    groups = [_on(group, device) for group in groups_of(distilled, real)]
    train = EncodedImages(real.train.images, distilled.pixels, device), real.train.labels.to(device)
    networks = _trained_networks(real, train, factory, training, augment, num_networks, seed)
    judged = [_judged(network, train, groups) for network in networks]
    return [
        _row(group, _pixel_numbers(group) | _mean(numbers) | {"nearest_real": _nearest_real(group, train)})
        for group, *numbers in zip(groups, *judged, strict=True)
    ]


Train = tuple[EncodedImages, Tensor]


def _on(group: Group, device: torch.device | str) -> Group:
    return group._replace(**{name: getattr(group, name).to(device) for name in ("images", "pixels", "labels")})


def _trained_networks(
    real: RealDataModule,
    train: Train,
    factory: NetworkFactory,
    training: TrainingSettings,
    augment: DSA,
    count: int,
    seed: int,
) -> Iterator[nn.Module]:
    """Networks trained on the real training part, one after another, in evaluation mode."""
    images, labels = train
    channels, size, _ = real.image_shape
    with progress_bar(count * training.epochs, "Training on real images", "epoch") as bar:
        for number in range(count):
            with seeded(seed, "description init", number):
                network = factory(channels, real.num_classes, size).to(labels.device)
            generator = generator_for(seed, "description", number)
            train_network(network, images, labels, training, augment, generator, lambda *_: bar.update())
            yield network.eval()


@torch.no_grad()
def _judged(network: nn.Module, train: Train, groups: Sequence[Group]) -> list[dict[str, Tensor]]:
    """What one network says of each image of each group, `[N]` per number."""
    centroids = _centroids(network, *train)
    judged = []
    for group in groups:
        parts = [features_and_logits(network, images) for images in group.images.split(_BATCH)]
        out = Outputs(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
        judged.append(
            {
                "accuracy": (out.logits.argmax(1) == group.labels).float(),
                "confidence": label_confidence(out.logits, group.labels),
                "silhouette": centroid_silhouette(out.features, group.labels, centroids),
            }
        )
    return judged


def _centroids(network: nn.Module, images: EncodedImages, labels: Tensor) -> Tensor:
    """Mean features of each class `[classes, F]`."""
    totals: Tensor | None = None
    counts = labels.bincount()
    for indices in torch.arange(len(images), device=labels.device).split(_BATCH):
        features = features_and_logits(network, images[indices]).features
        totals = features.new_zeros(len(counts), features.shape[1]) if totals is None else totals
        totals.index_add_(0, labels[indices], features)
    assert totals is not None  # a training part is never empty
    return totals / counts[:, None]


def _pixel_numbers(group: Group) -> dict[str, Tensor]:
    low, middle, high = spectral_bands(group.pixels).unbind(1)
    colour, variation = colourfulness(group.pixels), total_variation(group.pixels)
    return {"colourfulness": colour, "low": low, "middle": middle, "high": high, "variation": variation}


def _nearest_real(group: Group, train: Train) -> Tensor:
    """Distances `[N]`, class by class: the whole training part need not fit into memory in model space."""
    images, labels = train
    distances = torch.empty(len(group.labels), device=labels.device)
    for label in group.labels.unique():
        places = (labels == label).nonzero().flatten()
        member = group.labels == label
        distances[member] = nearest_distance(group.images[member], group.labels[member], images[places], labels[places])
    return distances


def _mean(numbers: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean over networks of the numbers of each image."""
    return {name: torch.stack([judged[name] for judged in numbers]).mean(0) for name in numbers[0]}


def _row(group: Group, columns: dict[str, Tensor]) -> dict[str, Any]:
    row: dict[str, Any] = {"row": group.row, "stage": group.stage, "images": len(group.labels)}
    for name in NUMBERS:
        values = columns[name].double()
        row[name] = float(values.mean())
        row[f"{name}_std"] = float(values.std()) if len(values) > 1 else 0.0
    return row
