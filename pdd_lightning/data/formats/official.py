"""Files of the official code of MTT, of IDC, and of DC, DSA and DM, and of the benchmark DD-Ranking."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.formats.foreign import Contents, ForeignFormat
from pdd_lightning.data.formats.registry import register
from pdd_lightning.data.synthetic import hard_labels
from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.files import atomic_write_bytes, replace_folder
from pdd_lightning.stored import load_tensors

if TYPE_CHECKING:
    from pdd_lightning.data.real import RealDataModule

_IMAGES, _LABELS, _RATES = "images_", "labels_", "syn_lr_"


@register
class MTT(ForeignFormat):
    """Trajectory matching's `images_*.pt` in model space beside `labels_*.pt`, and `syn_lr_*.pt`.

    Learned rates are stored as float64 `[stages]`, or as a scalar for one stage.
    """

    name, title, files = "mtt", "MTT", "images_*.pt beside labels_*.pt (MTT)"
    is_folder = in_model_space = True
    keeps = ("soft labels", "rates")

    def sniff(self, path: Path, content: Any) -> bool:
        """Return whether it is a folder of such files, or a file of one tensor."""
        return self.targets(path)[0].is_file() or isinstance(content, Tensor)

    def contents(self, path: Path, real: RealDataModule) -> Contents:
        """Return the images with their labels and learned rates."""
        path = self.targets(path)[0] if path.is_dir() else path
        if not path.name.startswith(_IMAGES):
            raise DataError(
                f"{path} holds one tensor and is not called {_IMAGES}*.pt: give the file of images in the folder of"
                f" its {_LABELS}*.pt"
            )
        labels, rates = (path.with_name(path.name.replace(_IMAGES, part, 1)) for part in (_LABELS, _RATES))
        if not labels.is_file():
            raise DataError(f"{path} lacks its labels: expected them in {labels}")
        return Contents(load_tensors(path), load_tensors(labels), learning_rates=_rates(rates))

    def targets(self, path: Path) -> list[Path]:
        """Return the files of a set in a folder: images, labels, learned rates."""
        return [path / f"{part}best.pt" for part in (_IMAGES, _LABELS, _RATES)]

    def write(self, path: Path, dataset: DistilledDataset) -> None:
        """Write the set stage by stage; other files in the folder stay."""
        order = torch.argsort(dataset.stages, stable=True)

        def fill(folder: Path) -> None:
            images, labels, rates = self.targets(folder)
            _write(images, dataset.images[order])
            _write(labels, dataset.labels[order])
            if self.keeps_rates(dataset):
                values = dataset.synthetic.rates_tensor()
                _write(rates, values if len(values) > 1 else values[0])

        replace_folder(path, fill, keep=lambda entry: entry not in self.targets(entry.parent))

    def omissions(self, dataset: DistilledDataset) -> list[str]:
        """Return what is not stored, and what other code may not expect."""
        note = ["soft labels are stored; code that expects class labels cannot read them"]
        return super().omissions(dataset) + (note if dataset.labels.dim() == 2 else [])


@register
class IDC(ForeignFormat):
    """IDC's `[images, labels]` in one file, class by class, images in [0, 1]."""

    name, title, files = "idc", "IDC", "data.pt (IDC)"
    needs_factor = True

    def sniff(self, path: Path, content: Any) -> bool:
        """Return whether it is a file of a pair whose first part is a tensor."""
        return _is_pair(content) and isinstance(content[0], Tensor)

    def contents(self, path: Path, real: RealDataModule) -> Contents:
        """Return the pair."""
        return Contents(*load_tensors(path))

    def write(self, path: Path, dataset: DistilledDataset) -> None:
        """Write the pair, images clipped to [0, 1]."""
        images, labels = _class_by_class(dataset)
        _write(path, [dataset.pixels.decode(images).clamp(0, 1), labels])


@register
class DC(ForeignFormat):
    """The file of DC, DSA and DM: `data` is a list of `[images, labels]`, one per experiment, in model space."""

    name, title, files = "dc", "DC", "res_*.pt (DC, DSA, DM)"
    in_model_space = True

    def sniff(self, path: Path, content: Any) -> bool:
        """Return whether it is a file with an entry `data`."""
        return isinstance(content, dict) and "data" in content

    def contents(self, path: Path, real: RealDataModule) -> Contents:
        """Return the pair of the last experiment."""
        pairs = load_tensors(path)["data"]
        if not isinstance(pairs, list) or not pairs or not _is_pair(pairs[-1]):
            raise DataError(f"{path}: its entry 'data' should be a list of [images, labels]")
        return Contents(*pairs[-1])

    def write(self, path: Path, dataset: DistilledDataset) -> None:
        """Write a file of one experiment without accuracies, class by class."""
        _write(path, {"data": [list(_class_by_class(dataset))], "accs_all_exps": {}})


@register
class DDRanking(ForeignFormat):
    """`images.pt` in model space, class by class with as many images each; `labels.pt` where soft; `lr.pt`.

    DD-Ranking trains once on all images, so the learning rate is that of the last stage.

    Reference:
        Li et al., DD-Ranking: Rethinking the Evaluation of Dataset Distillation (arXiv 2505.13300).
    """

    name, title, files = "ddranking", "DD-Ranking", "a folder with images.pt (DDRanking)"
    is_folder = in_model_space = True
    keeps = ("soft labels",)

    def sniff(self, path: Path, content: Any) -> bool:
        """Whether it is a folder of such files."""
        return content is None and self.targets(path)[0].is_file()

    def targets(self, path: Path) -> list[Path]:
        """Return the files of a set in a folder: images, labels, learning rate."""
        return [path / name for name in ("images.pt", "labels.pt", "lr.pt")]

    def contents(self, path: Path, real: RealDataModule) -> Contents:
        """Return the images, whose order says their classes unless there are labels."""
        images_file, labels_file, rate = self.targets(path)
        images, classes = load_tensors(images_file), real.num_classes
        if labels_file.is_file():
            return Contents(images, load_tensors(labels_file), learning_rates=_rates(rate))
        if not isinstance(images, torch.Tensor) or not images.dim() or len(images) % classes:
            raise DataError(f"{images_file} should hold as many images of each of the {classes} classes")
        labels = torch.arange(classes).repeat_interleave(len(images) // classes)
        return Contents(images, labels, learning_rates=_rates(rate))

    def write(self, path: Path, dataset: DistilledDataset) -> None:
        """Write a set class by class, within a class by stage.

        Raises:
            ConfigError: The classes have different numbers of images.
        """
        classes = hard_labels(dataset.labels)
        if len(set(torch.bincount(classes, minlength=len(dataset.class_names)).tolist())) > 1:
            raise ConfigError("DD-Ranking expects as many images of each class, and this set has different numbers")
        order = torch.argsort(classes * (dataset.num_stages + 1) + dataset.stages, stable=True)

        def fill(folder: Path) -> None:
            images, labels, rate = self.targets(folder)
            _write(images, dataset.images[order])
            if dataset.labels.dim() == 2:
                _write(labels, dataset.labels[order])
            if dataset.learning_rates[-1] is not None:
                _write(rate, torch.tensor(dataset.learning_rates[-1]))

        replace_folder(path, fill, keep=lambda entry: entry not in self.targets(entry.parent))


def _is_pair(content: Any) -> bool:
    return isinstance(content, list | tuple) and len(content) == 2


def _class_by_class(dataset: DistilledDataset) -> tuple[Tensor, Tensor]:
    """Return images in model space and classes, sorted by class, within a class by stage."""
    labels = hard_labels(dataset.labels)
    order = torch.argsort(labels * (dataset.num_stages + 1) + dataset.stages, stable=True)
    return dataset.images[order], labels[order]


def _rates(path: Path) -> tuple[float, ...]:
    """Return the learning rates of a file, if it exists: a tensor, a number, or a list of these."""
    if not path.is_file():
        return ()
    content = load_tensors(path)
    values = content if isinstance(content, list | tuple) else [content]
    try:
        return tuple(torch.cat([torch.as_tensor(value).double().flatten() for value in values]).tolist())
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} should hold learning rates, but holds a {type(content).__name__}") from error


def _write(path: Path, content: Any) -> None:
    """Save atomically by `torch.save`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    atomic_write_bytes(path, buffer.getvalue())
