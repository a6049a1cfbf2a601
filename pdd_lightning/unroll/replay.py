"""Computing a step a second time exactly as it was computed first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Replay:
    """Remember autocast and the state of the global random numbers (CPU and CUDA) at each step.

    The backward pass runs outside the caller's autocast region, and a network may hold dropout: without
    this, the second computation would differ from the first and the gradient would silently be wrong.

    Args:
        device: Device that the steps run on.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = [device] if device.type == "cuda" else []
        # Without autocast's cache: it would keep a copy of the parameters of every step until the region
        # ends.
        self._autocast = torch.autocast(
            device.type,
            dtype=torch.get_autocast_dtype(device.type),
            enabled=torch.is_autocast_enabled(device.type),
            cache_enabled=False,
        )
        self._states: list[list[Tensor]] = []

    @contextmanager
    def record(self) -> Iterator[None]:
        """Run the next step, remembering what it starts from."""
        self._states.append([torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._cuda)])
        with self._autocast:
            yield

    @contextmanager
    def again(self, step: int) -> Iterator[None]:
        """Run a recorded step again; the global random numbers are afterwards as before."""
        with torch.random.fork_rng(self._cuda), self._autocast:
            state, *states = self._states[step]
            torch.set_rng_state(state)
            for device, cuda_state in zip(self._cuda, states, strict=True):
                torch.cuda.set_rng_state(cuda_state, device)
            yield
