"""Errors that a user can act on: each says what was wrong and what to do."""

from __future__ import annotations

from typing import Any

_MAX = 10**9


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
    """Return one line per setting that differs in nested dictionaries: `name: stored on disk, wanted asked for`."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        lines = []
        for key in sorted({*stored, *wanted}):
            lines += differences(stored.get(key), wanted.get(key), f"{name}.{key}" if name else key)
        return lines
    return [] if stored == wanted else [f"{name}: {stored!r} on disk, {wanted!r} asked for"]


def check_at_least(least: int, **values: float | None) -> None:
    """Check that settings are at least `least`, and at most a billion; those that are None are ignored.

    Raises:
        ConfigError: With the name of the setting.
    """
    for name, value in values.items():
        _check(value is None or value >= least, name, f">= {least}", value)
        _check(value is None or value <= _MAX, name, f"<= {_MAX:,}", value)


def check_seed(**values: int) -> None:
    """Check that seeds suit all random number generators.

    Raises:
        ConfigError: With the name of the setting.
    """
    for name, value in values.items():
        good = not isinstance(value, bool) and 0 <= value < 2**32
        _check(good, name, f"a number from 0 to {2**32 - 1}", value)


def check_positive(**values: float | None) -> None:
    """Check that settings are positive and finite; those that are None are ignored.

    Raises:
        ConfigError: With the name of the setting.
    """
    for name, value in values.items():
        _check(value is None or 0 < value < float("inf"), name, "> 0 and finite", value)


def check_momentum(**values: float) -> None:
    """Check that momenta are in [0, 1).

    Raises:
        ConfigError: With the name of the setting.
    """
    for name, value in values.items():
        _check(0 <= value < 1, name, "in [0, 1)", value)


def _check(good: bool, name: str, expected: str, value: float | None) -> None:
    if not good:
        long = isinstance(value, int) and abs(value) >= 10**20
        raise ConfigError(f"{name} must be {expected}, got {'one of more than 20 digits' if long else value}")
