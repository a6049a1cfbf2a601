"""What a command line verb beside Lightning's is."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from importlib import import_module
from inspect import isabstract
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

from pdd_lightning import data, distributed, endings, networks, stages
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.errors import ConfigError, UsageError
from pdd_lightning.files import check_writable
from pdd_lightning.networks.spec import argument_names
from pdd_lightning.shorthand import KINDS, VERBS, did_you_mean, shipped
from pdd_lightning.stored import load_yaml

Settings = TypeVar("Settings")


_NO_REASON = ("Subtypes:", "Errors:", "Given value", "Does not validate", "Expected NoneType")
"""Beginnings of lines in the parser's messages that do not help the user."""
_TRAINER = "Customize every aspect of training via flags"
"""Title of Lightning's options in the help."""
_KINDS: dict[str, tuple[Any, type]] = {
    "data": (data, RealDataModule),
    "method": (stages, stages.DistillationStage),
    "network": (networks, nn.Module),
}
"""Where the classes of a kind are, and what they are derived from."""

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
        reasons = "; ".join(line for line in lines if line and not line.startswith(_NO_REASON)).replace(":;", ":")
        return f"{reasons}; `{self.prog.replace('[options] ', '')} --help` shows the options"

    def _unknown_name(self, message: str) -> str:
        """Say which option, argument of a class, or class is not known, and what may have been meant."""
        if match := re.search(r"unrecognized arguments: (--[\w.]+)", message):
            options = [name for name in self._option_string_actions if not name.endswith((".help", "+"))]
            return f"there is no option {match[1]}: {did_you_mean(match[1], options) or f'see `{self.prog} --help`'}"
        classes = re.findall(r"class_path[ =]'([\w.]+)'", message)
        if classes and (match := re.search(r"Option '([\w.]+)' is not accepted", message)):
            names = argument_names(_imported(classes[-1]))
            advice = did_you_mean(match[1], names) or f"choose from {', '.join(names)}"
            return f"{classes[-1].rpartition('.')[2]} has no argument {match[1]}: {advice}"
        keys = re.findall(r'Parser key "([\w.]+)"', message)
        if KINDS.get(keys[-1] if keys else "") in _KINDS and (
            match := re.search(r"Expected a path but (\w+) either", message)
        ):
            kind = KINDS[keys[-1]]
            names = [*shipped(kind), *classes_of(kind)]
            advice = did_you_mean(match[1], names) or f"choose from {', '.join(names)}, or name a class or a YAML file"
            return f"there is no {kind} {match[1]}: {advice}"
        if match := re.search(r"argument subcommand: invalid choice: '(.*?)'", message):
            return f"there is no command {match[1]}: {did_you_mean(match[1], VERBS) or '`pdd --help` lists them'}"
        if "required: fit.data.real" in message:
            return "name a recipe, such as `pdd fit digits_mtt --folder runs/a`: `pdd recipes` lists them"
        return ""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Format the help: the package's own options first, and without lists of every class that is imported."""
        self._action_groups = sorted(self._action_groups, key=lambda group: group.title == _TRAINER)
        return re.sub(r",\s+known\s+subclasses:[^)]*\)", ")", super().format_help(*args, **kwargs))


def classes_of(kind: str) -> dict[str, type]:
    """Return the package's classes of a kind (data, method, network), by name."""
    module, base = _KINDS[kind]
    members = [getattr(module, name) for name in module.__all__]
    return {
        each.__name__: each
        for each in members
        if isinstance(each, type) and issubclass(each, base) and not isabstract(each)
    }


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
