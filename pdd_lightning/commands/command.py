"""The base class of commands, and parsing of their arguments."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from pydoc import locate
from typing import Any, ClassVar, NoReturn, TypeVar

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader, set_parsing_settings
from jsonargparse import Path as ConfigFile  # type: ignore[attr-defined]
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import LayerSync, Precision
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from torch import nn

from pdd_lightning import distributed, endings
from pdd_lightning.errors import ConfigError
from pdd_lightning.files import check_writable
from pdd_lightning.shorthand import VERBS
from pdd_lightning.stored import load_yaml

Settings = TypeVar("Settings")

_UNHELPFUL_LINES = ("Subtypes:", "Errors:", "Given value type:", "Does not validate", "Expected a <class 'NoneType'>")
_ALLOWED_CLASSES = (
    nn.Module, LightningDataModule, Callback, Logger, Profiler, Strategy, Accelerator, Precision, ClusterEnvironment,
    CheckpointIO, LayerSync,
)  # fmt: skip
"""Base classes of what a configuration may name."""


def _load_limited_yaml(text: str, **options: Any) -> Any:
    return load_yaml(text, partial(_load_yaml, **options))


_load_yaml = get_loader("yaml")
set_loader("yaml", _load_limited_yaml, exceptions=(yaml.YAMLError,))
# Values of arguments of any type are not instantiated.
set_parsing_settings(instantiate_subclass_spec_in_any=False)


class Parser(ArgumentParser):
    """A parser that checks which classes are named, with short error messages and help."""

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse arguments without calling what they name.

        Raises:
            ConfigError: They name anything but classes of networks, data, callbacks and other parts of a run, or a
                configuration file is not text.
        """
        try:
            options = super().parse_args(*args, **kwargs)
        except UnicodeDecodeError as error:
            raise ConfigError(f"a configuration is not text in UTF-8 ({error}): correct --config") from error
        check_classes(options)
        return options

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with status 2, and print the reason in one line unless it is an error of this package."""
        if not self.exit_on_error:
            super().error(message, ex)
        if endings.user_error(ex) is None:
            lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
            reasons = "; ".join(line for line in lines if line and not line.startswith(_UNHELPFUL_LINES))
            sys.stderr.write(f"pdd: error: {reasons.replace(':;', ':')}; see `{self.prog} --help`\n")
        raise SystemExit(2) from ex

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Return the help without the long list of all network classes that are imported."""
        return re.sub(r",\s+known\s+subclasses:[^)]*\)", ")", super().format_help(*args, **kwargs))


def check_classes(value: Any) -> None:
    """Refuse functions, and classes that are not part of a run, in parsed options.

    Raises:
        ConfigError: There are some.
    """
    value = named = vars(value) if isinstance(value, Namespace) else value
    if isinstance(value, dict) and isinstance(path := value.get("class_path"), str):
        named = locate(path)
        if isinstance(named, type) and issubclass(named, _ALLOWED_CLASSES):
            named = None
    if callable(named) and not isinstance(named, ConfigFile):
        name = f"{getattr(named, '__module__', '')}.{getattr(named, '__qualname__', type(named).__name__)}"
        raise ConfigError(
            f"{name} is no class of networks, data, callbacks, loggers or other parts of a run: a configuration names"
            " no other classes, and no functions"
        )
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ():
        check_classes(item)


class Command(ABC):
    """A command that needs neither a method nor a trainer.

    Attributes:
        name: Name of the command, one of `pdd_lightning.shorthand.VERBS`.
    """

    name: ClassVar[str]

    @property
    def help(self) -> str:
        """A sentence that says what the command does."""
        return VERBS[self.name]

    def parser(self) -> ArgumentParser:
        """Return the parser of its arguments."""
        parser = Parser(prog=f"pdd {self.name}", description=self.help)
        self.add_arguments(parser)
        return parser

    def main(self, arguments: Sequence[str]) -> None:
        """Parse arguments and run the command, on several processes with `--processes`."""
        options = self.parser().parse_args(list(arguments))
        endings.advise(self.advice(options))
        distributed.on_processes(options.get("processes", 1), partial(self._run, list(arguments)))

    def _run(self, arguments: list[str]) -> None:
        parser = self.parser()
        self.run(parser.instantiate(parser.parse_args(arguments)))

    def advice(self, options: Namespace) -> str:
        """Return how to continue after an interruption."""
        return "Nothing was replaced; start the same command again."

    @abstractmethod
    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the arguments."""

    @abstractmethod
    def run(self, options: Namespace) -> None:
        """Run the command, with classes instantiated.

        Raises:
            PDDError: Bad input; the user sees its message only.
        """


def settings_of(kind: type[Settings], options: Namespace) -> Settings:
    """Return the settings, a dataclass, among parsed options."""
    return kind(**{field.name: options[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def device_of(name: str) -> torch.device:
    """Return the device of a name; processes take the GPUs in turn unless one is named.

    Raises:
        ConfigError: This machine has no such device.
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


def check_outputs(options: Namespace, *names: str) -> None:
    """Check, before anything is computed, that output options name files that can be written.

    Raises:
        ConfigError: One names a folder.
        OSError: One cannot be written.
    """
    for name in names:
        if options.get(name):
            if Path(options[name]).is_dir():
                raise ConfigError(f"--{name} {options[name]} is a folder: name a file")
            check_writable(Path(options[name]))
