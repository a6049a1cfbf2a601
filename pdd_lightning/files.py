"""Files and folders that are either whole or absent, have one owner, and hashes of their content."""

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

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_HERE, _EXCHANGE = -100, 2  # of `renameat2` on Linux


@contextmanager
def owned(folder: Path) -> Iterator[str]:
    """Keeps other processes from owning a folder at the same time, and removes what killed ones left unfinished in it.

    The lock is the operating system's, which releases it as soon as the process is gone, on whichever machine that is.

    Args:
        folder: The folder; made where it is missing.

    Yields:
        A word that `is_shared` recognises the owner by.

    Raises:
        ConfigError: It is a file, or another process owns it; the message names the process.
        OSError: The folder cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    about, word = folder / ".owner.json", uuid.uuid4().hex
    with _lock(folder / ".lock", about):
        for leftover in (*folder.rglob(".*.tmp"), *folder.glob("checkpoints/*.partial")):
            _remove_leftover(leftover)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        atomic_write_json(about, {"process": os.getpid(), "host": socket.gethostname(), "since": since, "word": word})
        with endings.temporary(about):
            yield word


def is_owned(folder: Path) -> bool:
    """Whether a process owns a folder, see `owned`."""
    if not (folder / ".lock").exists():
        return False
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (NotImplementedError, OSError):
        return False
    lock.release()
    return False


@contextmanager
def _lock(path: Path, about: Path) -> Iterator[None]:
    """Holds a lock, or goes on without where the file system knows none."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{path.parent} is in use by {_owner(about)}: wait for its end, or choose another folder"
        ) from None
    except (NotImplementedError, OSError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in _NO_LOCKS:
            raise
        logger.warning("%s cannot be locked: see to it that no other process works in it", path.parent)
    try:
        yield
    finally:
        lock.release()


def _owner(about: Path) -> str:
    """The process that owns a folder, as far as it says so."""
    try:
        facts = json.loads(about.read_text())
        return f"process {facts['process']} on {facts['host']} since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def is_shared(folder: Path, word: str, seconds: float = 10.0) -> bool:
    """Whether a process on this machine finds the folder that another one owns, as that one's word tells.

    Args:
        folder: The folder by its name here.
        word: What `owned` gave to the owner.
        seconds: How long to look for it: file systems of several machines need some time.
    """
    end = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            if word in (folder / ".owner.json").read_text():
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keeps others from changing a file inside the block, which should be short; waits for them to be done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with suppress(NotImplementedError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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
    _remove_leftovers_of(path)
    try:
        while not _written_and_renamed(path, data):
            pass  # another process took the file for a leftover before it was held
        _sync_folder(path.parent)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # a full disk is reported without a name
        raise
    return path


def _written_and_renamed(path: Path, data: bytes | bytearray | memoryview) -> bool:
    # Opened with plain permissions: `tempfile` would make the file unreadable to other users.
    with endings.temporary(_beside(path)) as temporary, temporary.open("xb") as file:
        if not _hold(file.fileno()):
            return False
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        temporary.replace(path)
    return True


def publish(partial: Path, path: Path) -> None:
    """Give a file that has reached the disk the name of another one, which it replaces."""
    partial.replace(path)
    _sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file that several processes may append to, after a line that was cut off if need be.

    Raises:
        OSError: It cannot be written; nothing of the line stays.
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
    """Make sure, before long work, that a file can be written.

    Raises:
        OSError: It cannot be written; `path` is untouched.
    """
    trial = path.with_name(f".{path.name}.trial")
    atomic_write_bytes(trial, b"")
    trial.unlink()


def replace_folder(path: Path, fill: Callable[[Path], object], keep: Callable[[Path], bool] = lambda _: False) -> None:
    """Replace a folder as a whole, so that a crash at any moment leaves the old content or the new one.

    Args:
        path: The folder to write or replace.
        fill: Writes the new content into the folder that it is called with.
        keep: Which entries of the old folder are taken over, by their paths.

    Raises:
        OSError: It cannot be written; `path` is untouched.
    """
    former = path.with_name(f".{path.name}.former")
    _restore_folder(former, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers_of(path)
    with endings.temporary(_beside(path)) as new:
        new.mkdir()
        with _opened(new) as descriptor:
            _hold(descriptor)
            fill(new)
            for entry in path.iterdir() if path.is_dir() else ():
                if keep(entry):
                    _link(entry, new / entry.name)
            with endings.undisturbed:
                if path.exists() and not _exchange(new, path):
                    path.rename(former)
                if not path.exists():
                    new.rename(path)
        _sync_folder(path.parent)
        _restore_folder(former, path)


def _restore_folder(former: Path, path: Path) -> None:
    """Give a folder its name back which a killed process had taken away, unless there is a new one."""
    if former.is_dir():
        shutil.rmtree(former) if path.exists() else former.rename(path)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change their names in one step; whether the system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def _link(source: Path, target: Path) -> None:
    """A file, or the files of a folder, under a further name."""
    if not source.is_dir() or source.is_symlink():
        os.link(source, target, follow_symlinks=False)
        return
    target.mkdir()
    for entry in source.iterdir():
        _link(entry, target / entry.name)


def _beside(path: Path) -> Path:
    """A new name for what is to become `path`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def _remove_leftovers_of(path: Path) -> None:
    """Remove what killed processes left of `path`."""
    with suppress(OSError):
        for leftover in path.parent.iterdir():
            if leftover.name.startswith(f".{path.name}.") and leftover.name.endswith(".tmp"):
                _remove_leftover(leftover)


def _remove_leftover(path: Path) -> None:
    """Remove an unfinished file or folder, unless the process that writes it is alive and holds it."""
    with suppress(OSError), _opened(path) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _hold(descriptor: int) -> bool:
    """Tell others that the process which writes an open file or folder is alive; whether it is still there."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # waits for a process that is about to remove it
    return os.fstat(descriptor).st_nlink > 0


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
    """Make a rename in `folder` survive a power cut."""
    with _opened(folder) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """The descriptor of a folder, or of a file that is only read."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
