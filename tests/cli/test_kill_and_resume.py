"""A run killed at any moment and continued gives the uninterrupted run's images, bit for bit."""

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pdd_lightning import DistilledDataset
from tests.cli.conftest import run_pdd, start_pdd

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def long_recipe(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough in every part to be hit there."""
    text = recipe.read_text()
    text = text.replace("iterations: 6", "iterations: 60").replace("epochs: 3}", "epochs: 150, at_once: 2}")
    text = re.sub(r"experts: \{number: 2, ", "experts: {number: 4, epochs: 60, ", text)
    path = tmp_path_factory.mktemp("recipe") / "long.yaml"
    path.write_text(text)
    return path


def fit(recipe: Path, folder: Path) -> list[object]:
    return ["fit", "--config", recipe, "--trainer.default_root_dir", folder, "--ckpt_path", "last"]


@pytest.fixture(scope="module")
def straight(long_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> DistilledDataset:
    folder = tmp_path_factory.mktemp("straight")
    result = run_pdd(*fit(long_recipe, folder))
    assert result.returncode == 0, result.stdout
    return DistilledDataset(folder / "distilled.safetensors")


def kill_when(reached: Callable[[], bool], recipe: Path, folder: Path) -> None:
    """Starts a run and sends SIGKILL as soon as `reached` holds."""
    process = start_pdd(*fit(recipe, folder))
    while not reached() and process.poll() is None:
        time.sleep(0.002)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    assert alive, f"the run ended before it could be killed:\n{output}"


def iteration(folder: Path) -> int:
    """Iterations of the current stage in the checkpoint, plus 1000 per finished stage."""
    path = folder / "checkpoints" / "last.ckpt"
    if not path.exists():
        return -1
    state = torch.load(path, weights_only=True)["callbacks"]["StageAdvance"]
    return int(state["iteration"]) + 1000 * len(state["union"]["learning_rates"])


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "experts": lambda folder: (folder / "experts/theta_0/expert_001.json").exists(),
    "first stage": lambda folder: iteration(folder) >= 10,
    "transition": lambda folder: (folder / "experts/theta_1/expert_001.json").exists(),
    "second stage": lambda folder: iteration(folder) >= 1010,
    "last transition": lambda folder: (folder / "experts/theta_2_final/expert_000.json").exists(),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_run_continues_to_the_same_images(
    moment: str, long_recipe: Path, straight: DistilledDataset, tmp_path: Path
) -> None:
    kill_when(lambda: MOMENTS[moment](tmp_path), long_recipe, tmp_path)
    result = run_pdd(*fit(long_recipe, tmp_path))
    assert result.returncode == 0, result.stdout
    continued = DistilledDataset(tmp_path / "distilled.safetensors")
    assert torch.equal(continued.images, straight.images)
    assert torch.equal(continued.labels, straight.labels)
    assert continued.learning_rates == straight.learning_rates


def test_killed_again_and_again(long_recipe: Path, straight: DistilledDataset, tmp_path: Path) -> None:
    for moment in MOMENTS:
        kill_when(lambda name=moment: MOMENTS[name](tmp_path), long_recipe, tmp_path)
    result = run_pdd(*fit(long_recipe, tmp_path))
    assert result.returncode == 0, result.stdout
    assert torch.equal(DistilledDataset(tmp_path / "distilled.safetensors").images, straight.images)


def test_sigterm_saves_says_how_to_continue_and_fails(long_recipe: Path, tmp_path: Path) -> None:
    process = start_pdd(*fit(long_recipe, tmp_path))
    while iteration(tmp_path) < 10 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "continues the run" in output


def test_a_signal_ends_the_training_of_experts(long_recipe: Path, tmp_path: Path) -> None:
    process = start_pdd(*fit(long_recipe, tmp_path), "--stages.experts.number", 50)
    while not (tmp_path / "experts/theta_0/expert_000.json").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "continues the run" in output
    assert not (tmp_path / "experts/theta_0/expert_049.safetensors").exists()


def test_killed_while_scoring_and_after_leaving_examples_out(long_recipe: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "discard.yaml"
    discard = "stages:\n  discard: {keep: [0.9, 0.6], networks: 3, epochs: 80}\n"
    recipe.write_text(long_recipe.read_text().replace("stages:\n", discard))
    result = run_pdd(*fit(recipe, tmp_path / "straight"))
    assert result.returncode == 0, result.stdout
    run = tmp_path / "run"
    kill_when(lambda: (run / "experts/scoring/expert_000.json").exists(), recipe, run)
    kill_when(lambda: (run / "experts/theta_0/expert_001.json").exists(), recipe, run)
    kill_when(lambda: (run / "experts/theta_1/expert_001.json").exists(), recipe, run)
    kill_when(lambda: iteration(run) >= 1010, recipe, run)
    result = run_pdd(*fit(recipe, run))
    assert result.returncode == 0, result.stdout
    straight, continued = (DistilledDataset(tmp_path / name / "distilled.safetensors") for name in ("straight", "run"))
    assert torch.equal(continued.images, straight.images)
    assert continued.learning_rates == straight.learning_rates
