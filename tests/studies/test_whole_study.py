"""A small study from the command line, run by processes as users run it."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pdd_lightning import DistilledDataset
from tests.cli.conftest import image_folder, recipe, run_pdd, start_pdd  # noqa: F401  (fixtures)

STUDY = """
title: Conditioning
methods:
  - name: tiny
    recipe: RECIPE
    fit: {trainer.callbacks: [{class_path: tests.studies.hold.Hold, init_args: {folder: FOLDER}}]}
column: conditioning
arms: {"on": {}, "off": {independent: true}}
num_classes: 3
seeds: [0]
evaluate: {full_data_epochs: 0}
x: protocol
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A study whose runs stand still while there is a file `hold` beside it."""
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(STUDY.replace("RECIPE", str(recipe)).replace("FOLDER", str(path.parent)))
    return path


@pytest.fixture(scope="module")
def finished(study: Path) -> Path:
    """The folder of the study after an undisturbed run."""
    folder = study.parent / "finished"
    result = run_pdd("study", study, "--folder", folder, "--jobs", 2)
    assert result.returncode == 0, result.stdout
    assert "step 6 of 6" in result.stdout
    return folder


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A scheduler and two workers in processes of their own."""
    pytest.importorskip("distributed")
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as cluster:
        yield cluster


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """What a study found, but for the time that it took."""
    rows = json.loads((folder / "study.json").read_text())["rows"]
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


def test_independent_sets_share_their_first_stage(finished: Path) -> None:
    rows = rows_of(finished)
    assert [(row["conditioning"], row["row"]) for row in rows] == [
        ("on", "distilled"),
        ("on", "random real"),
        ("off", "distilled"),
    ]
    assert {row["images"] for row in rows} == {6}
    on, off = (
        DistilledDataset(finished / "runs" / "tiny" / name / "seed_0" / "distilled.safetensors").synthetic
        for name in ("2x1_6", "2x1_6_off")
    )
    assert on.num_stages == off.num_stages == 2
    assert on.stage(1).sha256() == off.stage(1).sha256()
    assert on.stage(2).sha256() != off.stage(2).sha256()


def test_a_study_that_lost_a_worker_ends_with_the_same_results(study: Path, finished: Path, cluster: Any) -> None:
    """The worker and its step are killed in the middle of a run, which another worker continues."""
    folder, hold, held = study.parent / "disturbed", study.parent / "hold", study.parent / "held"
    hold.touch()
    process = start_pdd("study", study, "--folder", folder, "--scheduler", cluster.scheduler_address)
    while not held.exists():
        assert process.poll() is None
        time.sleep(0.1)
    for number in reversed(held.read_text().split()):
        os.kill(int(number), signal.SIGKILL)
    hold.unlink()
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert rows_of(folder) == rows_of(finished)
    starts = {path: path.read_text().count("$ pdd fit") for path in (folder / "steps").rglob("fit.log")}
    (killed,) = (path for path, count in starts.items() if count == 2)
    assert "Restored all states from the checkpoint" in killed.read_text()


def test_what_is_done_is_not_done_anew_and_other_settings_are_refused(study: Path, finished: Path) -> None:
    before = rows_of(finished)
    made = [*finished.rglob("seed_0/distilled.safetensors"), *finished.rglob("*.networks.jsonl")]
    times = {path: path.stat().st_mtime_ns for path in made if path.parent.joinpath("summary.json").exists()}
    assert run_pdd("study", study, "--folder", finished, "--jobs", 2).returncode == 0
    assert rows_of(finished) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times

    other = study.with_name("other.yaml")
    other.write_text(study.read_text().replace("fit: {", "fit: {model.lr_img: 5.0, "))
    result = run_pdd("study", other, "--folder", finished, "--jobs", 2)
    assert result.returncode == 1
    assert "model.lr_img: 10.0 on disk, 5.0 asked for" in result.stdout
    assert not (finished / "table.md").exists()
