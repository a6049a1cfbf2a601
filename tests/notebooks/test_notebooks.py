"""Every paired notebook is executed from top to bottom, as a user would do it, and shows what it says.

What is kept with outputs, by `make notebooks`, is of the same scripts.
"""

from pathlib import Path
from typing import NamedTuple

import jupytext
import matplotlib.font_manager  # noqa: F401  (builds its cache now; in a notebook it would say so)
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = {path.stem for path in FOLDER.glob("*.py") if "jupytext:" in path.read_text()}


class Shown(NamedTuple):
    """What a notebook shows.

    Attributes:
        text: All that it prints.
        pictures: Number of pictures.
        errors: What it writes to standard error, such as warnings.
    """

    text: str
    pictures: int
    errors: str

    def table(self, header: str) -> dict[str, list[float]]:
        """Means of a printed table, by the first column, `header` being how its header begins."""
        lines = self.text.split(f"\n{header}")[-1].splitlines()[2:]
        rows = {}
        for line in lines:
            name, *cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
            rows[name] = [float(cell.split()[0]) for cell in cells]
        return rows


def execute(name: str) -> Shown:
    notebook = jupytext.read(FOLDER / f"{name}.py")
    here = {"metadata": {"path": str(FOLDER)}}
    # Without a limit of time: the machine may be busy.
    client = NotebookClient(notebook, timeout=None, startup_timeout=86400, resources=here)
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    streams = [(output.name, output.text) for output in outputs if output.output_type == "stream"]
    text, errors = ("".join(text for name, text in streams if name == wanted) for wanted in ("stdout", "stderr"))
    return Shown(text, sum("image/png" in output.get("data", {}) for output in outputs), errors)


def test_all_notebooks_are_tested() -> None:
    assert {"add_a_method", "quickstart", "inspect_stages"} == NOTEBOOKS


@pytest.mark.parametrize("name", sorted(NOTEBOOKS))
def test_kept_notebooks_are_up_to_date(name: str) -> None:
    kept = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    script, found = (
        [(cell.cell_type, cell.source) for cell in notebook.cells]
        for notebook in (jupytext.read(FOLDER / f"{name}.py"), kept)
    )
    assert found == script, "run `make notebooks`"
    code = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 300_000


def test_a_method_is_added() -> None:
    shown = execute("add_a_method")
    assert shown.errors == ""
    assert shown.pictures == 1
    assert "accuracy" in shown.text and "random real" in shown.text


@pytest.mark.slow
def test_quickstart_ends_with_distilled_images_ahead_of_random_ones() -> None:
    shown = execute("quickstart")
    assert shown.errors == ""
    assert shown.pictures == 2
    rows = shown.table("validation accuracy %")
    assert list(rows) == ["distilled", "random real"]
    distilled, random = rows.values()
    assert len(distilled) == len(random) == 3
    assert all(ours > theirs for ours, theirs in zip(distilled, random, strict=True))
    assert distilled[0] < distilled[-1]


@pytest.mark.slow
def test_stages_are_inspected() -> None:
    shown = execute("inspect_stages")
    assert shown.errors == ""
    assert shown.pictures == 8
    for stage in range(1, 5):
        assert f"stage {stage}: 10 images, learned rate" in shown.text
        assert f"stage {stage}: mean distance" in shown.text
    assert "real, held out" in shown.text and "silhouette" in shown.text
    assert "stage 4: " in shown.text and "images are right in more networks" in shown.text
    assert "1151 training images, forgotten" in shown.text
