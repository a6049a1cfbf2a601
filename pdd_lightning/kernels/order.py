"""How often the kernels can be differentiated."""

from __future__ import annotations

import torch


def require_last_derivative() -> None:
    """Refuses to be differentiated again; to be called in the last backward pass that there is.

    Raises:
        RuntimeError: The derivative that is being computed is itself to be differentiated.
    """
    # torch's `once_differentiable` raises only if somebody arrives there, which `torch.autograd.grad` avoids.
    if torch.is_grad_enabled():
        raise RuntimeError(
            "a ConvNet on a CPU can be differentiated twice (its gradient once): for more set the environment variable"
            " PDD_KERNELS=off, and torch's own operations take over"
        )
