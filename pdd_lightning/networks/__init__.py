"""Networks to distil with and to evaluate on: plain `nn.Module`s that fit `NetworkFactory`."""

from pdd_lightning.networks.convnet import ConvNet
from pdd_lightning.networks.parameters import flatten, load_flat, unflatten
from pdd_lightning.networks.resnet import ResNet, ResNet10, ResNet18
from pdd_lightning.networks.statistics import STATISTICS_PER_CLASS, fix_statistics, has_batch_norm

__all__ = [
    "STATISTICS_PER_CLASS",
    "ConvNet",
    "ResNet",
    "ResNet10",
    "ResNet18",
    "fix_statistics",
    "flatten",
    "has_batch_norm",
    "load_flat",
    "unflatten",
]
