"""The base class of commands, and parsing of their arguments."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from inspect import isabstract
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

from pdd_lightning import data, distributed, endings, networks, stages
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.errors import ConfigError, UsageError
from pdd_lightning.files import check_writable
from pdd_lightning.networks.spec import argument_names
from pdd_lightning.shorthand import KINDS, NAMES, VERBS, did_you_mean, shipped
from pdd_lightning.stored import load_yaml

Settings = TypeVar("Settings")

_UNHELPFUL_LINES = ("Subtypes:", "Errors:", "Given value", "Does not validate", "Expected NoneType")
"""Beginnings of lines in the parser's messages that do not help the user."""
_TRAINER = "Customize every aspect of training via flags"
"""Title of Lightning's options in the help."""
_CLASSES: dict[str, tuple[Any, type]] = {
    "data": (data, RealDataModule),
    "method": (stages, stages.DistillationStage),
    "network": (networks, nn.Module),
}
"""The package and the base of the classes of a kind."""
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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

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
        """Raise an error that says what is wrong in one line.

        Raises:
            UsageError: Always, unless the package's own error says it.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        if cause := endings.user_error(ex):
            raise cause
        raise UsageError(self._unknown_name(message) or self._in_one_line(message)) from ex

    def _in_one_line(self, message: str) -> str:
        *outer, last = re.split(r'Parser key "([\w.]+)":', re.sub(r"(a )?<class '(\w+)'>", r"\2", message))
        message = f"--{'.'.join(outer[1::2])}:{last}" if outer else last
        lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
        reasons = "; ".join(line for line in lines if line and not line.startswith(_UNHELPFUL_LINES)).replace(":;", ":")
        return f"{reasons}; `{self.prog.replace('[options] ', '')} --help` shows the options"

    def _unknown_name(self, message: str) -> str:
        """Say which option, argument of a class, or class is not known, and what may have been meant."""
        if match := re.search(r"unrecognized arguments: (--[\w.]+)", message):
            options = [name for name in self._option_string_actions if not name.endswith((".help", "+"))]
            return f"there is no option {match[1]}: {did_you_mean(match[1], options) or f'see `{self.prog} --help`'}"
        classes = re.findall(r"class_path[ =]'([\w.]+)'", message)
        kind = locate(classes[-1]) if classes else None
        if isinstance(kind, type) and (match := re.search(r"Option '([\w.]+)' is not accepted", message)):
            names = argument_names(kind)
            advice = did_you_mean(match[1], names) or f"choose from {', '.join(names)}"
            return f"{classes[-1].rpartition('.')[2]} has no argument {match[1]}: {advice}"
        if "required: fit.data.real" in message or "RealDataModule is abstract" in message:
            return "name a recipe, such as `pdd fit digits_mtt --folder runs/a`: `pdd recipes` lists them"
        keys = re.findall(r'Parser key "([\w.]+)"', message)
        if KINDS.get(keys[-1] if keys else "") in _CLASSES and (
            match := re.search(r"Expected a path but (\w+) either", message)
        ):
            what = KINDS[keys[-1]]
            names = [*shipped(what), *classes_of(what)]
            advice = did_you_mean(match[1], names) or f"choose from {', '.join(names)}, or name a class or a YAML file"
            return f"there is no {NAMES.get(what, what)} {match[1]}: {advice}"
        if match := re.search(r"argument subcommand: invalid choice: '(.*?)'", message):
            return f"there is no command {match[1]}: {did_you_mean(match[1], VERBS) or '`pdd --help` lists them'}"
        if match := re.search(r"arguments are required: ([\w, ]+)$", message):
            dashed = {name.removeprefix("--"): name for name in self._option_string_actions}
            names = [dashed.get(name, name) for name in match[1].split(", ")]
            return f"missing {' and '.join(names)}; see `{self.prog} --help`"
        return ""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Format the help: the package's own options first, and without lists of every class that is imported."""
        self._action_groups = sorted(self._action_groups, key=lambda group: group.title == _TRAINER)
        return re.sub(r",\s+known\s+subclasses:[^)]*\)", ")", super().format_help(*args, **kwargs))


def classes_of(kind: str) -> dict[str, type]:
    """Return the package's classes of a kind (data, method, network), by name."""
    module, base = _CLASSES[kind]
    members = [getattr(module, name) for name in module.__all__]
    return {
        each.__name__: each
        for each in members
        if isinstance(each, type) and issubclass(each, base) and not isabstract(each)
    }


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
