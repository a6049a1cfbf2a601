"""Writing a distilled set in any form, and saying what the form cannot hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from pdd_lightning.data.distilled import DistilledDataset, save_distilled
from pdd_lightning.data.formats import image_folder, mtt, pairs, parquet
from pdd_lightning.data.formats.order import hard_labels, stages_can_be_told
from pdd_lightning.errors import ConfigError

Form = Literal["safetensors", "mtt", "idc", "dc", "folder", "parquet"]
FORMS: tuple[Form, ...] = get_args(Form)
"""Forms that distilled sets can be written in."""

_SUFFIXES: dict[str, Form] = {".safetensors": "safetensors", ".parquet": "parquet"}
_FOLDERS = ("mtt", "folder")


def form_for(path: str | Path, form: Form | None = None) -> Form:
    """Say in what form to write a file: the one that is given, or the one that its name says.

    Raises:
        ConfigError: The name does not say it.
    """
    if form is None and Path(path).suffix not in _SUFFIXES:
        raise ConfigError(f"the name {path} does not say what to write: choose one of {', '.join(FORMS)} with --form")
    return form or _SUFFIXES[Path(path).suffix]


def save_as(form: Form, path: str | Path, dataset: DistilledDataset, overwrite: bool = False) -> list[str]:
    """Write a distilled set.

    Args:
        form: `safetensors` (this package's), `mtt` (a folder of images, labels and learned rates), `idc`, `dc` (one
            file), `folder` (image files by class), or `parquet` (for Hugging Face's `datasets`).
        path: File, or folder for `mtt` and `folder`.
        dataset: The set; its images are written as they are, stored or decoded.
        overwrite: Replace what is there.

    Returns:
        What the form does not hold, a sentence each.

    Raises:
        ConfigError: The target exists, or the set cannot be written in this form.
    """
    path = Path(path)
    for target in _targets(form, path):
        if target.exists() and not overwrite:
            raise ConfigError(f"{target} exists: choose another name, or replace it with --overwrite true")
    if path.exists() and path.is_dir() != (form in _FOLDERS):
        raise ConfigError(f"{path} is a {'folder' if path.is_dir() else 'file'}: choose another name")
    _WRITERS[form](path, dataset)
    return _losses(form, dataset)


def _save_own(path: Path, dataset: DistilledDataset) -> None:
    save_distilled(path, dataset.synthetic, dataset.pixels, dataset.class_names, dataset.about())


_WRITERS: dict[Form, Callable[[Path, DistilledDataset], None]] = {
    "safetensors": _save_own,
    "mtt": mtt.write,
    "idc": pairs.write_idc,
    "dc": pairs.write_dc,
    "folder": image_folder.write,
    "parquet": parquet.write,
}


def _targets(form: Form, path: Path) -> list[Path]:
    if form == "mtt":
        return mtt.files(path)
    return [path / image_folder.PART if form == "folder" else path]


def _losses(form: Form, dataset: DistilledDataset) -> list[str]:
    """Sentences that say what of the set a form does not hold, or how it is to be read."""
    if form == "safetensors":
        return []
    lost = []
    if form in ("idc", "folder", "parquet"):
        lost += _pixel_losses(dataset, eight_bits=form != "idc")
    else:
        lost.append(_space(dataset))
    if form != "parquet":
        lost += _untold(form, dataset)
    return lost


def _untold(form: Form, dataset: DistilledDataset) -> list[str]:
    """What images and labels alone do not say."""
    lost = []
    if dataset.labels.dim() == 2:
        lost.append(
            "soft labels are kept; code that expects class numbers cannot read them"
            if form == "mtt"
            else "soft labels are not kept: each image has its most probable class"
        )
    rates_kept = form == "mtt" and mtt.keeps_rates(dataset)
    if set(dataset.learning_rates) != {None} and not rates_kept:
        rates = ", ".join("none" if rate is None else f"{rate:.4g}" for rate in dataset.learning_rates)
        lost.append(f"learned rates are not kept: {rates}")
    if form != "folder" and dataset.num_stages > 1 and not rates_kept:
        lost.append(_stages(form, dataset))
    factor = dataset.synthetic.decode_factor
    if factor > 1:
        lost.append(f"each image stands for {factor**2} training images: read it with --decode_factor {factor}")
    return lost


def _stages(form: Form, dataset: DistilledDataset) -> str:
    labels = dataset.labels if form == "mtt" else hard_labels(dataset.labels)
    if not stages_can_be_told(labels, dataset.stages):
        return "stages are not kept, since they differ in size"
    return f"stages are not named: read it with --num_stages {dataset.num_stages}"


def _space(dataset: DistilledDataset) -> str:
    tensors = dataset.pixels.tensors()
    if "std" not in tensors:
        return "images are ZCA-whitened, which is not said: read it with the same data and normalization zca"
    mean, std = ([round(value, 4) for value in tensors[name].tolist()] for name in ("mean", "std"))
    return f"images are normalised, which is not said: read it with data of mean {mean} and std {std}"


def _pixel_losses(dataset: DistilledDataset, eight_bits: bool) -> list[str]:
    pixels = dataset.pixels.decode(dataset.images)
    share = float(((pixels < 0) | (pixels > 1)).float().mean())
    lost = [f"{share:.1%} of the pixel values lay outside [0, 1] and were clipped"] if share else []
    return [*lost, "images are rounded to 8 bits per channel"] if eight_bits else lost
