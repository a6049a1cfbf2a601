"""Distilled sets in the formats that others use: opening any of them as a `DistilledDataset`, and writing them."""

from importlib import import_module
from pkgutil import iter_modules

from pdd_lightning.data.formats.registry import (
    FORMATS,
    ImportOptions,
    find_format,
    open_distilled,
    target_format,
    writable_formats,
)

for _module in iter_modules(__path__):  # each registers its formats
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "FORMATS",
    "ImportOptions",
    "find_format",
    "open_distilled",
    "target_format",
    "writable_formats",
]
