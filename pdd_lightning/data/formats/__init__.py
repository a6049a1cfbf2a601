"""Distilled sets in the formats that others use: opening any of them as a `DistilledDataset`, and writing them."""

from importlib import import_module
from pkgutil import iter_modules

from pdd_lightning.data.formats.registry import (
    FORMATS,
    Format,
    ImportOptions,
    find_format,
    open_distilled,
    register,
    target_format,
    writable_formats,
)
from pdd_lightning.data.formats.trajectories import ReplayBuffers

__all__ = [
    "FORMATS",
    "Format",
    "ImportOptions",
    "ReplayBuffers",
    "find_format",
    "open_distilled",
    "register",
    "target_format",
    "writable_formats",
]

for _module in iter_modules(__path__):  # each registers its formats
    import_module(f"{__name__}.{_module.name}")
