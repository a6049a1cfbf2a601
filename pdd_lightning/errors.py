"""Errors that a user can act on: each says what was wrong and what to do."""

from __future__ import annotations

from typing import Any

_MOST = 10**9


class PDDError(ValueError):
    """Bad input or a damaged file; the message names the cause and the remedy.

    The command line prints the message alone (no traceback) and exits with status 1.
    """


class ConfigError(PDDError):
    """A setting, or a combination of settings, cannot work."""


class UsageError(ConfigError):
    """An option, or its value, is unknown; the command line exits with status 2."""


class DataError(PDDError):
    """A dataset is missing, too small, or not the one that was expected."""


class DamagedFileError(PDDError):
    """A stored file is truncated or altered."""


class NonFiniteLossError(PDDError):
    """The matching loss became infinite or not a number."""


class StudyError(PDDError):
    """Steps of a study failed."""


class KernelError(PDDError):
    """What was asked of a ConvNet's CPU kernels is beyond them."""


class ProcessError(PDDError):
    """Another process that shares the work ended before it was done."""


def differences(stored: Any, wanted: Any, name: str = "") -> list[str]:
    """One line per setting that differs: `name: stored on disk, wanted asked for`, for nested dictionaries."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        lines = []
        for key in sorted({*stored, *wanted}):
            lines += differences(stored.get(key), wanted.get(key), f"{name}.{key}" if name else key)
        return lines
    return [] if stored == wanted else [f"{name}: {stored!r} on disk, {wanted!r} asked for"]


def check_at_least(least: int, **values: float | None) -> None:
    """Refuses settings below the least value; those that are None are left out.

    Raises:
        ConfigError: With the name of the setting. It may not be more than a billion either, which no machine can do.
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ConfigError(f"{name} must be >= {least}, got {_short(value)}")
        if value is not None and value > _MOST:
            raise ConfigError(f"{name} must be <= {_MOST:,}, got {_short(value)}")


def check_seed(**values: int) -> None:
    """Refuses seeds that random number generators do not take.

    Raises:
        ConfigError: With the name of the setting.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not 0 <= value < 2**32:
            raise ConfigError(f"{name} must be a number from 0 to {2**32 - 1}, got {_short(value)}")


def _short(value: float) -> str:
    """A number, unless it has very many digits."""
    return str(value) if isinstance(value, float) or abs(value) < 10**20 else "one of more than 20 digits"


def check_positive(**values: float | None) -> None:
    """Refuses settings that are not positive; those that are None are left out.

    Raises:
        ConfigError: With the name of the setting.
    """
    for name, value in values.items():
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{name} must be > 0 and finite, got {_short(value)}")


def check_momentum(**values: float) -> None:
    """Refuses momenta out of [0, 1).

    Raises:
        ConfigError: With the name of the setting.
    """
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ConfigError(f"{name} must be in [0, 1), got {value}")
