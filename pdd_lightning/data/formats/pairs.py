"""Forms that are pairs of images and labels in one file: those of IDC, and of DC, DSA and DM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.formats.content import Content
from pdd_lightning.data.formats.order import class_by_class
from pdd_lightning.data.formats.tensor_files import tensor_bytes
from pdd_lightning.errors import DataError
from pdd_lightning.files import atomic_write_bytes


def read_idc(path: Path, content: Any) -> Content:
    """Take `[images, labels]`, images stored in [0, 1]; what each stands for is not said."""
    images, labels = content
    return Content(form="IDC", images=images, labels=labels, in_pixels=True, needs_factor=True)


def read_dc(path: Path, content: Any) -> Content:
    """Take the last pair of `data`, in model space; earlier ones are of earlier experiments.

    Raises:
        DataError: There is no pair.
    """
    pairs = content["data"]
    if not isinstance(pairs, list) or not pairs or not isinstance(pairs[-1], list | tuple) or len(pairs[-1]) != 2:
        raise DataError(f"{path}: its entry 'data' should be a list of [images, labels]")
    images, labels = pairs[-1]
    return Content(form="DC", images=images, labels=labels, in_pixels=False)


def write_idc(path: Path, dataset: DistilledDataset) -> None:
    """Write `[images, labels]`, images clipped to [0, 1]."""
    images, labels = class_by_class(dataset)
    atomic_write_bytes(path, tensor_bytes([dataset.pixels.decode(images).clamp(0, 1), labels]))


def write_dc(path: Path, dataset: DistilledDataset) -> None:
    """Write a file of one experiment without accuracies."""
    atomic_write_bytes(path, tensor_bytes({"data": [list(class_by_class(dataset))], "accs_all_exps": {}}))
