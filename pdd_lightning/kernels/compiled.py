"""Compiles the package's C++ when it is first needed, keeps the result for later processes, and calls it."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
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
_SECONDS = 600  # on a busy machine, too


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
    Without a compiler, or with `PDD_KERNELS=off`, the same is computed by torch's own operations.
    """
    switch = os.environ.get(SWITCH, "on")
    if switch.lower() in ("off", "0", "false", "no"):
        logger.info("Fused CPU kernels: off (%s=%s)", SWITCH, switch)
        return None
    try:
        kernels = _load()
    except Exception as error:  # whatever it is, torch can do without
        logger.warning("Fused CPU kernels: none, so that networks take torch's own operations (%s)", _reason(error))
        return None
    logger.info("Fused CPU kernels: %s", kernels._name)
    return kernels


def _load() -> ctypes.CDLL:
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    found = shutil.which(compiler[0])
    if found is None:
        raise OSError(f"there is no compiler {compiler[0]!r}; name one in the environment variable CXX")
    compiler[0] = str(Path(found).absolute())
    path = _folder() / f"kernels_{_key(compiler)}.so"
    if not path.exists():
        logger.info("Fused CPU kernels: compiling them, once, which takes some seconds")
        _build(compiler, path)
    # Torch's own OpenMP library, loaded already, is found by its names: a second one's threads would get in the way.
    # Names that are missing are an error now, not at the first call.
    try:
        return ctypes.CDLL(str(path), mode=os.RTLD_NOW)
    except OSError:
        path.unlink(missing_ok=True)  # damaged, perhaps
        raise


def _build(compiler: list[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        run = partial(subprocess.run, check=True, capture_output=True, text=True, timeout=_SECONDS, cwd=folder)
        with ThreadPoolExecutor() as pool:
            list(pool.map(run, ([*compiler, *_COMPILE.split(), str(source)] for source in SOURCES)))
        # Linked without -fopenmp, which would bring the compiler's own OpenMP library.
        run([*compiler, "-shared", *(f"{source.stem}.o" for source in SOURCES), "-o", "kernels.so"])
        Path(folder, "kernels.so").replace(path)  # whole or absent, also where several processes do the same


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base, "pdd_lightning")


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
