"""`pdd study`: several runs and their evaluation, as one table."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from pdd_lightning.commands.command import Command
from pdd_lightning.studies.engine import run_steps
from pdd_lightning.studies.kinds import read_study


class RunStudy(Command):
    """Runs or continues a study."""

    name = "study"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add study, folder, and where steps run."""
        parser.add_argument("study", type=str, help="The study, a YAML file.")
        parser.add_argument("--folder", type=str, required=True, help="Folder of runs, logs and results.")
        parser.add_argument(
            "--jobs", type=int, default=1, help="Steps at a time on this machine; they share the cores."
        )
        scheduler_help = "Address of a Dask scheduler whose workers run the steps, such as tcp://host:8786."
        parser.add_argument("--scheduler", type=str | None, default=None, help=scheduler_help)

    def advice(self, options: Namespace) -> str:
        """Return how to continue after an interruption."""
        return "The same command continues the study: finished steps are not repeated."

    def run(self, options: Namespace) -> None:
        """Run the steps, and print the table."""
        folder, study = Path(options["folder"]), read_study(Path(options["study"]))
        steps_run = partial(run_steps, folder=folder, jobs=options["jobs"], scheduler=options["scheduler"])
        print(study.make(folder, steps_run))
        print(f"Results are in {folder}")
