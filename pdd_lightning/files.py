"""Files and folders that are either complete or absent, locks, and hashes of content."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from pdd_lightning import endings
from pdd_lightning.errors import ConfigError

logger = logging.getLogger(__name__)

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of `renameat2` on Linux


@contextmanager
def lock_folder(folder: Path) -> Iterator[str]:
    """Lock a folder for this process, and remove temporary files that killed processes left in it.

    The operating system releases the lock when the process ends, on whichever machine that is.

    Args:
        folder: The folder; created if missing.

    Yields:
        A token, which processes on other machines look for with `has_token`.

    Raises:
        ConfigError: It is a file, or another process holds the lock; the message names the process.
        OSError: The folder cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    owner_file, token = folder / ".owner.json", uuid.uuid4().hex
    try:
        lock = _acquire(folder / ".lock", timeout=0)
    except Timeout:
        raise ConfigError(
            f"{folder} is in use by {_read_owner(owner_file)}: wait for its end, or choose another folder"
        ) from None
    try:
        for leftover in (*folder.rglob(".*.tmp"), *folder.glob("checkpoints/*.partial")):
            _remove_leftover(leftover)
        owner = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        atomic_write_json(owner_file, {**owner, "token": token})
        with endings.temporary(owner_file):
            yield token
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder, see `lock_folder`."""
    if not (folder / ".lock").exists():
        return False
    try:
        with FileLock(folder / ".lock").acquire(timeout=0):
            return False
    except Timeout:
        return True
    except (NotImplementedError, OSError):
        return False


def has_token(folder: Path, token: str, seconds: float = 10.0) -> bool:
    """Return whether this machine sees the folder that another process locked, for which `lock_folder` gave the token.

    Waits some seconds for it, since shared file systems need some time.
    """
    end = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            if token in (folder / ".owner.json").read_text():
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Lock a file while it is changed; wait until no other process holds the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.with_name(f".{path.name}.lock")
    try:
        lock = _acquire(name, timeout=2)
    except Timeout:
        logger.warning("waiting for another process that is changing %s", path)
        lock = _acquire(name, timeout=-1)
    try:
        yield
    finally:
        lock.release()


def _acquire(path: Path, timeout: float) -> FileLock:
    """Acquire a lock, or go on without it where the file system has none."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise
    except (NotImplementedError, OSError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        logger.warning("%s cannot be locked: make sure that no other process works in it", path.parent)
    return lock


def _read_owner(owner_file: Path) -> str:
    """Return the process that holds the lock of a folder, if its file can be read."""
    try:
        owner = json.loads(owner_file.read_text())
        return f"process {owner['process']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def atomic_write_bytes(path: str | Path, data: bytes | bytearray | memoryview) -> Path:
    """Write a file so that readers, and a crash at any moment, see the old content or the new one.

    The data goes to a temporary file in the same folder (created if missing), is flushed to the disk and
    then renamed to `path`.

    Raises:
        OSError: The folder cannot be written to or the disk is full; `path` is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers_of(path)
    try:
        while not _write_and_rename(path, data):
            pass  # another process took the temporary file for a leftover before it was locked
        _sync_folder(path.parent)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # a full disk is reported without a name
        raise
    return path


def _write_and_rename(path: Path, data: bytes | bytearray | memoryview) -> bool:
    # Opened with plain permissions: `tempfile` would make the file unreadable to other users.
    with endings.temporary(_temporary_name(path)) as temporary, temporary.open("xb") as file:
        if not _lock_temporary(file.fileno()):
            return False
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        temporary.replace(path)
    return True


def atomic_write_json(path: str | Path, obj: object) -> Path:
    """Write `obj` as indented UTF-8 JSON with a final newline; see `atomic_write_bytes`.

    Raises:
        TypeError: `obj` holds something that JSON cannot express; nothing is written.
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False)
    return atomic_write_bytes(path, f"{text}\n".encode())


def publish(partial: Path, path: Path) -> None:
    """Rename a file that is complete on disk to `path`, which it replaces."""
    partial.replace(path)
    _sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file that several processes may append to; a truncated last line is ended first.

    Raises:
        OSError: It cannot be written; nothing of the line remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        data = (b"" if file.read(1) in (b"", b"\n") else b"\n") + f"{line}\n".encode()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError as error:
            file.truncate(end)
            error.filename = str(path)
            raise


def check_writable(path: Path) -> None:
    """Check, before long work, that a file can be written.

    Raises:
        OSError: It cannot be written; `path` is unchanged.
    """
    trial = path.with_name(f".{path.name}.trial")
    atomic_write_bytes(trial, b"")
    trial.unlink()


def replace_folder(path: Path, fill: Callable[[Path], object], keep: Callable[[Path], bool] = lambda _: False) -> None:
    """Replace a folder so that a crash at any moment leaves the old content or the new one.

    Args:
        path: The folder to write or replace.
        fill: Writes the new content into a folder.
        keep: Whether an entry of the old folder is kept.

    Raises:
        OSError: It cannot be written; `path` is unchanged.
    """
    former = path.with_name(f".{path.name}.former")
    _restore_folder(former, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers_of(path)
    with endings.temporary(_temporary_name(path)) as new:
        new.mkdir()
        with _open(new) as descriptor:
            _lock_temporary(descriptor)
            fill(new)
            for entry in filter(keep, path.iterdir() if path.is_dir() else ()):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=os.link)
                else:
                    os.link(entry, new / entry.name, follow_symlinks=False)
            with endings.cleanup_lock:
                if path.exists() and not _exchange(new, path):
                    path.rename(former)
                if not path.exists():
                    new.rename(path)
        _sync_folder(path.parent)
        _restore_folder(former, path)


def _restore_folder(former: Path, path: Path) -> None:
    """Rename a folder back that a killed process had renamed, unless it was replaced."""
    if former.is_dir():
        shutil.rmtree(former) if path.exists() else former.rename(path)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two folders in one step; return whether the system could."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(first), os.fsencode(second)
    return rename is not None and rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def _remove_leftovers_of(path: Path) -> None:
    """Remove temporary files of `path` that killed processes left."""
    with suppress(OSError):
        for leftover in path.parent.iterdir():
            if leftover.name.startswith(f".{path.name}.") and leftover.name.endswith(".tmp"):
                _remove_leftover(leftover)


def _remove_leftover(path: Path) -> None:
    """Remove a temporary file or folder, unless the process that writes it is alive and holds its lock."""
    with suppress(OSError), _open(path) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _lock_temporary(descriptor: int) -> bool:
    """Lock an open temporary file or folder; return whether it was not removed before."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # waits for a process that is about to remove it
    return os.fstat(descriptor).st_nlink > 0


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    with _open(folder) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _open(path: Path) -> Iterator[int]:
    """Open a file or folder for reading, and give its descriptor."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


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
