"""Trajectory matching's form: `images_*.pt` in model space beside `labels_*.pt`, and `syn_lr_*.pt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.formats.content import Content
from pdd_lightning.data.formats.order import stages_can_be_told
from pdd_lightning.data.formats.tensor_files import load_tensors, tensor_bytes
from pdd_lightning.errors import DataError
from pdd_lightning.files import atomic_write_bytes

IMAGES = "images_best.pt"
_PREFIX = "images_"


def read(path: Path, images: Any) -> Content:
    """Read what lies beside the images.

    Args:
        path: The images' file.
        images: What it holds.

    Raises:
        DataError: There are no labels beside it.
    """
    if not path.name.startswith(_PREFIX):
        raise DataError(
            f"{path} holds one tensor and is not called {_PREFIX}*.pt: give the file of images that has its"
            " labels beside it as labels_*.pt"
        )
    rest = path.name.removeprefix(_PREFIX)
    labels = path.with_name(f"labels_{rest}")
    if not labels.is_file():
        raise DataError(f"{path} lacks its labels: expected them in {labels}")
    rates = path.with_name(f"syn_lr_{rest}")
    return Content(
        form="MTT",
        images=images,
        labels=load_tensors(labels),
        in_pixels=False,
        rates=_numbers(rates, load_tensors(rates)) if rates.is_file() else (),
    )


def files(folder: Path) -> list[Path]:
    """Return the files of a set in `folder`."""
    return [folder / name for name in (IMAGES, "labels_best.pt", "syn_lr_best.pt")]


def write(folder: Path, dataset: DistilledDataset) -> None:
    """Write a set stage by stage; its learned rates as float64 `[stages]`, or as one number for one stage.

    Rates of stages that cannot be told apart are left out.
    """
    images, labels, rates = files(folder)
    order = torch.argsort(dataset.stages, stable=True)
    # What an earlier set left would be taken for this one's. Labels come last: without them the set is refused.
    for former in (labels, rates):
        former.unlink(missing_ok=True)
    atomic_write_bytes(images, tensor_bytes(dataset.images[order]))
    if keeps_rates(dataset):
        values = dataset.synthetic.rates_tensor()
        atomic_write_bytes(rates, tensor_bytes(values if len(values) > 1 else values[0]))
    atomic_write_bytes(labels, tensor_bytes(dataset.labels[order]))


def keeps_rates(dataset: DistilledDataset) -> bool:
    """Whether there are rates to write."""
    return set(dataset.learning_rates) != {None} and stages_can_be_told(dataset.labels, dataset.stages)


def _numbers(path: Path, content: Any) -> tuple[float, ...]:
    """All numbers in a tensor, a number, or a list of these."""
    if isinstance(content, list | tuple):
        return tuple(number for entry in content for number in _numbers(path, entry))
    if isinstance(content, Tensor) and not content.is_complex():
        return tuple(content.detach().double().flatten().tolist())
    if isinstance(content, int | float):
        return (float(content),)
    raise DataError(f"{path} should hold learning rates, but holds a {type(content).__name__}")
