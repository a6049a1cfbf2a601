"""Commands besides Lightning's `fit` and `test`."""

from pdd_lightning.commands.command import Command
from pdd_lightning.commands.convert import Convert, Join
from pdd_lightning.commands.evaluate import Continual, Describe, Evaluate
from pdd_lightning.commands.listing import Recipes, Runs
from pdd_lightning.commands.report import Report
from pdd_lightning.commands.share import Share
from pdd_lightning.commands.study import RunStudy

COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Evaluate(), Describe(), Continual(), Convert(), Join(), RunStudy(), Report(), Share(), Runs(), Recipes(),
    )
}  # fmt: skip
"""Commands by name, in the order of `pdd --help`."""

__all__ = ["COMMANDS", "Command"]
