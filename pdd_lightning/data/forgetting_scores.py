"""Forgetting scores of real examples, how hard each one is to learn, and leaving out easy ones by their scores."""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pdd_lightning.errors import ConfigError, DamagedFileError, DataError
from pdd_lightning.files import atomic_write_bytes, sha256_of_tensors
from pdd_lightning.stored import MAX_EXAMPLES, check_archive, damaged_error, one_line, read_bytes

if TYPE_CHECKING:
    from pdd_lightning.data.real import RealDataModule

# What files of the original code hold: indices in the train part, and how often each example was forgotten.
_ORIGINAL_COLUMNS = ("indices", "forgetting counts")

_MOST_FILE_BYTES = 5 * 8 * MAX_EXAMPLES + (1 << 20)
"""Bytes of a file of five columns."""


@dataclass(frozen=True)
class ForgettingScores:
    """How hard real examples are to learn: a low score is easy.

    Attributes:
        indices: Index of each example in the source's train part `[N]`, int64.
        scores: Mean number of forgetting events over several networks `[N]`, float64; a network that never learned the
            example counts with the largest number possible, and `inf` stands where none did.
        counts: Mean number of forgetting events that were seen `[N]`, float64.
        errors: Mean number of epochs in which the example was classified wrongly `[N]`, float64.
        learned: Share of the networks that ever classified it correctly `[N]`, float64 in [0, 1].

    Raises:
        DataError: The tensors do not fit together, a score is negative or NaN, or an index appears twice.

    Reference:
        Toneva et al., An Empirical Study of Example Forgetting during Deep Neural Network Learning (ICLR 2019).
    """

    indices: Tensor
    scores: Tensor
    counts: Tensor
    errors: Tensor
    learned: Tensor

    def __post_init__(self) -> None:
        shapes = {name: list(tensor.shape) for name, tensor in self.tensors().items()}
        if any(shape != [len(self)] for shape in shapes.values()) or not len(self):
            raise DataError(f"forgetting scores need one value per example in each column, got {shapes}")
        if not bool((self.scores >= 0).all()):
            raise DataError("forgetting scores must be >= 0 (inf for never learned), but some are negative or NaN")
        if len(self.indices.unique()) < len(self):
            raise DataError("forgetting scores list an example twice")

    def __len__(self) -> int:
        return self.indices.numel()

    def tensors(self) -> dict[str, Tensor]:
        """Return the columns by name."""
        return {name: getattr(self, name) for name in ("indices", "scores", "counts", "errors", "learned")}

    def sha256(self) -> str:
        """Hash the content."""
        return sha256_of_tensors(self.tensors())

    def of(self, indices: Tensor) -> ForgettingScores:
        """Return the scores of the examples with these indices `[n]` in the source, in this order.

        Raises:
            DataError: Some of them have no score.
        """
        known, order = self.indices.sort()
        found = torch.searchsorted(known, indices).clamp(max=len(self) - 1)
        missing = int((known[found] != indices).sum())
        if missing:
            raise DataError(
                f"{missing} of {len(indices)} training examples have no forgetting score: the scores are of another"
                " dataset, or of another split into training and validation part"
            )
        return ForgettingScores(**{name: tensor[order[found]] for name, tensor in self.tensors().items()})

    def ranking(self) -> Tensor:
        """Return the rows `[N]` from the hardest example to the easiest; of equal scores, more errors are harder."""
        return torch.from_numpy(np.lexsort((-self.errors.numpy(), -self.scores.numpy())))

    def save(self, path: Path) -> None:
        """Write a `.npz` file that `load` reads."""
        buffer = io.BytesIO()
        columns: dict[str, Any] = {name: tensor.numpy() for name, tensor in self.tensors().items()}
        np.savez(buffer, **columns)
        atomic_write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> ForgettingScores:
        """Read scores that were saved here or by the original code.

        That code pickles a dictionary of `indices` and `forgetting counts`, which may also be a `.npz` file. Of a
        pickle only numpy arrays and plain values are accepted, so that reading a foreign file runs nothing.

        Raises:
            DataError: The file is missing, unreadable, or holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"there are no forgetting scores {path}: correct stages.discard.scores")
        content = _read_npz(path) if zipfile.is_zipfile(path) else _read_pickle(path)
        try:
            return _from_columns(content, path)
        except KeyError:
            names = one_line(", ".join(map(repr, content))) if content else "nothing"
            expected = " and ".join(map(repr, _ORIGINAL_COLUMNS))
            raise DataError(f"{path} holds {names}, but forgetting scores are {expected}") from None
        except DamagedFileError:
            raise
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{path} holds no usable forgetting scores: {one_line(error)}") from error


@dataclass(frozen=True)
class DiscardSettings:
    """Leaving easy real examples out of stages, by their forgetting scores, to save time.

    Give `min_score` or `keep`, with one value per stage; without either, nothing is left out. What a stage leaves out
    it uses for nothing: not for initial images, matching, or the training of its experts.

    Attributes:
        min_score: Per stage, the score from which on an example is used; 0 uses all.
        keep: Per stage, the share of the examples that is used, the hardest ones, in (0, 1].
        min_per_class: A stage uses at least as many examples of each class, the hardest ones, or as many as its
            initial images are made of, if that is more.
        scores: File of forgetting scores, see `ForgettingScores.load`; null has them made in the run: by the experts
            of the first stage, or where that has none, or leaves something out itself, by networks for this alone.
        networks: Number of networks that are trained for the scores alone.
        epochs: Epochs of their training, which otherwise is that of experts.

    Reference:
        Chen et al., Data Distillation Can Be Like Vodka (ICLR 2024), section 4.
    """

    min_score: tuple[float, ...] | None = None
    keep: tuple[float, ...] | None = None
    min_per_class: int = 1
    scores: str | None = None
    networks: int = 3
    epochs: int = 20

    def __post_init__(self) -> None:
        if self.min_score is not None and self.keep is not None:
            raise ConfigError("discard.min_score and discard.keep say the same in two ways: set one of them to null")
        for name, value in {"min_per_class": self.min_per_class, "networks": self.networks}.items():
            if value < 1:
                raise ConfigError(f"discard.{name} must be >= 1, got {value}")
        if self.epochs < 2:
            raise ConfigError(f"discard.epochs must be >= 2, or nothing can be forgotten, got {self.epochs}")
        if self.min_score is not None and not all(0 <= score < float("inf") for score in self.min_score):
            raise ConfigError(f"discard.min_score must be >= 0 and finite, got {list(self.min_score)}")
        if self.keep is not None and not all(0 < share <= 1 for share in self.keep):
            raise ConfigError(f"discard.keep are shares of the examples, in (0, 1], got {list(self.keep)}")
        if self.scores is not None and not self.schedule:
            raise ConfigError("discard.scores has no effect: set discard.min_score or discard.keep, too")

    @property
    def schedule(self) -> tuple[float, ...]:
        """One value per stage; empty if nothing is left out."""
        return self.min_score or self.keep or ()

    def check_stages(self, num_stages: int) -> None:
        """Refuse a schedule that is too short.

        Raises:
            ConfigError: There are stages without a value.
        """
        given = self.min_score if self.min_score is not None else self.keep
        if given is not None and len(given) < num_stages:
            name = "keep" if self.min_score is None else "min_score"
            raise ConfigError(
                f"stages.discard.{name} has {len(given)} values, one per stage, but there are {num_stages} stages:"
                " give more values, or lower stages.num_stages"
            )

    def check_classes(self, real: RealDataModule, init_images: int) -> None:
        """Refuse a number per class that some class does not have.

        Raises:
            DataError: A class has too few training examples.
        """
        if not self.schedule:
            return
        least = self.least(init_images)
        for name, count in zip(real.class_names, real.train.class_counts(real.num_classes), strict=True):
            if count < least:
                raise DataError(
                    f"class {name!r} has {int(count)} training images, fewer than the {least} that every stage is to"
                    " keep: lower stages.discard.min_per_class, or model.init_args.ipc"
                )

    def least(self, init_images: int) -> int:
        """Return how many examples of each class every stage uses at least; its initial images need `init_images`."""
        return max(self.min_per_class, init_images)

    def drops(self, stage: int) -> bool:
        """Whether a stage, from 1, may leave something out."""
        if not 1 <= stage <= len(self.schedule):
            return False
        value = self.schedule[stage - 1]
        return value < 1 if self.min_score is None else value > 0

    def kept(self, stage: int, scores: ForgettingScores, labels: Tensor, least: int) -> Tensor:
        """Return the examples that a stage uses, as ascending indices `[n]`.

        Args:
            stage: Number of the stage, from 1.
            scores: Scores of the examples.
            labels: Their classes `[N]`.
            least: Examples of each class that are used in any case, the hardest ones.
        """
        ranking = scores.ranking()
        used = torch.zeros(len(labels), dtype=torch.bool)
        if not self.drops(stage):
            used[:] = True
        elif self.min_score is not None:
            used |= scores.scores >= self.min_score[stage - 1]
        else:
            used[ranking[: max(1, round(self.schedule[stage - 1] * len(labels)))]] = True
        for label in labels.unique():
            used[ranking[labels[ranking] == label][:least]] = True
        return used.nonzero().flatten()

    def description(self) -> dict[str, Any]:
        """Return what the examples of each stage depend on, but for the file of scores."""
        name = "keep" if self.min_score is None else "min_score"
        return {
            name: {f"stage {stage}": value for stage, value in enumerate(self.schedule, 1)},
            "min_per_class": self.min_per_class,
            "networks": self.networks,
            "epochs": self.epochs,
        }


def _from_columns(content: Mapping[str, Any], path: Path) -> ForgettingScores:
    """Make scores of the columns of either kind of file; a `KeyError` says that it is neither."""
    indices, scores = content["indices"], content["scores" if "scores" in content else _ORIGINAL_COLUMNS[1]]
    columns = {"indices": indices, "scores": scores}
    if "scores" in content:
        columns |= {name: content[name] for name in ("counts", "errors", "learned")}
    tensors = {name: _column(name, values, path) for name, values in columns.items()}
    if "scores" in content:
        return ForgettingScores(**tensors)
    scores = tensors["scores"]
    return ForgettingScores(tensors["indices"], scores, scores, torch.zeros_like(scores), scores.isfinite().double())


def _column(name: str, values: Any, path: Path) -> Tensor:
    """A column as a tensor `[N]`, from an array or a list of numbers."""
    flat = isinstance(values, np.ndarray) or (
        isinstance(values, list) and not any(isinstance(value, list | tuple | dict | np.ndarray) for value in values)
    )
    if not flat or np.ndim(values) != 1 or len(values) > MAX_EXAMPLES:
        raise damaged_error(path, f"{name}: expected one value per example, and {MAX_EXAMPLES} examples at most")
    found = torch.from_numpy(np.array(values, dtype="int64" if name == "indices" else "float64"))
    if not bool((found >= 0).all()) or (name == "learned" and bool((found > 1).any())):
        raise damaged_error(path, f"{name}: expected numbers from 0 to {1 if name == 'learned' else 'infinity'}")
    return found


class _NumberType:
    """Stands for `numpy.dtype`, whose own state can be altered so that using it ends the process."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[biuf]\d", str(code)):
            raise pickle.UnpicklingError(f"it holds {code}, which has no place in numpy arrays of numbers")
        self.type = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.type = self.type.newbyteorder(state[1])

    def array(self, data: Any, shape: Any, order: str = "C") -> np.ndarray:
        """The numbers that bytes stand for."""
        data = data.encode("latin1") if isinstance(data, str) else bytes(data)
        values: np.ndarray = np.frombuffer(data, self.type).reshape(shape, order="F" if order == "F" else "C")
        return values


class _Array:
    """Stands for an array while its parts are read."""

    values = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, numbers, fortran, data = state
        self.values = numbers.array(data, shape, "F" if fortran else "C")


class _ArraysOnly(pickle._Unpickler):
    """Reads numpy arrays and plain values, and refuses everything else.

    The unpickler in Python: that in C takes memory for whatever number of entries a file claims.
    """

    def find_class(self, module: str, name: str) -> Any:
        known = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        if known not in _NUMPY_CONSTRUCTORS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which has no place in numpy arrays")
        return _NUMPY_CONSTRUCTORS[known]


# What numpy arrays and scalars in a pickle are made by, under its name in any version of numpy.
_NUMPY_CONSTRUCTORS = {
    "numpy.ndarray": None,
    "numpy.dtype": _NumberType,
    "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
    "numpy.core.multiarray.scalar": lambda numbers, data: numbers.array(data, ())[()],
    "numpy.core.numeric._frombuffer": lambda data, numbers, shape, order: numbers.array(data, shape, order),
    "_codecs.encode": lambda text, _: text.encode("latin1"),  # how bytes are pickled for Python 2
}


def _read_npz(path: Path) -> Mapping[str, Any]:
    try:
        check_archive(path, most=_MOST_FILE_BYTES)
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _check_header(archive, member)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # many unrelated types on damaged files
        raise DataError(f"{path} cannot be read as .npz: {one_line(error)}") from error


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Refuses an array whose header claims another size than there is, before memory is taken for it."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if math.prod(shape) * dtype.itemsize != member.file_size - file.tell() and not dtype.hasobject:
            raise ValueError(f"the header of {member.filename} claims {shape} numbers, which is not what there is")


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        file = io.BytesIO(read_bytes(path, _MOST_FILE_BYTES))
        content = _ArraysOnly(file, encoding="latin1").load()  # latin1: the original code may run on Python 2
    except Exception as error:  # many unrelated types on damaged files
        raise DataError(f"{path} was not read as forgetting scores: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no dictionary of forgetting scores")
    return {name: value.values if isinstance(value, _Array) else value for name, value in content.items()}
