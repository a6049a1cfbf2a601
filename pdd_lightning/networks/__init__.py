"""Networks to distil with and to evaluate on: plain `nn.Module`s that fit `NetworkFactory`."""

from pdd_lightning.networks.convnet import ConvNet
from pdd_lightning.networks.parameters import flatten, unflatten
from pdd_lightning.networks.resnet import ResNet, ResNet10, ResNet18

__all__ = ["ConvNet", "ResNet", "ResNet10", "ResNet18", "flatten", "unflatten"]
