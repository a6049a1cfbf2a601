"""Memory of this process: how freed blocks are kept, and how much memory a device has."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import torch

# Numbers of glibc's options in malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 32 << 20
_CONTAINER_LIMITS = [Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory/memory.limit_in_bytes")]


def keep_freed_memory() -> bool:
    """Makes the C library keep freed blocks of up to 32 MiB for later use by this process; returns whether it does.

    By default glibc soon gives freed memory back to the system, so that every map of a network costs page faults anew:
    a tenth of the time of training a small ConvNet on a CPU. For programs such as the `pdd` command, since it concerns
    the whole process. Does nothing with other C libraries, and where the environment says how memory is to be handled
    (`MALLOC_..`, `GLIBC_TUNABLES`).
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    limits = {_MMAP_THRESHOLD: _LARGEST, _TRIM_THRESHOLD: 2**31 - 1}
    return all(mallopt(option, ctypes.c_int(value)) == 1 for option, value in limits.items())


def total_memory(device: torch.device) -> int | None:
    """Return the bytes of memory that a device has, or a container may use; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    limits = [int(text) for path in _CONTAINER_LIMITS if (text := _content(path)).isdigit()]
    return min(physical, *limits)


def _content(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
