"""Verbs of the command line beside Lightning's `fit` and `test`."""

from pdd_lightning.commands.command import Command
from pdd_lightning.commands.convert import Convert, Join
from pdd_lightning.commands.evaluate import Continual, Describe, Evaluate
from pdd_lightning.commands.listing import Recipes, Runs
from pdd_lightning.commands.report import Report
from pdd_lightning.commands.share import Share
from pdd_lightning.commands.study import RunStudy

_ALL: tuple[Command, ...] = (
    Evaluate(),
    Describe(),
    Continual(),
    Convert(),
    Join(),
    RunStudy(),
    Report(),
    Share(),
    Runs(),
    Recipes(),
)
COMMANDS: dict[str, Command] = {command.name: command for command in _ALL}
"""All of them, in the order of `pdd --help`."""

__all__ = ["COMMANDS", "Command"]
