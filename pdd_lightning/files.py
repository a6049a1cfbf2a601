"""Files that are either whole or absent, and hashes of their content."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def atomic_write_bytes(path: str | Path, data: bytes | bytearray | memoryview) -> Path:
    """Write a file so that readers, and a crash at any moment, see the old content or the new one.

    The data goes to a temporary file in the same folder (created when missing), is flushed to the disk and
    then renamed over `path`.

    Args:
        path: File to write or replace.
        data: Its whole content.

    Returns:
        The path written.

    Raises:
        OSError: The folder cannot be written to or the disk is full; `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opened with plain permissions: `tempfile` would make the file unreadable to other users.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return path


def publish(partial: Path, path: Path) -> None:
    """Rename a finished file over `path`, after its content has reached the disk."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    _sync_folder(path.parent)


def atomic_write_json(path: str | Path, obj: object) -> Path:
    """Write `obj` as indented UTF-8 JSON with a final newline; see `atomic_write_bytes`.

    Raises:
        TypeError: `obj` holds something that JSON cannot express; nothing is written.
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False)
    return atomic_write_bytes(path, f"{text}\n".encode())


def sha256_of_file(path: Path) -> str:
    """Hash the content of a file, block by block.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_tensors(tensors: Mapping[str, Tensor], text: Mapping[str, str] | None = None) -> str:
    """Hash named tensors and strings by content, whatever their order, device or memory layout.

    Args:
        tensors: Tensors by name; name, dtype, shape and values count.
        text: Further named strings to cover.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        # The JSON line fixes how many bytes follow, so no two different sets give the same stream.
        digest.update(json.dumps(["tensor", name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    for name, value in sorted((text or {}).items()):
        digest.update(json.dumps(["text", name, value]).encode() + b"\n")
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can open folders."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
