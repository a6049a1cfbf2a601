"""What a command line verb beside Lightning's is."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jsonargparse import ArgumentParser, Namespace

from pdd_lightning import distributed
from pdd_lightning.errors import ConfigError

Settings = TypeVar("Settings")


class ShortHelp(ArgumentParser):
    """Help without the list of every network class that happens to be imported, which is several pages long."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The help without that list."""
        return re.sub(r",\s+known\s+subclasses:[^)]*\)", ")", super().format_help(*args, **kwargs))


class Command(ABC):
    """A verb of the command line that needs neither a method nor a trainer.

    Attributes:
        name: The verb.
        help: One sentence that says what it does.
    """

    name: ClassVar[str]
    help: ClassVar[str]

    def parser(self) -> ArgumentParser:
        """The parser of its arguments."""
        parser = ShortHelp(prog=f"pdd {self.name}", description=self.help)
        self.add_arguments(parser)
        return parser

    def main(self, words: Sequence[str]) -> None:
        """Parses what follows the verb, and does it, on several processes where `--processes` says so."""
        options = self.parser().parse_args(list(words))
        distributed.on_processes(options.get("processes", 1), partial(self._run, list(words)))

    def _run(self, words: list[str]) -> None:
        parser = self.parser()
        self.run(parser.instantiate(parser.parse_args(words)))

    @abstractmethod
    def add_arguments(self, parser: ArgumentParser) -> None:
        """Adds the arguments."""

    @abstractmethod
    def run(self, options: Namespace) -> None:
        """Does it, with classes instantiated.

        Raises:
            PDDError: Bad input; its message is all that the user sees.
        """


def settings_of(kind: type[Settings], options: Namespace) -> Settings:
    """The settings, a dataclass, among parsed options."""
    return kind(**{field.name: options[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def device_of(name: str) -> torch.device:
    """The device of that name, if this machine has it; processes take the GPUs in turn unless one is named.

    Raises:
        ConfigError: It has not.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        name = f"cuda:{distributed.rank() % torch.cuda.device_count()}"
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name} cannot be used here ({reason}): choose cpu or auto") from error


def check_file_names(options: Namespace, *names: str) -> None:
    """Refuses output options that name a folder, before anything is computed.

    Raises:
        ConfigError: One does.
    """
    for name in names:
        if options.get(name) and Path(options[name]).is_dir():
            raise ConfigError(f"--{name} {options[name]} is a folder: name a file")
