"""Forgetting scores of real examples: how hard each one is to learn; in memory and as files."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.files import atomic_write_bytes, sha256_of_tensors

FIELD_NAMES = ("indices", "forgetting counts")
"""What files of the original code hold: places in the train order, and how often each example was forgotten."""

# What numpy arrays and numbers in a pickle are made of, by its name in any version of numpy.
_MAKERS = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "numpy.core.multiarray._reconstruct": np.empty(0).__reduce__()[0],
    "numpy.core.multiarray.scalar": np.float64(0).__reduce__()[0],
    "numpy.core.numeric._frombuffer": np.empty(0).__reduce_ex__(5)[0],
    "_codecs.encode": lambda text, _: text.encode("latin1"),  # how bytes are pickled for Python 2
}


@dataclass(frozen=True)
class ForgettingScores:
    """How hard real examples are to learn: a low score is easy.

    Attributes:
        indices: Where each example stands in the source's train order `[N]`, int64.
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
        """The columns by name."""
        return {name: getattr(self, name) for name in ("indices", "scores", "counts", "errors", "learned")}

    def sha256(self) -> str:
        """Hash of the content."""
        return sha256_of_tensors(self.tensors())

    def of(self, indices: Tensor) -> ForgettingScores:
        """The scores of the examples that stand at `indices` `[n]` in the source, in this order.

        Raises:
            DataError: Some of them have no score.
        """
        known, order = self.indices.sort()
        places = torch.searchsorted(known, indices).clamp(max=len(self) - 1)
        missing = int((known[places] != indices).sum())
        if missing:
            raise DataError(
                f"{missing} of {len(indices)} training examples have no forgetting score: the scores are of another"
                " dataset, or of another split into training and validation part"
            )
        return ForgettingScores(**{name: tensor[order[places]] for name, tensor in self.tensors().items()})

    def ranking(self) -> Tensor:
        """Positions `[N]` from the hardest example to the easiest; of equal scores, more errors are harder."""
        order = np.lexsort((-self.errors.numpy(), -self.scores.numpy()))
        return torch.from_numpy(order)

    def save(self, path: Path) -> None:
        """Writes a `.npz` file that `load` reads."""
        buffer = io.BytesIO()
        columns: dict[str, Any] = {name: tensor.numpy() for name, tensor in self.tensors().items()}
        np.savez(buffer, **columns)
        atomic_write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> ForgettingScores:
        """Reads scores that were saved here, or in the original code's form.

        That is a dictionary of `indices` and `forgetting counts`, as `.npz`, or pickled as that code does it. Of a
        pickle only numpy arrays and plain values are accepted, so that reading a foreign file runs nothing.

        Raises:
            DataError: The file is missing, unreadable, or holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"there are no forgetting scores {path}: correct stages.discard.scores")
        content = _read_npz(path) if zipfile.is_zipfile(path) else _read_pickle(path)
        try:
            return _from_columns(content)
        except KeyError:
            raise DataError(
                f"{path} holds {', '.join(map(repr, content)) or 'nothing'}, but forgetting scores are"
                f" {' and '.join(map(repr, FIELD_NAMES))}"
            ) from None
        except (TypeError, ValueError) as error:
            raise DataError(f"{path} holds no usable forgetting scores: {error}") from error


class ScoreComparison(NamedTuple):
    """How much two sets of scores agree.

    Attributes:
        spearman: Rank correlation, in [-1, 1]; NaN where one of them has equal scores only.
        overlap: Share of the hardest examples that are the same, in [0, 1].
        examples: Number of examples that both have scores of.
    """

    spearman: float
    overlap: float
    examples: int


def compare_scores(first: ForgettingScores, second: ForgettingScores, hardest: float = 0.1) -> ScoreComparison:
    """Compares the scores of the examples that two sets have in common.

    Args:
        first: One set.
        second: The other.
        hardest: Share of the examples that count as the hardest, in (0, 1].

    Raises:
        ConfigError: `hardest` is out of range.
        DataError: They have fewer than two examples in common.
    """
    if not 0 < hardest <= 1:
        raise ConfigError(f"hardest is a share of the examples and must be in (0, 1], got {hardest}")
    common = first.indices[torch.isin(first.indices, second.indices)]
    if len(common) < 2:
        raise DataError(f"the two sets of forgetting scores have {len(common)} examples in common, too few to compare")
    both = [scores.of(common) for scores in (first, second)]
    number = max(1, round(hardest * len(common)))
    hard = [set(scores.ranking()[:number].tolist()) for scores in both]
    constant = any(len(scores.scores.unique()) == 1 for scores in both)
    correlation = float("nan") if constant else float(spearmanr(*(scores.scores.numpy() for scores in both))[0])
    return ScoreComparison(correlation, len(hard[0] & hard[1]) / number, len(common))


def _from_columns(content: Mapping[str, Any]) -> ForgettingScores:
    """Scores from the columns of a file in either form; a `KeyError` says that it is neither."""

    def column(name: str, dtype: str = "float64") -> Tensor:
        return torch.from_numpy(np.array(content[name], dtype=dtype))

    indices = column("indices", "int64")
    if "scores" in content:
        return ForgettingScores(indices, *map(column, ("scores", "counts", "errors", "learned")))
    scores = column(FIELD_NAMES[1])
    return ForgettingScores(indices, scores, scores, torch.zeros_like(scores), scores.isfinite().double())


class _ArraysOnly(pickle.Unpickler):
    """Makes numpy arrays and plain values, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        known = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        if known not in _MAKERS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which has no place in numpy arrays")
        return _MAKERS[known]


def _read_npz(path: Path) -> Mapping[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}") from error


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()  # latin1: the original code may run on Python 2
    except Exception as error:  # many unrelated types on damaged files
        raise DataError(f"{path} was not read as forgetting scores: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no dictionary of forgetting scores")
    return content
