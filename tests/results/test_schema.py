"""Summaries and studies come back from their files."""

import json
from pathlib import Path
from typing import Any

from pdd_lightning.results.schema import RunSummary, StudyResult, write_stored
from pdd_lightning.stored import read_stored
from tests.results.conftest import row, stage

WHOLE = {
    "package_version": "0.0.1",
    "dataset": {"name": "Blobs", "fingerprint": "0123"},
    "seed": 3,
    "settings": {"method": "DM", "network": {"class_path": "ConvNet", "init_args": {"width": 8}}},
    "stages": [stage(1, 0.5, real_images=90), stage(2, 0.6, learned_lr=None)],
    "evaluation": [row("distilled", 0.7), row("full real", 0.9, protocol="all images")],
}


def read(content: Any, folder: Path) -> RunSummary:
    (folder / "summary.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return read_stored(RunSummary, folder / "summary.json")


def test_a_summary_comes_back_as_it_was(tmp_path: Path) -> None:
    summary = read(WHOLE, tmp_path)
    write_stored(tmp_path / "again.json", summary)
    assert read_stored(RunSummary, tmp_path / "again.json") == summary
    assert summary.stages[0].real_images == 90 and summary.stages[1].learned_lr is None
    assert summary.evaluation[1].protocol == "all images"
    stages = json.loads((tmp_path / "again.json").read_text())["stages"]
    assert stages == [WHOLE["stages"][0], {**WHOLE["stages"][1], "real_images": None}]


def test_files_of_other_versions_may_say_more_or_less(tmp_path: Path) -> None:
    assert read({}, tmp_path) == RunSummary()
    bare = {"row": "distilled", "part": "test", "mean": 1}
    (found,) = read({"evaluation": [{**bare, "novelty": [1, {"x": 2}]}], "new": 3}, tmp_path).evaluation
    assert (found.protocol, found.std, found.n, found.per_class) == ("not stated", None, None, {})
    (tmp_path / "study.json").write_text(json.dumps({"title": "T", "rows": [{"mean": 0.5}], "novelty": 1}))
    study = read_stored(StudyResult, tmp_path / "study.json")
    assert (study.title, study.rows, study.notes, study.steps) == ("T", [{"mean": 0.5}], [], [])
