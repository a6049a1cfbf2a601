"""Settings that cannot work: one sentence from the package, before anything is trained."""

import shutil
from pathlib import Path

import pytest
import torch

from pdd_lightning import DistilledDataset
from pdd_lightning.callbacks.checkpoint import CheckpointFiles
from pdd_lightning.cli import main
from pdd_lightning.stages import DATM, IDC, DistillationStage, GradientMatching, TrajectoryMatching
from tests.attacks.ending import fit_words, sentence_of, words

HUGE = "1" + "0" * 30
SETTINGS = {
    "trainer.devices": ["0", "-2", "abc", "[0,1,0]", "10000", "1.5"],
    "trainer.strategy": ["foo", "ddp_spawn", "ddp_fork", "ddp_notebook", "fsdp", "deepspeed"],
    "trainer.accelerator": ["foo", "cuda", "tpu"],
    "trainer.max_time": ["abc", "00:00:00:-5", '{"days":-1}', '{"foo":1}'],
    "trainer.precision": ["foo", "16-true", "64-true"],
    "trainer.num_nodes": ["0", "-1"],
    "trainer.max_steps": ["-7", "x"],
    "trainer.accumulate_grad_batches": ["0", "-1"],
    "trainer.limit_train_batches": ["-1"],
    "trainer.callbacks": ["nope.Nope"],
    "trainer.logger": ["nope.Nope"],
    "trainer.profiler": ["foo"],
    "trainer.plugins": ["foo"],
    "trainer.gradient_clip_algorithm": ["foo"],
    "trainer.default_root_dir": ["null", ""],
    "trainer.max_epochs": ["3", "0"],
    "model.network.width": ["0", "-1", "1000000000", HUGE, "40000", "1.5", "null"],
    "model.network.depth": ["0", "-1", "1000000000"],
    "model.network": ["nope.Nope", "null"],
    "model.ipc": ["0", "-1", HUGE],
    "model.lr_img": ["0", "-1", "inf", "nan"],
    "model.lr_teacher": ["0", "1e400"],
    "model.syn_steps": ["0", HUGE],
    "model.max_start_epoch": ["0", HUGE],
    "model.momentum": ["1", "-0.1", "nan"],
    "model.augment": ["foo"],
    "seed_everything": ["-1", str(2**32), str(2**64), HUGE, "1" + "0" * 5000, "abc", "null", "1.5", "true"],
    "stages.num_stages": ["0", "-1", HUGE],
    "stages.iterations": ["0", "-1", HUGE, "1" + "0" * 5000],
    "stages.experts.number": ["0", HUGE],
    "stages.experts.epochs": ["-1", HUGE],
    "stages.experts.batch_size": ["0", HUGE],
    "stages.experts.lr": ["0", "-1", "1e400", "nan"],
    "stages.transition.epochs": ["-1", HUGE],
    "stages.transition.weight_decay": ["-1", "1e30", "inf"],
    "stages.transition.milestones": ["[2]", "[nan]"],
    "stages.pool.renew_every": ["0", HUGE],
    "evaluation.num_networks": ["0", HUGE],
    "evaluation.epochs": ["0", HUGE],
    "evaluation.full_data_epochs": ["-1", HUGE],
    "checkpoint_every": ["0", HUGE],
    "pictures.every_n_iterations": ["0", HUGE],
    "data.real.val_fraction": ["0", "2", "nan"],
    "data.real.batch_size": ["0", HUGE],
    "data.real.image_size": ["0", "-1", HUGE],
    "data.real.seed": ["-1", HUGE],
    "config": ["nope.yaml", "."],
}  # fmt: skip
CASES = [(name, value) for name, values in SETTINGS.items() for value in values]
QUICK = CASES[::6]


def check_refused(name: str, value: str, recipe: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = sentence_of([*fit_words(recipe, folder), f"--{name}={value}"], capsys)
    assert len(said.splitlines()) == 1 and len(said) < 6000
    assert not (folder / "experts").exists()


@pytest.mark.parametrize(("name", "value"), QUICK, ids=lambda text: text[:40])
def test_a_setting_is_refused(
    name: str, value: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_refused(name, value, recipe, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), CASES, ids=lambda text: text[:40])
def test_every_setting_is_refused(
    name: str, value: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_refused(name, value, recipe, tmp_path, capsys)


OTHERS = [
    ("--seed", "-1"), ("--seed", HUGE), ("--num_networks", "0"), ("--num_networks", HUGE), ("--epochs", "0"),
    ("--device", "abc"), ("--device", "cuda"), ("--processes", "0"), ("--network", "nope.Nope"), ("--lr", "nan"),
    ("--part", "train"), ("--output", "."), ("--baselines", "[nope]"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), OTHERS)
def test_settings_of_an_evaluation(
    name: str, value: str, run: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data", "ImageFolder", "--data.root", image_folder)
    said = sentence_of(words("evaluate", run / "distilled.safetensors", *data, f"{name}={value}"), capsys)
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("method", [TrajectoryMatching, DATM, GradientMatching, IDC])
def test_what_the_message_advises_may_change(method: type[DistillationStage]) -> None:
    assert "lr_img" in method.rates and not set(method.rates) & set(method.equivalent)


DIVERGING = {
    "lr_img": (["--model.lr_img", 1e30, "--model.lr_lr", 1], ["--model.lr_img", 1, "--model.lr_lr", 1e-7]),
    "lr_teacher": (["--model.lr_teacher", 1e15], ["--model.lr_teacher", 0.01]),
}


@pytest.mark.parametrize("rate", DIVERGING)
def test_lowering_a_rate_as_advised_works(
    rate: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    high, low = DIVERGING[rate]
    pictures = ["--pictures.every_n_iterations", 1, "--checkpoint_every", 50]
    said = sentence_of(fit_words(recipe, tmp_path, *high, *pictures), capsys)
    assert "not finite in stage 1" in said and rate in said and "--ckpt_path last" in said
    assert DistilledDataset(tmp_path / "last_good.safetensors").images.isfinite().all()
    main(fit_words(recipe, tmp_path, *low, *pictures))
    assert DistilledDataset(tmp_path / "distilled.safetensors").images.isfinite().all()


def test_experts_that_diverge_are_named(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diverging = ["--stages.experts.lr", 1e30, "--stages.experts.batch_size", 1]
    said = sentence_of(fit_words(recipe, tmp_path, *diverging), capsys)
    assert "expert 0 diverged" in said and "lower stages.experts.lr" in said and "lr_img" not in said


def test_a_transition_that_diverges_is_named(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diverging = ["--stages.transition.weight_decay", 1e9, "--stages.transition.epochs", 60]
    said = sentence_of(fit_words(recipe, tmp_path, *diverging), capsys)
    assert "training on the distilled images of 1 stages diverged" in said and "weight_decay" in said
    main(fit_words(recipe, tmp_path / "anew", "--stages.experts.folder", tmp_path / "experts" / "theta_0"))


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    main(fit_words(recipe, folder))
    return folder


@pytest.mark.parametrize("damage", ["deleted", "cut off", "picture", "summary"])
def test_what_a_finished_run_had_written_is_written_again(
    damage: str, finished: Path, recipe: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "distilled.safetensors"
    images = DistilledDataset(path).images
    if damage == "deleted":
        path.unlink()
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "picture":
        path = tmp_path / "images" / "stage_1.png"
        path.unlink()
    else:
        path = tmp_path / "summary.json"
        path.write_text("{")
    main(fit_words(recipe, tmp_path))
    assert path.stat().st_size > 1
    assert torch.equal(DistilledDataset(tmp_path / "distilled.safetensors").images, images)


def test_kernels_that_come_or_go_are_named(recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    main(fit_words(recipe, tmp_path / "same", "--trainer.max_steps", 2))
    shutil.copytree(tmp_path / "same", tmp_path / "other")
    path = tmp_path / "other" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    position = checkpoint["callbacks"]["StageAdvance"]
    position["kernels"] = not position["kernels"]
    CheckpointFiles().save_checkpoint(checkpoint, path)
    for folder in ("same", "other"):
        caplog.clear()
        main(fit_words(recipe, tmp_path / folder))
        assert ("not be equal bit for bit" in caplog.text) == (folder == "other")


def test_a_lower_rate_of_the_student_is_taken_over_within_a_stage(recipe: Path, tmp_path: Path) -> None:
    still = ["--model.lr_lr", 1e-30, "--checkpoint_every", 1]
    main(fit_words(recipe, tmp_path, *still, "--trainer.max_steps", 2))
    main(fit_words(recipe, tmp_path, *still, "--model.lr_teacher", 1e-5))
    assert DistilledDataset(tmp_path / "distilled.safetensors").learning_rates == pytest.approx((1e-5,))
