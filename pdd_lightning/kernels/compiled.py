"""Compilation of the package's C++ at its first use, the cache of the library, and calls of its kernels."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
SOURCES = tuple(sorted(FOLDER.glob("*.cpp")))
SWITCH = "PDD_KERNELS"
TYPES = {torch.float32: "float32", torch.float64: "float64"}
"""Supported dtypes and their names in those of kernels."""
_shapes_only = ContextVar("shapes_only", default=False)
# Floating-point exceptions are not used. To preserve them, GCC would not vectorize selections on processors without
# masked vectors (AVX2), which takes 3 times the time of an iteration, for the same result.
_COMPILE = "-O3 -march=native -fno-trapping-math -std=c++17 -fPIC -fopenmp -c"
_BUILD_PREFIX = "pdd_lightning_build_"
_TIMEOUT_SECONDS = 600
_MAX_LIBRARY_BYTES = 2**26
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def call(kernel: str, typed: Tensor, sizes: Sequence[int], *arguments: Tensor | float | int | None) -> None:
    """Call a kernel.

    Args:
        kernel: Its name without the dtype.
        typed: A tensor of the dtype.
        sizes: The first argument, a struct of integers.
        arguments: Further arguments: numbers, and tensors, which are passed as pointers (None is a null pointer).
    """
    if not _shapes_only.get():
        _function(kernel, typed.dtype)((ctypes.c_int64 * len(sizes))(*sizes), *map(_argument, arguments))


def query(kernel: str, typed: Tensor, sizes: Sequence[int]) -> int:
    """Call a function of sizes for the dtype of a tensor, and return its integer result."""
    if _shapes_only.get():
        return 1
    return int(_function(kernel, typed.dtype, ctypes.c_int64)((ctypes.c_int64 * len(sizes))(*sizes)))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Skip kernels, for tensors without data."""
    token = _shapes_only.set(True)
    try:
        yield
    finally:
        _shapes_only.reset(token)


def empty_maps(tensor: Tensor, *shape: int) -> Tensor:
    """Allocate channels-last maps `[N, C, H, W]` of a tensor's dtype and device."""
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=torch.channels_last)


@cache
def _function(kernel: str, dtype: torch.dtype, result: Any = None) -> Callable[..., Any]:
    """Return the kernel for a dtype, to which the library has a pointer."""
    address = ctypes.c_void_p.in_dll(library(), f"{kernel}_{TYPES[dtype]}")  # type: ignore[arg-type]
    return ctypes.CFUNCTYPE(result)(address.value)  # type: ignore[arg-type]


def _argument(argument: Tensor | float | int | None) -> ctypes.c_void_p | ctypes.c_double | ctypes.c_int64:
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p(None if argument is None else argument.data_ptr())
    return ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_int64(argument)


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None without a compiler or with `PDD_KERNELS=off`.

    They are compiled in a few seconds by the compiler in the environment variable `CXX`, else `c++`, and cached in
    `$XDG_CACHE_HOME/pdd_lightning` (by default `~/.cache`) under a name that depends on source, compiler and processor.
    The cache folder must be private to the user, and a library that does not match its checksum is compiled again.
    Without such a folder, they are compiled for this process alone.
    """
    switch = os.environ.get(SWITCH, "on")
    if switch.lower() in ("off", "0", "false", "no"):
        logger.info("Fused CPU kernels: off (%s=%s)", SWITCH, switch)
        return None
    try:
        return _load()
    except Exception as error:  # torch's own operations work in any case
        logger.warning("Fused CPU kernels: none, so that networks use torch's own operations (%s)", _reason(error))
        return None


def _load() -> ctypes.CDLL:
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    executable = shutil.which(compiler[0])
    if executable is None:
        raise OSError(f"there is no compiler {compiler[0]!r}; name one in the environment variable CXX")
    compiler[0] = str(Path(executable).absolute())
    name = f"kernels_{_key(compiler)}.so"
    try:
        path = _private_folder() / name
        _compile_once(compiler, path)
        kernels = _open(path)
        logger.info("Fused CPU kernels: %s", path)
        return kernels
    except (OSError, RuntimeError) as error:
        logger.warning("Fused CPU kernels: compiled for this process alone, which takes some seconds: %s", error)
    _remove_unfinished(Path(tempfile.gettempdir()), older_than=2 * _TIMEOUT_SECONDS)
    with tempfile.TemporaryDirectory(prefix=_BUILD_PREFIX) as folder:
        return _open(_build(compiler, Path(folder)))


def _open(path: Path) -> ctypes.CDLL:
    # OpenMP's symbols resolve to those of torch's library, which is already loaded: the threads of a second library
    # would interfere. With RTLD_NOW, missing symbols are an error here rather than at the first call.
    return ctypes.CDLL(str(path), mode=os.RTLD_NOW)


def _private_folder() -> Path:
    """Return the cache folder, to which only the user can write; create it if necessary.

    Raises:
        OSError: The folder is not private.
        RuntimeError: The user has no home.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the XDG Base Directory Specification ignores it
        base = Path.home() / ".cache"
    if not base.is_absolute():
        raise OSError(f"HOME is no absolute path: {base.parent}")
    for parent in (*reversed(base.parents), base):
        parent.mkdir(exist_ok=True, mode=0o700)
    folder = base.resolve() / "pdd_lightning"
    folder.mkdir(exist_ok=True, mode=0o700)
    trusted = {os.geteuid(), Path("/").stat().st_uid}
    for parent in folder.parents:
        status = parent.lstat()
        if status.st_uid not in trusted or (status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX):
            raise OSError(f"others can replace the content of {parent}")
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & _WRITABLE_BY_OTHERS:
        raise OSError(f"{folder} is a link, belongs to another user, or others can write to it: remove it")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        folder.chmod(0o700)
    return folder


def _compile_once(compiler: list[str], path: Path) -> None:
    """Compile the library unless the cached one is intact; other processes wait for it.

    Raises:
        OSError: It cannot be written or locked.
    """
    if _is_intact(path):
        return
    with FileLock(path.with_name("lock"), timeout=_TIMEOUT_SECONDS):
        if _is_intact(path):
            return
        why = "again, since the cached library does not match its checksum" if path.exists() else "once"
        logger.info("Fused CPU kernels: compiling them %s, which takes some seconds", why)
        _remove_unfinished(path.parent)
        with tempfile.TemporaryDirectory(prefix=_BUILD_PREFIX, dir=path.parent) as folder:
            built = _build(compiler, Path(folder))
            checksum = built.with_suffix(".sha256")
            checksum.write_text(hashlib.sha256(built.read_bytes()).hexdigest())
            for file in (built, checksum):
                file.chmod(0o600)
                target = path.with_suffix(file.suffix)
                if target.is_dir() and not target.is_symlink():
                    shutil.rmtree(target)
                file.replace(target)


def _build(compiler: list[str], folder: Path) -> Path:
    """Compile the library in a temporary folder."""
    # Temporary files of killed compilers are removed with the folder.
    options = {"cwd": folder, "env": {**os.environ, "TMPDIR": str(folder)}}
    run = partial(subprocess.run, check=True, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, **options)
    with ThreadPoolExecutor() as pool:
        list(pool.map(run, ([*compiler, *_COMPILE.split(), str(source)] for source in SOURCES)))
    # Linking with -fopenmp would load the compiler's own OpenMP library.
    run([*compiler, "-shared", *(f"{source.stem}.o" for source in SOURCES), "-o", "kernels.so"])
    return folder / "kernels.so"


def _remove_unfinished(parent: Path, older_than: float = 0) -> None:
    """Remove build folders of killed processes of this user that are older than some seconds."""
    for folder in parent.glob(f"{_BUILD_PREFIX}*"):
        with suppress(OSError):
            status = folder.lstat()
            is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
            if is_own and time.time() - status.st_mtime >= older_than:
                shutil.rmtree(folder)


def _is_intact(path: Path) -> bool:
    """Return whether a library matches its checksum: loading a damaged one could crash the process."""
    try:
        digest = hashlib.sha256(_read_private(path)).hexdigest()
        return _read_private(path.with_suffix(".sha256")) == digest.encode()
    except OSError:
        return False


def _read_private(path: Path) -> bytes:
    """Read a regular file to which only the user can write; do not follow links or block."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & _WRITABLE_BY_OTHERS:
            raise OSError(f"{path} is not a private file of this user")
        return file.read(_MAX_LIBRARY_BYTES)


def _key(compiler: list[str]) -> str:
    version = subprocess.run(
        [*compiler, "--version"], check=True, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS
    )
    sources = [file.read_text() for file in sorted([*SOURCES, *FOLDER.glob("*.h")])]
    # Machines may share the folder.
    facts = [*sources, _COMPILE, version.stdout, torch.__version__, platform.machine(), _processor()]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Return the processor's feature flags."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    return next((line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), "")


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = (error.stderr or "").strip().splitlines()
        return f"{shlex.join(error.cmd[:1])} failed: {lines[0] if lines else 'without a message'}"
    return str(error)
