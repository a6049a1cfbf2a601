"""What a command line verb beside Lightning's is."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from importlib import import_module
from pathlib import Path
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


_NO_REASON = ("Subtypes:", "Errors:", "Given value type:", "Does not validate", "Expected a <class 'NoneType'>")


_MAY_BE_NAMED = (
    nn.Module,
    LightningDataModule,
    Callback,
    Logger,
    Profiler,
    Strategy,
    Accelerator,
    Precision,
    ClusterEnvironment,
    CheckpointIO,
    LayerSync,
)
"""Bases of the classes that a configuration may name."""


def _bounded(text: str, **options: Any) -> Any:
    return load_yaml(text, partial(_load, **options))


_load = get_loader("yaml")
set_loader("yaml", _bounded, exceptions=(yaml.YAMLError,))
# What stands where any value may stand is a value, and makes no object.
set_parsing_settings(instantiate_subclass_spec_in_any=False)


class Parser(ArgumentParser):
    """Checks what a configuration names before anything is made of it; says what is wrong in one line, help in few."""

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parses arguments; nothing that they name is called.

        Raises:
            ConfigError: They name something else than classes of networks, data, callbacks and other parts of a run,
                or a configuration file is not text.
        """
        try:
            options = super().parse_args(*args, **kwargs)
        except UnicodeDecodeError as error:
            raise ConfigError(f"a configuration is not text in UTF-8 ({error}): correct --config") from error
        check_named(options)
        return options

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the process with exit status 2, and what is wrong in one line unless the package's own error says it."""
        if not self.exit_on_error:
            super().error(message, ex)
        if endings.user_error(ex) is None:
            lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
            reasons = "; ".join(line for line in lines if line and not line.startswith(_NO_REASON))
            sys.stderr.write(f"pdd: error: {reasons.replace(':;', ':')}; `{self.prog} --help` shows what there is\n")
        raise SystemExit(2) from ex

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The help without the list of every network class that happens to be imported, which is several pages."""
        return re.sub(r",\s+known\s+subclasses:[^)]*\)", ")", super().format_help(*args, **kwargs))


def check_named(value: Any) -> None:
    """Refuses functions, and classes that are no part of a run, in parsed options.

    Raises:
        ConfigError: There are some.
    """
    value = vars(value) if isinstance(value, Namespace) else value
    named = value
    if isinstance(value, dict) and isinstance(path := value.get("class_path"), str):
        named = _imported(path)
        if isinstance(named, type) and issubclass(named, _MAY_BE_NAMED):
            named = None
    if callable(named) and not isinstance(named, ConfigFile):
        name = f"{getattr(named, '__module__', '')}.{getattr(named, '__qualname__', type(named).__name__)}"
        raise ConfigError(
            f"{name} is no class of networks, data, callbacks, loggers or other parts of a run: a configuration names"
            " no other classes, and no functions"
        )
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ():
        check_named(one)


def _imported(path: str) -> Any:
    """What a dotted name stands for; the parser has imported it already."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except ImportError:
        return getattr(_imported(module), name)


class Command(ABC):
    """A verb of the command line that needs neither a method nor a trainer.

    Attributes:
        name: The verb, one of `pdd_lightning.shorthand.VERBS`.
    """

    name: ClassVar[str]

    @property
    def help(self) -> str:
        """One sentence that says what it does."""
        return VERBS[self.name]

    def parser(self) -> ArgumentParser:
        """The parser of its arguments."""
        parser = Parser(prog=f"pdd {self.name}", description=self.help)
        self.add_arguments(parser)
        return parser

    def main(self, words: Sequence[str]) -> None:
        """Parses what follows the verb, and does it, on several processes where `--processes` says so."""
        options = self.parser().parse_args(list(words))
        endings.advise(self.advice(options))
        distributed.on_processes(options.get("processes", 1), partial(self._run, list(words)))

    def _run(self, words: list[str]) -> None:
        parser = self.parser()
        self.run(parser.instantiate(parser.parse_args(words)))

    def advice(self, options: Namespace) -> str:
        """How to go on where the verb was interrupted."""
        return "Nothing was replaced; start the same command again."

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


def check_outputs(options: Namespace, *names: str) -> None:
    """Refuses output options that name no file which can be written, before anything is computed.

    Raises:
        ConfigError: One names a folder.
        OSError: One cannot be written.
    """
    for name in names:
        if options.get(name):
            if Path(options[name]).is_dir():
                raise ConfigError(f"--{name} {options[name]} is a folder: name a file")
            check_writable(Path(options[name]))
