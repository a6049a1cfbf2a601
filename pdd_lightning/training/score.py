"""Accuracy of a network on real images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from pdd_lightning.training.loop import Images


class Score(NamedTuple):
    """Accuracy over all images and per class, in [0, 1]; 0 for a class without images."""

    accuracy: float
    per_class: list[float]


def score_network(network: nn.Module, images: Images, labels: Tensor, num_classes: int, batch_size: int = 512) -> Score:
    """Return the top-1 accuracy of `network` in evaluation mode.

    Args:
        network: Network on the images' device; its mode is restored.
        images: `N` images in model space.
        labels: Classes `[N]` on the images' device.
        num_classes: Number of classes.
        batch_size: Images per forward pass.
    """
    metrics = MetricCollection(
        {
            # Not synchronized, since each process scores its own networks.
            "overall": MulticlassAccuracy(num_classes, average="micro", sync_on_compute=False),
            "per_class": MulticlassAccuracy(num_classes, average="none", sync_on_compute=False),
        }
    ).to(labels.device)
    was_training = network.training
    network.eval()
    with torch.no_grad():
        for indices in torch.arange(len(images), device=labels.device).split(batch_size):
            metrics.update(network(images[indices]), labels[indices])
    network.train(was_training)
    result = metrics.compute()
    return Score(float(result["overall"]), [float(value) for value in result["per_class"]])
