"""One step of a study: a command line, and what is known of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pdd_lightning.errors import ConfigError, DamagedFileError
from pdd_lightning.files import atomic_write_json


@dataclass(frozen=True)
class Step:
    """A command line of `pdd` that can be repeated by hand.

    Attributes:
        name: Unique in the study; also the names of its log and record, so it may contain `/`.
        words: What follows `pdd`.
        after: Names of the steps whose output it needs.
    """

    name: str
    words: tuple[str, ...]
    after: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command line for a reader to repeat."""
        return shlex.join(["pdd", *self.words])


@dataclass(frozen=True)
class StepRecord:
    """What is known of a step that was begun.

    Attributes:
        words: What followed `pdd`.
        seconds: Wall-clock time of all its starts together, as far as they ended in an orderly way.
        exit: Exit status of the last start; None while it runs and when it was interrupted.
    """

    words: list[str]
    seconds: float = 0.0
    exit: int | None = None

    @property
    def done(self) -> bool:
        """Whether it ended well."""
        return self.exit == 0

    @property
    def failed(self) -> bool:
        """Whether it ended by itself, but not well."""
        return self.exit not in (None, 0)

    def write(self, path: Path) -> None:
        """Stores the record, whole or not at all."""
        atomic_write_json(path, asdict(self))

    @staticmethod
    def read(path: Path) -> StepRecord | None:
        """The record of a step, or None where it was never begun.

        Raises:
            DamagedFileError: The file holds no record.
        """
        if not path.exists():
            return None
        try:
            return StepRecord(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise DamagedFileError(f"{path} is damaged ({error}): delete it to run the step again") from error


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Options by dotted name as words: `{"stages.iterations": 5}` gives `--stages.iterations 5`."""
    return [word for name, value in options.items() for word in (f"--{name}", _text(value))]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def distinct(steps: Sequence[Step]) -> list[Step]:
    """The steps without repetitions, checked: a name stands for one command line.

    Raises:
        ConfigError: Two different steps have the same name.
    """
    by_name: dict[str, Step] = {}
    for step in steps:
        if by_name.setdefault(step.name, step) != step:
            raise ConfigError(f"two different steps would be called {step.name}: give the methods different names")
    return list(by_name.values())
