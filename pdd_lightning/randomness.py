"""Random numbers that depend on what they are for, not on when they are drawn.

Every draw of a run comes from a generator made for it from the run's seed and a key such as
`("batch", stage, iteration, rank)`. A run that was stopped and continued therefore draws exactly what the
uninterrupted run draws, and no generator state has to be saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *key: str | int) -> int:
    """Hash a run's seed and a key to a seed in [0, 2^63).

    Args:
        seed: Seed of the run.
        key: What the random numbers are for; different keys give independent numbers.
    """
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(seed: int, *key: str | int) -> torch.Generator:
    """Return a CPU generator for one purpose; see `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *key))


@contextmanager
def seeded(seed: int, *key: str | int) -> Iterator[None]:
    """Seed torch's global generators inside the block (initialization, dropout) and restore them afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(seed, *key))
        yield
