"""`pdd report`: one page that shows and compares runs."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from pdd_lightning.commands.command import Command, check_outputs
from pdd_lightning.files import atomic_write_bytes
from pdd_lightning.results.folders import read_folders
from pdd_lightning.results.page import check_tables, render_page


class Report(Command):
    """Shows and compares runs and studies on a page."""

    name = "report"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add folders and output."""
        parser.add_argument(
            "folders", nargs="+", type=str, help="Folders of runs and studies, or folders that hold such folders."
        )
        parser.add_argument("--output", type=str, default="report.html", help="HTML file to write.")

    def run(self, options: Namespace) -> None:
        """Write the page, and print what it does not show."""
        check_outputs(options, "output")
        folders = read_folders(options["folders"], check_tables)
        page = render_page(folders).encode(errors="replace")  # names of files may not be Unicode
        atomic_write_bytes(options["output"], page)
        lines = [f"Not shown: {broken.path}: {broken.notes[0]}" for broken in folders.broken]
        lines.append(f"{options['output']}: runs: {len(folders.runs)}, studies: {len(folders.studies)}")
        print("\n".join(lines).encode(errors="replace").decode())
