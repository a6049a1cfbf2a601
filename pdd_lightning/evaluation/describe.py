"""How the stages of a distilled set differ from each other and from real images, in statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from pdd_lightning.data.splits import to_unit
from pdd_lightning.data.synthetic import hard_labels
from pdd_lightning.errors import check_at_least
from pdd_lightning.evaluation.subject import Subject, outputs_of, train_counting
from pdd_lightning.evaluation.tasks import OnSteps, Task, run_tasks
from pdd_lightning.metrics.image_statistics import (
    centroid_silhouette,
    colorfulness,
    label_confidence,
    nearest_distance,
    spectral_bands,
    total_variation,
)
from pdd_lightning.networks.spec import network_spec
from pdd_lightning.randomness import generator_for
from pdd_lightning.results.grids import ranks
from pdd_lightning.results.tables import STATISTICS
from pdd_lightning.training import TrainingSettings

REAL = "real, held out"
"""The row of real images."""
_JUDGED = ("accuracy", "confidence", "silhouette")
"""Statistics that networks give."""
EXAMPLES = 10
"""Images of a row that stand for all of them."""


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


def groups_of(subject: Subject) -> list[Group]:
    """The images of each stage, decoded, where each stored one stands for several, and the real validation images."""
    distilled = subject.synthetic.decoded(subject.pixels).to(subject.device)
    pixels, labels = subject.pixels.decode(distilled.images).clamp(0, 1), hard_labels(distilled.labels)
    groups = []
    for stage in range(1, distilled.num_stages + 1):
        member = distilled.stages == stage
        groups.append(Group(f"stage {stage}", stage, distilled.images[member], pixels[member], labels[member]))
    held_out = to_unit(subject.real.val.images).to(subject.device)
    images, labels = subject.real_images("val")
    return [*groups, Group(REAL, None, images[torch.arange(len(images))], held_out, labels)]


def example_images(subject: Subject) -> dict[str, Tensor]:
    """Pixels of a few images of each row, one of each class in turn, by the row's name."""
    examples = {}
    for group in groups_of(subject):
        labels = group.labels.tolist()
        turns = sorted(zip(ranks(labels), labels, range(len(labels)), strict=True))
        examples[group.row] = group.pixels[[index for _, _, index in turns[:EXAMPLES]]]
    return examples


def describe_stages(
    subject: Subject, training: TrainingSettings, num_networks: int = 3, progress: bool = True
) -> list[dict[str, Any]]:
    """One row of statistics per stage, and one for real images that no network was trained on (the validation part).

    Each of `STATISTICS` is a mean over the images of the row, with the standard deviation over images as `<name>_std`:

    - of the pixels, clipped to [0, 1]: `colourfulness`, the shares `low`, `middle` and `high` of the spectrum's power
      in three bands, and `variation`, the total variation, see `pdd_lightning.metrics.image_statistics`;
    - in networks trained on the real training part, for each image the mean over these networks: `accuracy`, whether
      it is classified as labelled, `confidence`, the probability of its label, and `silhouette`, how much nearer its
      features are to the mean features of the real images of its own class than to those of any other, see
      `pdd_lightning.metrics.image_statistics`;
    - `nearest_real`, the distance to the nearest real training image of the class, in model space.

    Processes share the networks, and each gets all rows.

    Args:
        subject: The distilled set, the real images, and the kind of network; its store keeps what each network says.
        training: Training of the networks on the real images.
        num_networks: Networks to average over.
        progress: Show a progress bar.

    Raises:
        ConfigError: `num_networks` is not positive.
    """
    check_at_least(1, num_networks=num_networks)
    groups = groups_of(subject)
    tasks = [_task(subject, training, groups, number) for number in range(num_networks)]
    judged = run_tasks(tasks, subject.store, progress)
    return [
        _row(group, _pixel_statistics(group) | _means(networks) | {"nearest_real": _nearest_real(subject, group)})
        for group, *networks in zip(groups, *judged, strict=True)
    ]


def _task(subject: Subject, training: TrainingSettings, groups: Sequence[Group], number: int) -> Task:
    """Trains a network on the real training part, and judges each image of each group with it."""

    def compute(on_steps: OnSteps) -> list[dict[str, list[float]]]:
        network = subject.network("description init", number)
        generator = generator_for(subject.seed, "description", number)
        train_counting(network, *subject.real_images("train"), training, subject.augment, generator, on_steps)
        return _judged(network, subject, groups)

    depends_on = {
        **subject.identity,
        "description": number,
        "network": network_spec(subject.factory),
        "training": asdict(training),
        "augment": vars(subject.augment),
        "seed": subject.seed,
    }

    def check(stored: list[dict[str, list[float]]]) -> list[dict[str, list[float]]]:
        lengths = [{name: len(values) for name, values in one.items()} for one in stored]
        if lengths != [dict.fromkeys(_JUDGED, len(group.labels)) for group in groups]:
            raise ValueError("it is of other images than its key says")
        return stored

    statistic: Any = Annotated[float, Field(ge=-1, le=1)]
    form = Annotated[list[dict[str, list[statistic]]], AfterValidator(check)]
    steps = training.steps(len(subject.real.train))
    return Task(f"network {number + 1} on real images", steps, depends_on, compute, form=form)


@torch.no_grad()
def _judged(network: nn.Module, subject: Subject, groups: Sequence[Group]) -> list[dict[str, list[float]]]:
    """What a network says of each image of each group, `[N]` per statistic."""
    images, labels = subject.real_images("train")
    features = outputs_of(network, images).features
    totals = features.new_zeros(subject.real.num_classes, features.shape[1]).index_add_(0, labels, features)
    centroids = totals / labels.bincount()[:, None]
    judged = []
    for group in groups:
        out = outputs_of(network, group.images)
        statistics = (
            (out.logits.argmax(1) == group.labels).float(),
            label_confidence(out.logits, group.labels),
            centroid_silhouette(out.features, group.labels, centroids),
        )
        judged.append({name: values.tolist() for name, values in zip(_JUDGED, statistics, strict=True)})
    return judged


def _pixel_statistics(group: Group) -> dict[str, Tensor]:
    low, middle, high = spectral_bands(group.pixels).unbind(1)
    colour, variation = colorfulness(group.pixels), total_variation(group.pixels)
    return {"colourfulness": colour, "low": low, "middle": middle, "high": high, "variation": variation}


def _nearest_real(subject: Subject, group: Group) -> Tensor:
    """Distances `[N]`, class by class: the whole training part need not fit into memory in model space."""
    images, labels = subject.real_images("train")
    distances = torch.empty(len(group.labels), device=labels.device)
    for label in group.labels.unique():
        indices = (labels == label).nonzero().flatten()
        member = group.labels == label
        own = group.images[member], group.labels[member]
        distances[member] = nearest_distance(*own, images[indices], labels[indices])
    return distances


def _means(networks: Sequence[dict[str, list[float]]]) -> dict[str, Tensor]:
    """Mean over networks of what they say of each image."""
    return {name: torch.tensor([network[name] for network in networks]).mean(0) for name in networks[0]}


def _row(group: Group, columns: dict[str, Tensor]) -> dict[str, Any]:
    row: dict[str, Any] = {"row": group.row, "stage": group.stage, "images": len(group.labels)}
    for name in STATISTICS:
        values = columns[name].double()
        row[name] = float(values.mean())
        row[f"{name}_std"] = float(values.std()) if len(values) > 1 else 0.0
    return row
