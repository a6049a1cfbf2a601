"""What a study folder holds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pdd_lightning.report.pictures import Picture, noting
from pdd_lightning.report.values import read_json


@dataclass(frozen=True)
class Study:
    """A study folder.

    Attributes:
        name: The folder's name.
        folder: The folder.
        title: What the study shows.
        header: Names of the table's columns.
        table: Its lines.
        remarks: What one must know to read the table.
        commands: The command lines that the study took.
        plot: Its figure, if it can be read.
        notes: What is missing or damaged.
    """

    name: str
    folder: Path
    title: str
    header: list[str]
    table: list[list[str]]
    remarks: list[str]
    commands: list[str]
    plot: Picture | None
    notes: list[str]


def read_study(folder: Path, name: str) -> Study:
    """Reads a study folder; a missing table or plot is noted.

    Raises:
        DamagedFileError: `study.json` is damaged.
    """
    about = read_json(folder / "study.json")
    notes: list[str] = []
    try:
        lines = (folder / "table.md").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        lines = []
        notes.append(f"table.md cannot be read: {error}")
    table = [_cells(line) for line in lines if line.startswith("|") and not re.fullmatch(r"[|\s:-]+", line)]
    remarks = [line.removeprefix("- ") for line in lines if line.strip() and not line.startswith(("|", "#"))]
    plot = noting(folder / "plot.png", notes)
    return Study(
        name=name,
        folder=folder,
        title=str(about.get("title", "")),
        header=table[0] if table else [],
        table=table[1:],
        remarks=remarks,
        commands=_commands(about.get("steps")),
        plot=plot[0] if plot else None,
        notes=notes,
    )


def _cells(line: str) -> list[str]:
    """The cells of a line of a Markdown table."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def _commands(steps: object) -> list[str]:
    entries = steps if isinstance(steps, list) else []
    return [str(entry["command"]) for entry in entries if isinstance(entry, dict) and "command" in entry]
