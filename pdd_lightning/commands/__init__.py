"""Verbs of the command line beside Lightning's `fit` and `test`."""

from pdd_lightning.commands.base import Command, ShortHelp
from pdd_lightning.commands.evaluate import Evaluate
from pdd_lightning.commands.join import Join
from pdd_lightning.commands.report import Report
from pdd_lightning.commands.study import RunStudy

COMMANDS: dict[str, Command] = {command.name: command for command in (Evaluate(), Join(), Report(), RunStudy())}
"""All of them, in the order of `pdd --help`."""

__all__ = ["COMMANDS", "Command", "Evaluate", "Join", "Report", "RunStudy", "ShortHelp"]
