"""Memory of this process and of devices."""

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
    """Make glibc keep freed blocks of up to 32 MiB for this process; return whether it does.

    By default glibc soon returns freed memory to the system, so that every feature map of a network causes new page
    faults: a tenth of the time of training a small ConvNet on a CPU. For programs such as the `pdd` command, since it
    affects the whole process. Does nothing with other C libraries, and if the environment configures the allocator
    (`MALLOC_..`, `GLIBC_TUNABLES`).
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    limits = {_MMAP_THRESHOLD: _LARGEST, _TRIM_THRESHOLD: 2**31 - 1}
    return all(mallopt(option, ctypes.c_int(value)) == 1 for option, value in limits.items())


def total_memory(device: torch.device) -> int | None:
    """Return the bytes of memory that a device has, or a container may use; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    texts = [path.read_text().strip() for path in _CONTAINER_LIMITS if os.access(path, os.R_OK)]
    return min(physical, *(int(text) for text in texts if text.isdigit()))
