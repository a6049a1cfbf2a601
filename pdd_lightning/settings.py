"""Comparing settings that were stored with those that are asked for."""

from __future__ import annotations

from typing import Any


def differences(stored: Any, wanted: Any, name: str = "") -> list[str]:
    """One line per setting that differs: `name: stored on disk, wanted asked for`, for nested dictionaries."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        lines = []
        for key in sorted({*stored, *wanted}):
            lines += differences(stored.get(key), wanted.get(key), f"{name}.{key}" if name else key)
        return lines
    return [] if stored == wanted else [f"{name}: {stored!r} on disk, {wanted!r} asked for"]
