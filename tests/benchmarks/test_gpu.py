"""The benchmark for a GPU runs on a CPU in its smallest size, and loses nothing when a part fails or time runs out."""

import json
import os
import time
from types import SimpleNamespace

import pytest

from benchmarks.gpu import PARTS, SMALLEST, Part, _isolated, main, measure
from tests.cli.conftest import write_folder


def works(settings, left):
    """Two figures."""
    yield {"s": 1.5, "device": settings.device}
    yield {"s": 2.5}


def fails(settings, left):
    """One figure, and an error."""
    yield {"s": 3.5}
    raise ValueError("out of order")


def dies(settings, left):
    """Ends its process."""
    yield {"s": 4.5}
    os._exit(1)


def lingers(settings, left):
    """One figure in time."""
    yield {"s": 5.5}
    time.sleep(3600)


def test_every_figure_is_written_whatever_happens_to_a_part(tmp_path):
    parts = [
        Part("Works", 0, works),
        Part("Fails", 0, fails),
        Part("Dies", 0, dies),
        Part("Wants", 0, works, ("root",)),
    ]
    measure(SMALLEST, tmp_path, 10, tuple(parts))
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [[row["s"] for row in part["rows"]] for part in found.values()] == [[1.5, 2.5], [3.5], [4.5], []]
    assert [part["remark"] for part in found.values()] == [
        "", "Failed: ValueError: out of order", "Failed: its process ended.", "Skipped: needs --root.",
    ]  # fmt: skip
    document = (tmp_path / "gpu.md").read_text()
    assert all(text in document for text in ("## Works", "Two figures.", "4.5", "out of order", "needs --root"))


def test_a_part_ends_when_no_time_is_left(monkeypatch):
    section = {}
    rows = _isolated(Part("Lingers", 0, lingers), SMALLEST, 3600, section)
    assert next(rows) == {"s": 5.5}
    monkeypatch.setattr("benchmarks.gpu.time", SimpleNamespace(monotonic=lambda: float("inf")))
    assert list(rows) == [] and section["remark"] == "Cut: no time was left."


def test_a_part_that_is_not_begun_is_named(tmp_path):
    found = measure(SMALLEST, tmp_path, 0, (Part("Works", 0, works),))["parts"]
    assert found["Works"]["rows"] == [] and found["Works"]["remark"].startswith("Skipped: 0 s are left")


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path):
    root = write_folder(tmp_path / "images", per_class=20)
    main(["--output", str(tmp_path), "--device", "cpu", "--size", "smallest", "--minutes", "60", "--root", str(root)])
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(found) == [part.title for part in PARTS]
    skipped = {title: part["remark"] for title, part in found.items() if part["remark"]}
    assert skipped == {"Beside the official code": "Skipped: needs --code."}
    assert all(part["rows"] for title, part in found.items() if title not in skipped)
    assert all(row["within 1e-4"] for row in found["Agreement with the CPU"]["rows"])
    assert [row["continued equal"] for row in found["Short runs"]["rows"]] == [True, True]
