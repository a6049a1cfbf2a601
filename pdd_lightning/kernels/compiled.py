"""Compiles the package's C++ when it is first needed, keeps the result for later processes, and calls it."""

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
"""The types that kernels exist for, and what they are called in their names."""
_shapes_only = ContextVar("shapes_only", default=False)
# Nobody looks at the processor's flags of floating-point errors. With them, GCC would choose between values by jumps on
# processors without masked vectors (AVX2), number by number: 3 times the time of an iteration, for the same result.
_COMPILE = "-O3 -march=native -fno-trapping-math -std=c++17 -fPIC -fopenmp -c"
_BUILD = "pdd_lightning_build_"
_SECONDS = 600  # on a busy machine, too
_MOST_BYTES = 2**26
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def call(kernel: str, typed: Tensor, sizes: Sequence[int], *arguments: Tensor | float | int | None) -> None:
    """Call a kernel.

    Args:
        kernel: Its name without the type.
        typed: A tensor of the type that it is called for.
        sizes: Its first argument, a struct of integers.
        arguments: The rest: tensors, as pointers to their first number (None is a null pointer), and numbers.
    """
    if not _shapes_only.get():
        _function(kernel, typed.dtype)((ctypes.c_int64 * len(sizes))(*sizes), *map(_argument, arguments))


def query(kernel: str, typed: Tensor, sizes: Sequence[int]) -> int:
    """Return the integer that a function of sizes gives for the type of a tensor."""
    if _shapes_only.get():
        return 1
    return int(_function(kernel, typed.dtype, ctypes.c_int64)((ctypes.c_int64 * len(sizes))(*sizes)))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Have kernels leave their results as they are, for tensors without data."""
    token = _shapes_only.set(True)
    try:
        yield
    finally:
        _shapes_only.reset(token)


def empty_maps(tensor: Tensor, *shape: int) -> Tensor:
    """Return memory for maps `[N, C, H, W]`, channels-last, of a tensor's type and device."""
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=torch.channels_last)


@cache
def _function(kernel: str, dtype: torch.dtype, result: Any = None) -> Callable[..., Any]:
    """The kernel for a type, which the library has a pointer to."""
    address = ctypes.c_void_p.in_dll(library(), f"{kernel}_{TYPES[dtype]}")  # type: ignore[arg-type]
    return ctypes.CFUNCTYPE(result)(address.value)  # type: ignore[arg-type]


def _argument(argument: Tensor | float | int | None) -> ctypes.c_void_p | ctypes.c_double | ctypes.c_int64:
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p(None if argument is None else argument.data_ptr())
    return ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_int64(argument)


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where there are none, and say once which it is.

    They are made with the compiler that the environment variable `CXX` names, else `c++`, in a few seconds, and kept in
    `$XDG_CACHE_HOME/pdd_lightning` (by default `~/.cache`) under a name that depends on source, compiler and processor.
    That folder must be the user's own, and what is kept must fit its checksum, or it is compiled again. Where there is
    no such folder, they are compiled for this process alone.
    Without a compiler, or with `PDD_KERNELS=off`, the same is computed by torch's own operations.
    """
    switch = os.environ.get(SWITCH, "on")
    if switch.lower() in ("off", "0", "false", "no"):
        logger.info("Fused CPU kernels: off (%s=%s)", SWITCH, switch)
        return None
    try:
        return _load()
    except Exception as error:  # whatever it is, torch can do without
        logger.warning("Fused CPU kernels: none, so that networks take torch's own operations (%s)", _reason(error))
        return None


def _load() -> ctypes.CDLL:
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    found = shutil.which(compiler[0])
    if found is None:
        raise OSError(f"there is no compiler {compiler[0]!r}; name one in the environment variable CXX")
    compiler[0] = str(Path(found).absolute())
    name = f"kernels_{_key(compiler)}.so"
    try:
        path = _own_folder() / name
        kernels = _open(_kept(compiler, path))
        logger.info("Fused CPU kernels: %s", path)
        return kernels
    except (OSError, RuntimeError) as error:
        logger.warning("Fused CPU kernels: compiled for this process alone, which takes some seconds: %s", error)
    _remove_unfinished(Path(tempfile.gettempdir()), older_than=2 * _SECONDS)
    with tempfile.TemporaryDirectory(prefix=_BUILD) as folder:
        return _open(_build(compiler, Path(folder)))


def _open(path: Path) -> ctypes.CDLL:
    # Torch's own OpenMP library, loaded already, is found by its names: a second one's threads would get in the way.
    # Names that are missing are an error now, not at the first call.
    return ctypes.CDLL(str(path), mode=os.RTLD_NOW)


def _own_folder() -> Path:
    """The folder for libraries, which nobody but the user can have written to; made if need be.

    Raises:
        OSError: What is wrong with it.
        RuntimeError: The user has no home.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # to be ignored, by the XDG Base Directory Specification
        base = Path.home() / ".cache"
    if not base.is_absolute():
        raise OSError(f"HOME is no absolute path: {base.parent}")
    for parent in (*reversed(base.parents), base):
        parent.mkdir(exist_ok=True, mode=0o700)
    folder = base.resolve() / "pdd_lightning"
    folder.mkdir(exist_ok=True, mode=0o700)
    trusted = {os.geteuid(), Path("/").stat().st_uid}
    for parent in folder.parents:
        facts = parent.lstat()
        if facts.st_uid not in trusted or (facts.st_mode & stat.S_IWOTH and not facts.st_mode & stat.S_ISVTX):
            raise OSError(f"others can replace what is in {parent}")
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & _WRITABLE_BY_OTHERS:
        raise OSError(f"{folder} is a link, belongs to another user, or others can write to it: remove it")
    if facts.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        folder.chmod(0o700)
    return folder


def _kept(compiler: list[str], path: Path) -> Path:
    """The library at a path, compiled if it is not there as it was compiled; one process does, others wait for it.

    Raises:
        OSError: It cannot be written or locked.
    """
    if _fits(path):
        return path
    with FileLock(path.with_name("lock"), timeout=_SECONDS):
        if _fits(path):
            return path
        why = "again, since what was kept does not fit its checksum" if path.exists() else "once"
        logger.info("Fused CPU kernels: compiling them %s, which takes some seconds", why)
        _remove_unfinished(path.parent)
        with tempfile.TemporaryDirectory(prefix=_BUILD, dir=path.parent) as folder:
            built = _build(compiler, Path(folder))
            checksum = built.with_suffix(".sha256")
            checksum.write_text(hashlib.sha256(built.read_bytes()).hexdigest())
            for file in (built, checksum):
                file.chmod(0o600)
                place = path.with_suffix(file.suffix)
                if place.is_dir() and not place.is_symlink():
                    shutil.rmtree(place)
                file.replace(place)
    return path


def _build(compiler: list[str], folder: Path) -> Path:
    """Compile the library in a folder of the process's own."""
    # Compilers that are killed leave what they keep for themselves.
    places = {"cwd": folder, "env": {**os.environ, "TMPDIR": str(folder)}}
    run = partial(subprocess.run, check=True, capture_output=True, text=True, timeout=_SECONDS, **places)
    with ThreadPoolExecutor() as pool:
        list(pool.map(run, ([*compiler, *_COMPILE.split(), str(source)] for source in SOURCES)))
    # Linked without -fopenmp, which would bring the compiler's own OpenMP library.
    run([*compiler, "-shared", *(f"{source.stem}.o" for source in SOURCES), "-o", "kernels.so"])
    return folder / "kernels.so"


def _remove_unfinished(parent: Path, older_than: float = 0) -> None:
    """Remove the folders of this user's processes that were killed while they compiled, by their age in seconds."""
    for folder in parent.glob(f"{_BUILD}*"):
        with suppress(OSError):
            facts = folder.lstat()
            own = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid()
            if own and time.time() - facts.st_mtime >= older_than:
                shutil.rmtree(folder)


def _fits(path: Path) -> bool:
    """Whether a library is as it was compiled: loading a damaged one could end the process."""
    try:
        digest = hashlib.sha256(_own_bytes(path)).hexdigest()
        return _own_bytes(path.with_suffix(".sha256")) == digest.encode()
    except OSError:
        return False


def _own_bytes(path: Path) -> bytes:
    """Read a file of the user's own; not a link, and nothing that reading waits for."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & _WRITABLE_BY_OTHERS:
            raise OSError(f"{path} is no file of this user alone")
        return file.read(_MOST_BYTES)


def _key(compiler: list[str]) -> str:
    version = subprocess.run([*compiler, "--version"], check=True, capture_output=True, text=True, timeout=_SECONDS)
    sources = [file.read_text() for file in sorted([*SOURCES, *FOLDER.glob("*.h")])]
    # The folder may be shared by different machines.
    facts = [*sources, _COMPILE, version.stdout, torch.__version__, platform.machine(), _processor()]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What the processor says that it can do, as words."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    return next((line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), "")


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = (error.stderr or "").strip().splitlines()
        return f"{shlex.join(error.cmd[:1])} failed: {lines[0] if lines else 'without a message'}"
    return str(error)
