"""Verbs of the command line beside Lightning's `fit` and `test`."""

from pdd_lightning.commands.base import Command, ShortHelp
from pdd_lightning.commands.continual import Continual
from pdd_lightning.commands.describe import Describe
from pdd_lightning.commands.evaluate import Evaluate

COMMANDS: dict[str, Command] = {command.name: command for command in (Evaluate(), Describe(), Continual())}
"""All of them, in the order of `pdd --help`."""

__all__ = ["COMMANDS", "Command", "Continual", "Describe", "Evaluate", "ShortHelp"]
