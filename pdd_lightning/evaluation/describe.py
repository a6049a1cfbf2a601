"""Statistics of the stages of a distilled set and of real images."""

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
from pdd_lightning.evaluation.subject import Subject, outputs_of, train_with_progress
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
from pdd_lightning.results.grids import count_previous
from pdd_lightning.results.tables import STATISTICS
from pdd_lightning.training import TrainingSettings

REAL = "real, held out"
"""The row of real images."""
EXAMPLES_PER_ROW = 10
_NETWORK_STATISTICS = ("accuracy", "confidence", "silhouette")


class Group(NamedTuple):
    """Images `[N, C, H, W]` of a row, in model space and as pixels in [0, 1], with their classes `[N]`."""

    row: str
    stage: int | None
    images: Tensor
    pixels: Tensor
    labels: Tensor


def groups_of(subject: Subject) -> list[Group]:
    """Return the decoded images of each stage, and the real validation images."""
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
    """Return pixels of a few images of each row, one of each class in turn, by the name of the row."""
    examples = {}
    for group in groups_of(subject):
        labels = group.labels.tolist()
        order = sorted(zip(count_previous(labels), labels, range(len(labels)), strict=True))
        examples[group.row] = group.pixels[[index for _, _, index in order[:EXAMPLES_PER_ROW]]]
    return examples


def describe_stages(
    subject: Subject, training: TrainingSettings, num_networks: int = 3, progress: bool = True
) -> list[dict[str, Any]]:
    """Return a row of statistics per stage, and one for the real validation images, which no network was trained on.

    Each of `STATISTICS` is a mean over the images of the row, with the standard deviation over images as `<name>_std`:

    - of the pixels, clipped to [0, 1]: `colourfulness`, the shares `low`, `middle` and `high` of the spectrum's power
      in three bands, and `variation`, the total variation, see `pdd_lightning.metrics.image_statistics`;
    - in networks trained on the real training part, for each image the mean over these networks: `accuracy`, whether
      it is classified as labeled, `confidence`, the probability of its label, and `silhouette`, how much nearer its
      features are to the mean features of the real images of its own class than to those of any other;
    - `nearest_real`, the distance to the nearest real training image of the class, in model space.

    Processes share the networks, and each gets all rows.

    Raises:
        ConfigError: `num_networks` is not positive.
    """
    check_at_least(1, num_networks=num_networks)
    groups = groups_of(subject)
    tasks = [_task(subject, training, groups, number) for number in range(num_networks)]
    results = run_tasks(tasks, subject.store, progress)
    rows = []
    for group, *networks in zip(groups, *results, strict=True):
        means = {name: torch.tensor([network[name] for network in networks]).mean(0) for name in networks[0]}
        statistics = _pixel_statistics(group) | means | {"nearest_real": _nearest_real(subject, group)}
        row: dict[str, Any] = {"row": group.row, "stage": group.stage, "images": len(group.labels)}
        for name in STATISTICS:
            values = statistics[name].double()
            row[name] = float(values.mean())
            row[f"{name}_std"] = float(values.std()) if len(values) > 1 else 0.0
        rows.append(row)
    return rows


def _task(subject: Subject, training: TrainingSettings, groups: Sequence[Group], number: int) -> Task:
    """Return the task of training a network on the real training part, and applying it to the groups."""

    def compute(on_steps: OnSteps) -> list[dict[str, list[float]]]:
        network = subject.network("description init", number)
        generator = generator_for(subject.seed, "description", number)
        train_with_progress(network, *subject.real_images("train"), training, subject.augment, generator, on_steps)
        return _network_statistics(network, subject, groups)

    depends_on = {
        **subject.identity,
        "description": number,
        "network": network_spec(subject.factory),
        "training": asdict(training),
        "augment": vars(subject.augment),
        "seed": subject.seed,
    }

    def check(result: list[dict[str, list[float]]]) -> list[dict[str, list[float]]]:
        lengths = [{name: len(values) for name, values in statistics.items()} for statistics in result]
        if lengths != [dict.fromkeys(_NETWORK_STATISTICS, len(group.labels)) for group in groups]:
            raise ValueError("it is the result of other images")
        return result

    statistic: Any = Annotated[float, Field(ge=-1, le=1)]
    value_type = Annotated[list[dict[str, list[statistic]]], AfterValidator(check)]
    steps = training.steps(len(subject.real.train))
    return Task(f"network {number + 1} on real images", steps, depends_on, compute, value_type=value_type)


@torch.no_grad()
def _network_statistics(network: nn.Module, subject: Subject, groups: Sequence[Group]) -> list[dict[str, list[float]]]:
    """Return the statistics `[N]` of each group in a network."""
    images, labels = subject.real_images("train")
    features = outputs_of(network, images).features
    totals = features.new_zeros(subject.real.num_classes, features.shape[1]).index_add_(0, labels, features)
    centroids = totals / labels.bincount()[:, None]
    results = []
    for group in groups:
        out = outputs_of(network, group.images)
        statistics = (
            (out.logits.argmax(1) == group.labels).float(),
            label_confidence(out.logits, group.labels),
            centroid_silhouette(out.features, group.labels, centroids),
        )
        results.append({name: values.tolist() for name, values in zip(_NETWORK_STATISTICS, statistics, strict=True)})
    return results


def _pixel_statistics(group: Group) -> dict[str, Tensor]:
    low, middle, high = spectral_bands(group.pixels).unbind(1)
    color, variation = colorfulness(group.pixels), total_variation(group.pixels)
    return {"colourfulness": color, "low": low, "middle": middle, "high": high, "variation": variation}


def _nearest_real(subject: Subject, group: Group) -> Tensor:
    """Return distances `[N]`, computed by class because all encoded training images need not fit into memory."""
    images, labels = subject.real_images("train")
    distances = torch.empty(len(group.labels), device=labels.device)
    for label in group.labels.unique():
        indices = (labels == label).nonzero().flatten()
        members = group.labels == label
        distances[members] = nearest_distance(
            group.images[members], group.labels[members], images[indices], labels[indices]
        )
    return distances
