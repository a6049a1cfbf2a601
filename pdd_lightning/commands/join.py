"""`pdd join`: distilled sets as stages of one."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from pdd_lightning.commands.base import Command, check_file_names
from pdd_lightning.data.join import join_distilled


class Join(Command):
    """Makes one staged set of several."""

    name = "join"
    help = "Join distilled sets into one, whose stages are theirs, one after another."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Adds the sets and the target."""
        parser.add_argument("paths", nargs="+", type=str, help="Distilled sets, .safetensors files.")
        parser.add_argument("--output", type=str, required=True, help="The .safetensors file to write.")

    def run(self, options: Namespace) -> None:
        """Writes the set."""
        check_file_names(options, "output")
        print(f"Wrote {join_distilled(options['paths'], options['output'])}")
