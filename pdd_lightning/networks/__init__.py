"""Networks to distil with and to evaluate on: plain `nn.Module`s that fit `NetworkFactory`."""

from pdd_lightning.networks.alexnet import AlexNet
from pdd_lightning.networks.convnet import ConvNet
from pdd_lightning.networks.densenet import DenseNet
from pdd_lightning.networks.library_models import Timm, Torchvision
from pdd_lightning.networks.norm import STATISTICS_PER_CLASS, fix_statistics, has_batch_norm
from pdd_lightning.networks.parameters import flatten, load_flat, unflatten
from pdd_lightning.networks.resnet import ResNet10, ResNet18
from pdd_lightning.networks.vgg import VGG11
from pdd_lightning.networks.vit import ViT

__all__ = [
    "STATISTICS_PER_CLASS",
    "VGG11",
    "AlexNet",
    "ConvNet",
    "DenseNet",
    "ResNet10",
    "ResNet18",
    "Timm",
    "Torchvision",
    "ViT",
    "fix_statistics",
    "flatten",
    "has_batch_norm",
    "load_flat",
    "unflatten",
]
