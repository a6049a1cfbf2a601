"""Continuing a run: what may change, and what has to stay as it is."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pdd_lightning import DistilledDataset
from pdd_lightning.cli import main


def fit(recipe: Path, folder: Path, *words: object) -> None:
    main([str(word) for word in ["fit", "--config", recipe, "--trainer.default_root_dir", folder, *words]])


@pytest.fixture
def stopped(recipe: Path, tmp_path: Path) -> Path:
    """A run that was left in the middle of its first stage."""
    fit(recipe, tmp_path, "--trainer.max_steps", 3)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "change"),
    [
        (["--model.syn_steps", "3"], "model.syn_steps: 2 on disk, 3 asked for"),
        (["--model.momentum", "0.1"], "model.momentum: 0.5 on disk, 0.1 asked for"),
        (["--stages.iterations", "9"], "stages.iterations: 6 on disk, 9 asked for"),
        (["--stages.transition.epochs", "9"], "stages.transition.epochs: 3 on disk, 9 asked for"),
        (["--trainer.precision", "bf16-mixed"], "precision: '32-true' on disk, 'bf16-mixed' asked for"),
    ],
)
def test_other_settings_are_refused(words: list[str], change: str, recipe: Path, stopped: Path) -> None:
    before = (stopped / "config.yaml").read_text()
    with pytest.raises(SystemExit) as stop:
        fit(recipe, stopped, "--ckpt_path", "last", *words)
    assert change in str(stop.value.code)
    assert (stopped / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("words", "change"),
    [
        (["--model.lr_img", "5.0"], "model.lr_img: 10.0 on disk, 5.0 asked for"),
        (["--stages.experts.number", "3"], "stages.experts.number: 2 on disk, 3 asked for"),
    ],
)
def test_other_settings_of_a_finished_run_are_refused(words: list[str], change: str, recipe: Path, run: Path) -> None:
    """They would have no effect: rates, too, which an unfinished run would take over."""
    with pytest.raises(SystemExit, match="is finished, with other settings") as stop:
        fit(recipe, run, "--ckpt_path", "last", *words)
    assert change in str(stop.value.code)


def test_a_finished_run_is_left_as_it_is(recipe: Path, run: Path, tmp_path: Path) -> None:
    """Settings of no effect on the images may be other ones."""
    run = shutil.copytree(run, tmp_path / "run")
    before = (run / "distilled.safetensors").stat().st_mtime_ns
    other = ["--model.unroll_mode", "constant", "--stages.experts.folder", run / "experts", "--evaluation.epochs", 1]
    fit(recipe, run, "--ckpt_path", "last", *other)
    assert (run / "distilled.safetensors").stat().st_mtime_ns == before


def test_a_lower_rate_is_taken_over(recipe: Path, stopped: Path, run: Path) -> None:
    fit(recipe, stopped, "--ckpt_path", "last", "--model.lr_img", 1e-9)
    before = torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)
    rates = {group["lr"] for group in before["optimizer_states"][0]["param_groups"]}
    assert 1e-9 in rates and 10.0 not in rates
    assert json.loads((stopped / "summary.json").read_text())["stages"][0]["lr_img"] == 1e-9
    straight = DistilledDataset(run / "distilled.safetensors")
    assert not torch.equal(DistilledDataset(stopped / "distilled.safetensors").images, straight.images)


def test_start_points_may_be_trained_at_once_from_now_on(recipe: Path, stopped: Path, run: Path) -> None:
    """How many at once changes no more than rounding."""
    fit(recipe, stopped, "--ckpt_path", "last", "--stages.transition.at_once", 2)
    first, second = (load_file(folder / "experts/theta_1/expert_001.safetensors") for folder in (stopped, run))
    assert not torch.equal(first["snapshots"], second["snapshots"])
    torch.testing.assert_close(first["snapshots"], second["snapshots"], rtol=1e-3, atol=1e-4)


def test_more_stages_can_be_added_to_a_finished_run(recipe: Path, tmp_path: Path) -> None:
    fit(recipe, tmp_path, "--stages.num_stages", 1)
    first = DistilledDataset(tmp_path / "distilled.safetensors").images
    fit(recipe, tmp_path, "--ckpt_path", "last")
    both = DistilledDataset(tmp_path / "distilled.safetensors")
    assert both.num_stages == 2
    assert torch.equal(both.union(1).images, first)


def test_the_time_of_a_continued_stage_is_its_own(recipe: Path, tmp_path: Path) -> None:
    begin = time.perf_counter()
    fit(recipe, tmp_path, "--trainer.max_steps", 3)
    fit(recipe, tmp_path, "--ckpt_path", "last")
    elapsed = time.perf_counter() - begin
    seconds = [stage["seconds"] for stage in json.loads((tmp_path / "summary.json").read_text())["stages"]]
    assert all(stage["distil"] > 0 for stage in seconds) and seconds[0]["experts"] > 0
    assert sum(sum(stage.values()) for stage in seconds) < elapsed


def test_students_with_dropout_continue_to_the_same_images(recipe: Path, tmp_path: Path) -> None:
    network = ["--model.network", "tests.tiny.DropoutNet"]
    fit(recipe, tmp_path / "straight", *network)
    fit(recipe, tmp_path / "broken", *network, "--trainer.max_steps", 3)
    fit(recipe, tmp_path / "broken", *network, "--ckpt_path", "last")
    sets = [DistilledDataset(tmp_path / name / "distilled.safetensors").images for name in ("straight", "broken")]
    assert torch.equal(*sets)


def test_accumulated_gradients_are_not_lost(recipe: Path, tmp_path: Path) -> None:
    accumulate = ["--trainer.accumulate_grad_batches", 3, "--checkpoint_every", 1]
    fit(recipe, tmp_path / "straight", *accumulate)
    fit(recipe, tmp_path / "broken", *accumulate, "--trainer.max_steps", 1)
    fit(recipe, tmp_path / "broken", *accumulate, "--ckpt_path", "last")
    sets = [DistilledDataset(tmp_path / name / "distilled.safetensors").images for name in ("straight", "broken")]
    assert torch.equal(*sets)
