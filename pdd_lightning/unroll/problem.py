"""The problem that the inner training loop minimizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pdd_lightning.typing import OffersLossGradient, Params

Batch: TypeAlias = Callable[..., tuple[Tensor, Tensor]]
"""`batch(step, *inputs)` returns the images `[N, C, H, W]` and the labels `[N]` or `[N, classes]` of a step."""


@dataclass(frozen=True)
class InnerProblem:
    """A network, and the batches whose cross-entropy it minimizes.

    A step is a pure function of parameters and batch. Buffers of the network are not changed: batch norm in training
    mode normalizes by the batch, and its running statistics stay the same.

    Attributes:
        network: The student, in training or evaluation mode; its own parameters are neither used nor changed.
        batch: Returns the (augmented) images and labels of step 0, 1, .. as differentiable functions of the inputs. It
            is called more than once per step, and must return the same batch each time.
    """

    network: nn.Module
    batch: Batch

    def gradient(self, step: int, params: Params, inputs: tuple[Tensor, ...], create_graph: bool) -> tuple[Tensor, ...]:
        """Return the gradient of the loss with respect to every parameter, even if gradients are disabled outside.

        Args:
            step: Number of the step, from 0.
            params: Parameters that require gradients.
            inputs: Arguments of `batch` after the step.
            create_graph: Make the gradient itself differentiable.
        """
        with torch.enable_grad():
            images, labels = self.batch(step, *inputs)
            if isinstance(self.network, OffersLossGradient):
                with torch.set_grad_enabled(create_graph):
                    gradient = self.network.loss_gradient(params, images, labels)
                if gradient is not None:
                    return gradient
            buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
            logits = functional_call(self.network, {**buffers, **params}, (images,))
            loss = F.cross_entropy(logits, labels)
            return torch.autograd.grad(loss, tuple(params.values()), create_graph=create_graph, materialize_grads=True)


def start_from(params: Params) -> Params:
    """Return the parameters as leaves that require gradients."""
    return {name: parameter.detach().requires_grad_() for name, parameter in params.items()}


def descend(params: Params, gradient: tuple[Tensor, ...], lr: Tensor) -> Params:
    """Return the parameters after one step of gradient descent."""
    return {name: value - lr * part for (name, value), part in zip(params.items(), gradient, strict=True)}


def is_tracked(inputs: tuple[Tensor, ...], lr: Tensor) -> bool:
    """Return whether the result has to be differentiable."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (lr, *inputs))
