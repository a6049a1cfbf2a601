"""Files of `torch.save`: out of those that somebody else wrote come tensors, and no code runs."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pdd_lightning.errors import DamagedFileError, DataError

_SCALAR = np.float64(0).__reduce__()[0]
_KINDS = ("float64", "float32", "float16", "int64", "int32", "bool")
# Figures beside the images are often numpy's numbers. Files name the constructor by the module it lay in when they
# were written, which numpy 2 renamed.
_NUMBERS = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in _KINDS),
]


def load_tensors(path: Path) -> Any:
    """Read a file that holds tensors, numbers, text, and lists and dictionaries of these.

    Raises:
        DataError: The file is missing, or holds anything else, which could run code when it is loaded.
        DamagedFileError: The file is truncated, or not one of `torch.save`.
    """
    try:
        # Mapped, where the file allows it: expert trajectories are large, and some are only looked at.
        mapped = zipfile.is_zipfile(path)
        with torch.serialization.safe_globals(_NUMBERS):  # type: ignore[arg-type]
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # many unrelated types on damaged files
        raise _refusal(path, error) from error


def tensor_bytes(content: Any) -> bytes:
    """Return what `torch.save` would write, for a file that appears whole."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _refusal(path: Path, error: Exception) -> DataError | DamagedFileError:
    found = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if found:
        return DataError(
            f"{path} is refused: it holds {found[1]}, and only tensors and numbers are loaded, because anything else"
            " could run code. Save its images and labels as plain tensors."
        )
    # The unpickler's own messages advise to switch its protection off.
    reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({str(error).partition(chr(10))[0]})"
    return DamagedFileError(f"{path} is damaged, or not a file of tensors{reason}: copy it again")
