"""Forgetting scores: how hard each real example is to learn."""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdd_lightning.errors import DataError
from pdd_lightning.files import atomic_write_bytes, sha256_of_tensors
from pdd_lightning.stored import MAX_EXAMPLES, check_archive, damaged_error, one_line, read_bytes

_ORIGINAL_COLUMNS = ("indices", "forgetting counts")
"""Columns of files written by the original code."""
_MAX_FILE_BYTES = 5 * 8 * MAX_EXAMPLES + (1 << 20)


@dataclass(frozen=True)
class ForgettingScores:
    """How hard real examples are to learn: a low score means easy.

    Attributes:
        indices: Index of each example in the source's train part `[N]`, int64.
        scores: Mean number of forgetting events over several networks `[N]`, float64; a network that never learned the
            example counts with the largest possible number, and the score is `inf` if none did.
        counts: Mean number of observed forgetting events `[N]`, float64.
        errors: Mean number of epochs in which the example was misclassified `[N]`, float64.
        learned: Share of the networks that ever classified it correctly `[N]`, float64 in [0, 1].

    Raises:
        DataError: The columns differ in length, a value is out of range or NaN, or an index appears twice.

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
        for name, tensor in self.tensors().items():
            if not bool((tensor >= 0).all()) or (name == "learned" and bool((tensor > 1).any())):
                upper = "and <= 1" if name == "learned" else "(inf: never learned)"
                raise DataError(f"forgetting scores: {name} must be >= 0 {upper}, but some are not, or are NaN")
        if len(self.indices.unique()) < len(self):
            raise DataError("forgetting scores list an example twice")

    def __len__(self) -> int:
        return self.indices.numel()

    def tensors(self) -> dict[str, Tensor]:
        """Return the columns by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def sha256(self) -> str:
        """Return a hash of the content."""
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
        """Return the positions `[N]` from the hardest example to the easiest; more errors break ties."""
        return torch.from_numpy(np.lexsort((-self.errors.numpy(), -self.scores.numpy())))

    def save(self, path: Path) -> None:
        """Write an `.npz` file that `load` reads."""
        buffer = io.BytesIO()
        columns: dict[str, Any] = {name: tensor.numpy() for name, tensor in self.tensors().items()}
        np.savez(buffer, **columns)
        atomic_write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> ForgettingScores:
        """Read scores that were saved here or by the original code.

        The original code pickles a dictionary of `indices` and `forgetting counts`; an `.npz` file of these is read,
        too. Only numpy arrays and plain values are unpickled, so that reading a foreign file runs no code.

        Raises:
            DataError: The file is missing, unreadable, or holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"there are no forgetting scores {path}: correct stages.discard.scores")
        content = _read_npz(path) if zipfile.is_zipfile(path) else _read_pickle(path)
        names: tuple[str, ...] = tuple(field.name for field in fields(cls))
        names = names if set(names) <= set(content) else _ORIGINAL_COLUMNS
        if not set(names) <= set(content):
            found = one_line(", ".join(map(repr, content))) if content else "nothing"
            raise DataError(f"{path} holds {found}, but forgetting scores are {' and '.join(map(repr, names))}")
        columns = [_column(name, content[name], path) for name in names]
        if names == _ORIGINAL_COLUMNS:
            counts = columns[1]
            columns += [counts, torch.zeros_like(counts), counts.isfinite().double()]
        try:
            return cls(*columns)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def _column(name: str, values: Any, path: Path) -> Tensor:
    """Return a column `[N]` from an array or a list of numbers."""
    # A list that refers to one long list many times would take memory without bound.
    nested = isinstance(values, list) and any(isinstance(value, list | tuple | dict | np.ndarray) for value in values)
    if nested or not isinstance(values, list | np.ndarray) or np.ndim(values) != 1 or len(values) > MAX_EXAMPLES:
        raise damaged_error(path, f"{name}: expected one value per example, and at most {MAX_EXAMPLES} examples")
    try:
        return torch.from_numpy(np.array(values, dtype="int64" if name == "indices" else "float64"))
    except (TypeError, ValueError, OverflowError) as error:
        raise damaged_error(path, f"{name}: {error}") from error


def _read_npz(path: Path) -> Mapping[str, Any]:
    try:
        check_archive(path, most=_MAX_FILE_BYTES)
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _check_header(archive, member)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # damaged files raise many unrelated types
        raise DataError(f"{path} cannot be read as .npz: {one_line(error)}") from error


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Refuse an array whose header claims a size other than the actual one, before memory is allocated for it."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if math.prod(shape) * dtype.itemsize != member.file_size - file.tell() and not dtype.hasobject:
            raise ValueError(f"the header of {member.filename} claims {shape} numbers, which do not fit its size")


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        file = io.BytesIO(read_bytes(path, _MAX_FILE_BYTES))
        content = _ArrayUnpickler(file, encoding="latin1").load()  # latin1: pickles of Python 2
    except Exception as error:  # damaged files raise many unrelated types
        raise DataError(f"{path} was not read as forgetting scores: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no dictionary of forgetting scores")
    return {name: value.values if isinstance(value, _Array) else value for name, value in content.items()}


class _ArrayUnpickler(pickle._Unpickler):
    """Unpickle numpy arrays and plain values, and refuse everything else.

    This is the unpickler in Python: the one in C allocates memory for as many memo entries as a file claims.
    """

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}".replace("numpy._core.", "numpy.core.")  # renamed in numpy 2
        if path not in _CONSTRUCTORS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which has no place in numpy arrays")
        return _CONSTRUCTORS[path]


class _DType:
    """Replace `numpy.dtype`, whose state a pickle can alter such that using it crashes the process."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[biuf]\d", str(code)):
            raise pickle.UnpicklingError(f"it holds {code}, which has no place in numpy arrays of numbers")
        self.type = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.type = self.type.newbyteorder(state[1])

    def array(self, data: Any, shape: Any, order: str = "C") -> np.ndarray:
        """Return the array that bytes stand for."""
        data = data.encode("latin1") if isinstance(data, str) else bytes(data)
        values: np.ndarray = np.frombuffer(data, self.type).reshape(shape, order="F" if order == "F" else "C")
        return values


class _Array:
    """Replace an array while its state is read."""

    values = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.values = dtype.array(data, shape, "F" if fortran else "C")


_CONSTRUCTORS = {
    "numpy.ndarray": None,
    "numpy.dtype": _DType,
    "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
    "numpy.core.multiarray.scalar": lambda dtype, data: dtype.array(data, ())[()],
    "numpy.core.numeric._frombuffer": lambda data, dtype, shape, order: dtype.array(data, shape, order),
    "_codecs.encode": lambda text, _: text.encode("latin1"),  # bytes in pickles of Python 2
}
"""What pickles of numpy arrays and scalars call, by its name in numpy 1."""
