"""`pdd study`: several runs and their evaluation, as one table."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from pdd_lightning.commands.base import Command
from pdd_lightning.studies import StepRunner, Study


class RunStudy(Command):
    """Runs a study, or continues it."""

    name = "study"
    help = "Run the steps of a study that are not done yet, and write its table and plot."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Adds study, folder and number of processes."""
        parser.add_argument("study", type=Study, sub_configs=True, help="The study, a YAML file.")
        parser.add_argument(
            "--folder", type=str, required=True, help="Where runs, logs and results go, and are found again."
        )
        parser.add_argument("--jobs", type=int, default=1, help="Steps at a time; they share the cores.")

    def run(self, options: Namespace) -> None:
        """Prints the table."""
        folder, study = Path(options["folder"]), options["study"]
        rows = study.run(folder, StepRunner(folder, options["jobs"]))
        print(study.table(rows))
        print(f"Results are in {folder}")
