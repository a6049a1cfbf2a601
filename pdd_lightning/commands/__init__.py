"""Verbs of the command line beside Lightning's `fit` and `test`."""

from pdd_lightning.commands.base import Command, ShortHelp
from pdd_lightning.commands.convert import Convert
from pdd_lightning.commands.evaluate import Evaluate

COMMANDS: dict[str, Command] = {command.name: command for command in (Evaluate(), Convert())}
"""All of them, in the order of `pdd --help`."""

__all__ = ["COMMANDS", "Command", "Convert", "Evaluate", "ShortHelp"]
