"""Reading files within bounds, and checking what they hold against a model.

Checksums catch damage, not what a stranger may write. So every file that the package reads passes through here: its
size is limited before it is read, `validate` checks its content with a pydantic model, and what does not fit is a
`DamagedFileError` with file, entry and what was expected.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
import torch
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, create_model
from torch import Tensor

from pdd_lightning.errors import DamagedFileError, DataError

MAX_NUMBERS = 10**9
"""Numbers in an array."""
MAX_CLASSES = 10**5
MAX_EXPERTS = 10**5
MAX_STAGES = 10**4
MAX_EXAMPLES = 2 * 10**7
"""Real examples that have a forgetting score."""
MAX_RATE = 1e6
MAX_NAME_BYTES = 255
"""Bytes of a name in UTF-8: as many as a file's name may have."""
MAX_BYTES = 16 << 30
"""Bytes of a file of arrays."""
MAX_TEXT_BYTES = 256 << 20
"""Bytes of a file of JSON."""
MAX_YAML_BYTES = 1 << 20
MAX_YAML_VALUES = 10**5
"""Values of a YAML file, each alias expanded."""
MAX_YAML_DEPTH = 64
_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class Stored(BaseModel):
    """Content of a file. Unknown entries are ignored, since other versions write other ones."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        str_max_length=MAX_TEXT_BYTES,  # makes pydantic check strings, too, and refuse invalid Unicode
    )


Kind = TypeVar("Kind", bound=Stored)


def _check_name(name: str) -> str:
    if len(name.encode()) > MAX_NAME_BYTES or any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise ValueError(f"a name has {MAX_NAME_BYTES} bytes at most and no control characters")
    return name


Name = Annotated[str, AfterValidator(_check_name)]
"""A name that can be printed, and is short enough for a file."""
ClassNames = Annotated[list[Name], Field(min_length=1, max_length=MAX_CLASSES)]
if TYPE_CHECKING:
    Json = dict[str, Any]
else:
    Json = dict[str, JsonValue]
"""Any JSON: finite numbers, nested some hundred levels deep at most."""
Count = Annotated[int, Field(ge=0, le=10**12)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=MAX_RATE)]
"""A learning rate."""
FileName = Annotated[Name, Field(pattern=r"^[^/\\.][^/\\]*$")]
"""A name that can be part of a file name, and leads to no other folder."""
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def array(*forms: str, finite: bool = True) -> AfterValidator:
    """Return a validator of a tensor's shape, type and values.

    Args:
        forms: Names of the dimensions and types, such as "N C: float32", one of which must fit.
        finite: Whether all values must be finite.
    """
    parts = [(form.partition(":")[0].split(), form.partition(":")[2].split()) for form in forms]
    expected = " or ".join(f"[{', '.join(shape)}] {' or '.join(kinds)}" for shape, kinds in parts)

    def check(value: Tensor) -> Tensor:
        kind = str(value.dtype).removeprefix("torch.")
        if not is_dense(value) or not any(value.dim() == len(shape) and kind in kinds for shape, kinds in parts):
            raise ValueError(f"expected {expected}, got {describe_tensor(value)}")
        return check_tensor(value, finite)

    return AfterValidator(check)


def check_tensor(value: Tensor, finite: bool = True) -> Tensor:
    """Refuse a tensor with fewer values in memory than its shape says, too many, or values that are not finite.

    Raises:
        ValueError: It is one.
    """
    value = value.detach()
    if not is_dense(value) or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"{list(value.shape)} are more numbers than the file holds")
    if value.numel() > MAX_NUMBERS:
        raise ValueError(f"{list(value.shape)} are more than {MAX_NUMBERS} numbers")
    if finite and value.numel() and value.is_floating_point() and not all(map(math.isfinite, value.aminmax())):
        raise ValueError("numbers are infinite or not a number")
    return value


def is_dense(value: Tensor) -> bool:
    """Return whether a tensor holds its values one by one."""
    return value.layout == torch.strided and not value.is_meta


def describe_tensor(value: Any) -> str:
    """Return shape and type of a tensor, for messages."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{list(value.shape)} {value.dtype} {value.layout} on {value.device}"


def _check_state(value: Any, depth: int = 0) -> Any:
    """Refuse what the state of a network or an optimizer does not hold."""
    if isinstance(value, Tensor):
        check_tensor(value)
    elif isinstance(value, dict | list | tuple) and depth < 20:
        for entry in value.values() if isinstance(value, dict) else value:
            _check_state(entry, depth + 1)
    elif not (value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and value == value)):
        raise ValueError(f"expected tensors, finite numbers and text, got {one_line(repr(value))}")
    return value


State = Annotated[dict[Any, Any], AfterValidator(_check_state)]
"""State of a network or an optimizer: tensors and plain values, nested."""


def validate(kind: type[Kind], content: Any, where: str | Path, remedy: str = "") -> Kind:
    """Check the content of a file against a model.

    Raises:
        DamagedFileError: It does not fit; the message names the file and the entry, and ends with the remedy.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        entry = ".".join(map(str, first["loc"])) or ("" if first["type"] == "value_error" else "the whole file")
        reason = re.sub(r" or instance of \w+", "", first["msg"].removeprefix("Value error, "))
        raise damaged_error(where, f"{entry}: {reason}" if entry else reason, remedy) from error


def validate_as(form: Any, content: Any, where: str | Path, remedy: str = "") -> Any:
    """Check content against any type that pydantic knows, such as a list; see `validate`."""
    kind = create_model("Content", __base__=Stored, content=(form, ...))
    return vars(validate(kind, {"content": content}, where, remedy))["content"]


def damaged_error(where: str | Path, reason: object, remedy: str = "") -> DamagedFileError:
    """Return the error for a damaged file."""
    return DamagedFileError(f"{where} is damaged: {one_line(reason)}{remedy and f'; {remedy}'}")


def one_line(reason: object) -> str:
    """Return a reason, or a name from a file, as a printable line of bounded length."""
    text = " ".join(str(reason).split()) or type(reason).__name__
    line = "".join(character if character.isprintable() else "?" for character in text)
    return line if len(line) <= 300 else f"{line[:150]} .. {line[-150:]}"


def read_bytes(path: Path, most: int = MAX_BYTES, part: int | None = None) -> bytes:
    """Read a file of at most `most` bytes, or its first `part` bytes.

    Raises:
        DataError: It is missing, cannot be read, or is no ordinary file.
        DamagedFileError: It has more than `most` bytes.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a file")
        with path.open("rb") as file:
            # No more than there is: Python allocates what is asked for.
            data = file.read(min(os.fstat(file.fileno()).st_size, most) + 1 if part is None else part)
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or error or "not enough memory"
        raise DataError(f"cannot read {path}: {reason}") from error
    if len(data) > most:
        raise damaged_error(path, f"it has more than {most} bytes")
    return data


def parse_json(data: bytes | str, where: str | Path, remedy: str = "") -> Any:
    """Parse JSON.

    Raises:
        DamagedFileError: It is not JSON.
    """
    try:
        return json.loads(data.decode() if isinstance(data, bytes) else data)
    except (ValueError, RecursionError) as error:
        raise damaged_error(where, error, remedy) from error


def read_stored(kind: type[Kind], path: Path, remedy: str = "") -> Kind:
    """Read and check a JSON file; arguments as for `validate`.

    Raises:
        DataError: It cannot be read.
        DamagedFileError: It is not JSON, or does not fit.
    """
    return validate(kind, parse_json(read_bytes(path, MAX_TEXT_BYTES), path, remedy), path, remedy)


def load_yaml(text: str, load: Callable[[str], Any] | None = None) -> Any:
    """Load YAML, by default plain values only, unless it is large or deep after its aliases are expanded.

    Raises:
        yaml.YAMLError: It is large or deep, or the loader cannot read it.
    """
    if len(text) > MAX_YAML_BYTES:
        raise yaml.YAMLError(f"more than {MAX_YAML_BYTES} bytes")
    try:
        _check_expanded_size(text)
        return (load or partial(yaml.load, Loader=_LOADER))(text)
    except (ValueError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from error


def _check_expanded_size(text: str) -> None:
    """Count the values of a YAML text, with those of each alias."""
    sizes: dict[str, int] = {}
    open_nodes = [("", 0)]  # anchor of a collection and its size so far
    for event in yaml.parse(text, _LOADER):
        size, anchor = 1 + len(getattr(event, "value", "")) // 100, getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((anchor or "", 1))
            sizes.pop(anchor or "", None)
            size = 0
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise yaml.YAMLError(f"the alias {event.anchor!r} refers to what it is part of, or to nothing")
            size, anchor = sizes[event.anchor], None
        elif not isinstance(event, yaml.ScalarEvent):
            continue
        if anchor and size:
            sizes[anchor] = size
        open_nodes[-1] = (open_nodes[-1][0], open_nodes[-1][1] + size)
        if open_nodes[-1][1] > MAX_YAML_VALUES or len(open_nodes) > MAX_YAML_DEPTH:
            raise yaml.YAMLError(f"more than {MAX_YAML_VALUES} values, or nested deeper than {MAX_YAML_DEPTH} levels")


# Files of other code often hold numpy scalars, whose constructor they name by the module of their numpy version.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS = [
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "float16", "int64", "int32", "bool")),
]


def load_tensors(path: Path, data: bytes | memoryview | None = None) -> Any:
    """Load a file of `torch.save`, or its content `data`, with tensors, numbers, text, lists and dictionaries.

    Raises:
        DataError: The file is missing, or holds anything else, which could run code when it is loaded.
        DamagedFileError: The file is truncated, or not one of `torch.save`.
    """
    if data is None and not path.is_file():
        raise DataError(f"cannot read {path}: {'not a file' if path.exists() else 'no such file'}")
    source = path if data is None else io.BytesIO(data)
    try:
        # Mapped if possible: expert trajectories are large, and often only a part is read.
        mapped = zipfile.is_zipfile(source)
        if mapped:
            check_archive(source, compressed=False)
        if isinstance(source, io.BytesIO):
            source.seek(0)
        with torch.serialization.safe_globals(_NUMPY_SCALARS):  # type: ignore[arg-type]
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped and data is None)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # many unrelated types on damaged files
        refused = isinstance(error, pickle.UnpicklingError)
        if refused and (foreign := re.search(r"GLOBAL (\S+)", str(error))):
            raise DataError(
                f"{path} is refused: it holds {foreign[1]}, and only tensors and numbers are loaded, because anything"
                " else could run code. Save its images and labels as plain tensors."
            ) from error
        # The unpickler's own messages advise to switch its protection off.
        detail = "" if refused else f" ({str(error).partition(chr(10))[0]})"
        raise damaged_error(path, f"it is no file of tensors{detail}", "copy it again") from error


def check_archive(source: str | Path | io.BytesIO, compressed: bool = True, most: int = MAX_BYTES) -> None:
    """Refuse a zip archive that would expand to more than `most` bytes, or has compressed files where it may not.

    Raises:
        ValueError: It is one.
    """
    with zipfile.ZipFile(source) as archive:
        files = archive.infolist()
        archive_size = archive.fp.seek(0, io.SEEK_END) if archive.fp else 0
    size = sum(file.file_size for file in files)
    if size > (most if compressed else min(most, archive_size)):
        raise ValueError(f"its parts have {size} bytes together, more than it can hold")
    if not compressed and any(file.compress_type != zipfile.ZIP_STORED for file in files):
        raise ValueError("its parts are compressed")
