"""One step of a study: a command line, and what is known of it."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pdd_lightning.errors import ConfigError, DamagedFileError
from pdd_lightning.files import atomic_write_json
from pdd_lightning.settings import differences


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

    def settings(self) -> dict[str, str]:
        """Hash of what each YAML file among the words says, with the files that it names; comments do not count."""
        return {word: _hash_of(Path(word)) for word in self.words if _is_settings(Path(word))}


@dataclass(frozen=True)
class StepRecord:
    """What is known of a step that was begun.

    Attributes:
        words: What followed `pdd`.
        seconds: Wall-clock time of all its starts together, as far as they ended in an orderly way.
        exit: Exit status of the last start; None while it runs and when it was interrupted.
        settings: `Step.settings` at the last start.
    """

    words: list[str]
    seconds: float = 0.0
    exit: int | None = None
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether it ended well."""
        return self.exit == 0

    @property
    def failed(self) -> bool:
        """Whether it ended by itself, but not well."""
        return self.exit not in (None, 0)

    def changes(self, step: Step) -> list[str]:
        """What was run otherwise: a line for each word that differs, or else for each YAML file that was changed."""
        now = step.settings()
        files = [name for name, stored in self.settings.items() if now.get(name) != stored]
        words = differences(_options(self.words), _options(step.words))
        return words or [f"{name} says something else now" for name in files]

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


def _options(words: Sequence[str]) -> dict[str, str]:
    """Words as options by name, to compare them; the verb and positional words go by their place."""
    options: dict[str, str] = {}
    remaining = list(enumerate(words))
    while remaining:
        place, word = remaining.pop(0)
        if word.startswith("--") and remaining:
            options[word] = remaining.pop(0)[1]
        else:
            options[f"word {place + 1}"] = word
    return options


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _is_settings(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml") and path.is_file()


def _hash_of(path: Path) -> str:
    text = path.read_bytes()
    try:
        content = json.dumps(_resolved(yaml.safe_load(text), path.parent), default=str, sort_keys=True).encode()
    except (yaml.YAMLError, TypeError):  # the step itself will say what is wrong with it
        content = text
    return hashlib.sha256(content).hexdigest()


def _resolved(value: Any, folder: Path) -> Any:
    """Settings with the hash of each file that they name, relative to `folder`, in the place of its name."""
    if isinstance(value, dict):
        return {name: _resolved(one, folder) for name, one in value.items()}
    if isinstance(value, list):
        return [_resolved(one, folder) for one in value]
    return _hash_of(folder / value) if isinstance(value, str) and _is_settings(folder / value) else value


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
