"""`pdd recipes` and `pdd runs`: what there is to run, and what was run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from pdd_lightning.commands.command import Command, classes_of
from pdd_lightning.files import is_locked
from pdd_lightning.results.folders import Folder, Run, read_folders
from pdd_lightning.results.schema import DISTILLED
from pdd_lightning.results.tables import full_table
from pdd_lightning.shorthand import shipped


class Recipes(Command):
    """List the recipes that come with the package."""

    name = "recipes"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """None."""

    def run(self, options: Namespace) -> None:
        """Print a line for each recipe: the first sentence of its file."""
        recipes = shipped("recipe")
        width = max(map(len, recipes))
        for name, path in recipes.items():
            comment = " ".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
            print(f"{name:{width}}  {comment.partition('. ')[0].rstrip('.')}")


def list_methods() -> str:
    """List the methods: the name of the class, and the first sentence of what it says of itself."""
    methods = classes_of("method")
    width = max(map(len, methods))
    lines = [f"{name:{width}}  {(kind.__doc__ or '').splitlines()[0]}" for name, kind in methods.items()]
    return "\n".join([*lines, "", "`pdd fit --model.help CLASS` shows the options of a method."])


class Runs(Command):
    """List runs."""

    name = "runs"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the folders."""
        parser.add_argument(
            "folders", nargs="*", type=str, default=["runs"], help="Run folders, or folders of them (default: runs)."
        )

    def run(self, options: Namespace) -> None:
        """Print a table with a line for each run."""
        folders = read_folders(options["folders"])
        rows = [_row(run) for run in folders.runs] + [_unreadable(folder) for folder in folders.broken]
        print(full_table(rows).text() if rows else "no runs")


def _row(run: Run) -> dict[str, Any]:
    """A run as a line of the table."""
    summary, planned = run.summary, run.settings.get("stages.num_stages", "")
    finished = planned.isdecimal() and len(summary.stages) >= int(planned)
    scored = next((row for row in summary.evaluation if row.row == DISTILLED), None)
    last = summary.stages[-1] if summary.stages else None
    return {
        "run": str(run.path),
        "method": str(summary.settings.get("method", "")),
        "data": summary.dataset.get("name", ""),
        "stages": f"{len(summary.stages)} of {planned or 'unknown'}",
        "images": last and last.images,
        "accuracy %": f"{100 * scored.mean:.1f} ({scored.part})" if scored else "",
        "start-point accuracy %": f"{100 * last.val_accuracy:.1f}" if last else "",
        "state": "running" if is_locked(run.path) else "finished" if finished else "stopped",
        "size": _size(run.path),
    }


def _unreadable(folder: Folder) -> dict[str, Any]:
    return {"run": str(folder.path), "state": "running" if is_locked(folder.path) else folder.notes[0]}


def _size(folder: Path) -> str:
    """What a folder takes on the disk."""
    return f"{sum(path.lstat().st_size for path in folder.rglob('*')) / 1e6:.1f} MB"
