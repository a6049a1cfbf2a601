"""What a study is: steps to run, rows to make of their output, and a table and a plot of the rows."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdd_lightning import __version__
from pdd_lightning.errors import DamagedFileError, DataError
from pdd_lightning.files import atomic_write_bytes, atomic_write_json
from pdd_lightning.results.plots import figure_png
from pdd_lightning.results.tables import csv_table, markdown_table
from pdd_lightning.studies.runner import StepRunner
from pdd_lightning.studies.step import Step, distinct

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUTPUTS = ("study.json", "table.csv", "table.md", "plot.png")


class Study(ABC):
    """A comparison that one command makes.

    A subclass says which `pdd` command lines it takes and what to read from their output; everything else, running,
    continuing and writing, is the same for all. The first line of its docstring is the title.
    """

    @abstractmethod
    def steps(self, folder: Path) -> list[Step]:
        """Command lines, each after those whose output it needs; all output goes below `folder`."""

    @abstractmethod
    def rows(self, folder: Path) -> list[dict[str, Any]]:
        """Rows of the table, by name of the column, from the output of the steps."""

    @abstractmethod
    def plot(self, figure: Figure, rows: Sequence[dict[str, Any]]) -> None:
        """Draws the rows."""

    @property
    def title(self) -> str:
        """What the study shows."""
        return (type(self).__doc__ or type(self).__name__).splitlines()[0].rstrip(".")

    def notes(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """Sentences that a reader of the table must know."""
        return []

    def run(self, folder: Path, runner: StepRunner) -> list[dict[str, Any]]:
        """Runs what is not done yet, and writes the results; without all of them there are none.

        Raises:
            StudyError: A step failed.
            ConfigError: A step that was begun has other words now.
        """
        steps = distinct(self.steps(folder))
        runner.check(steps)
        for name in OUTPUTS:
            (folder / name).unlink(missing_ok=True)
        runner.run(steps)
        rows = self.rows(folder)
        self._write(folder, rows, {step.name: (step.command, runner.seconds(step)) for step in steps})
        return rows

    def table(self, rows: Sequence[dict[str, Any]]) -> str:
        """The rows as Markdown, with what one must know to read them."""
        lines = [f"# {self.title}", "", markdown_table(rows), "", *(f"- {note}" for note in self.notes(rows))]
        return "\n".join(lines) + "\n"

    def _write(self, folder: Path, rows: Sequence[dict[str, Any]], steps: dict[str, tuple[str, float]]) -> None:
        described = {
            "study": type(self).__name__,
            "title": self.title,
            "notes": self.notes(rows),
            "package_version": __version__,
            "rows": list(rows),
            "steps": [{"name": name, "command": words, "seconds": time} for name, (words, time) in steps.items()],
        }
        atomic_write_bytes(folder / "table.csv", csv_table(rows).encode())
        atomic_write_bytes(folder / "table.md", self.table(rows).encode())
        atomic_write_bytes(folder / "plot.png", figure_png(lambda figure: self.plot(figure, rows)))
        atomic_write_json(folder / "study.json", described)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a step wrote.

    Raises:
        DataError: It is not there.
        DamagedFileError: It holds something else.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"cannot read {path}: delete the record of the step that wrote it to run it again") from error
    except ValueError as error:
        raise DamagedFileError(f"{path} is damaged ({error}): delete the record of the step that wrote it") from error
    return dict(content)
