"""The networks in which gradients and features are matched: random ones in stage 1, theta_{i-1} in stage i."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pdd_lightning.data.progressive import RunState
from pdd_lightning.errors import ConfigError
from pdd_lightning.networks.parameters import load_flat
from pdd_lightning.randomness import seeded


class NetworkStart(NamedTuple):
    """Where a matching network starts.

    Attributes:
        seed: Seed of its random initialization.
        params: Parameters of one of the theta_{i-1}, flat `[P]`; empty for a network that stays random.
    """

    seed: int
    params: Tensor


def draw_start(state: RunState, generator: torch.Generator) -> NetworkStart:
    """Draw a random network in the first stage, one of the theta_{i-1} in later ones.

    Raises:
        ConfigError: There are no networks trained on the finished stages.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    if state.stage == 1:
        return NetworkStart(seed, torch.empty(0))
    if state.trajectories is None:
        raise ConfigError(f"stage {state.stage} starts from trained networks, which StageAdvance makes")
    expert = int(torch.randint(state.trajectories.number, (), generator=generator))
    return NetworkStart(seed, state.trajectories.segment(expert, 0, 0)[0])


def start_network(build: Callable[[], nn.Module], start: NetworkStart) -> nn.Module:
    """Return the network of a draw; `build` makes one from torch's global generator."""
    with seeded(start.seed, "matching network"):
        network = build()
    if len(start.params):
        load_flat(network, start.params)
    return network
