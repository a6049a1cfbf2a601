"""Bad input ends at once with one clear message and a non-zero exit status."""

import shutil
from pathlib import Path

import pytest

from pdd_lightning import DistilledDataset
from pdd_lightning.callbacks.checkpoint import CheckpointFiles
from pdd_lightning.cli import main
from tests.cli.conftest import start_pdd, write_folder


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The message that a command line ends with; nothing may have been trained."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    errors = capsys.readouterr().err
    assert stop.value.code not in (0, None)
    assert "step/s" not in errors, "experts were trained before the input was refused"
    return stop.value.code if isinstance(stop.value.code, str) else errors


def fit(recipe: Path, folder: Path, *words: object) -> list[object]:
    return ["fit", "--config", recipe, "--trainer.default_root_dir", folder, *words]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data.real.root", "no/such/folder"], "no/such/folder"),
        (["--model.ipc", "10"], "class 'blue' has 9 training images"),
        (["--model.network.depth", "4"], "8"),
        (["--model.max_start_epoch", "5", "--stages.experts.epochs", "4"], "stages.experts.epochs records only 4"),
        (["--model.syn_stepz", "3"], "has no argument syn_stepz: did you mean syn_steps?"),
        (["--model.network.widht", "3"], "ConvNet has no argument widht: did you mean width?"),
        (["--model.network", "ResNet17"], "there is no network ResNet17: did you mean ResNet18"),
        (["--model", "Nonsense"], "choose from datm"),
        (["--stages.iteratons", "3"], "there is no option --stages.iteratons: did you mean --stages.iterations"),
        (["--stages.iteration", "1"], "there is no option --stages.iteration: did you mean --stages.iterations"),
        (["--stages.num_stages", "x"], "--stages.num_stages: Expected int. Got value: x"),
        (["--model.ipc", "1.5"], "--model.ipc: Expected int"),
        (["--stages.num_stages", "0"], "num_stages must be >= 1, got 0"),
        (
            ["--stages.discard.keep", "[1,1]", "--stages.discard.scores", "no.npz"],
            "there are no forgetting scores no.npz",
        ),
        (["--stages.transition.at_once", "0"], "transition.at_once must be >= 1, got 0"),
        (
            ["--stages.transition.at_once", "2", "--model.network", "tests.tiny.DropoutNet"],
            "DropoutNet cannot be trained at once",
        ),
        (["--seed_everything", "true"], "seed_everything must be a number"),
        (["--trainer.max_epochs", "3"], "set stages.num_stages"),
        (["--trainer.precision", "64-true"], "precision 64-true is not supported"),
        (["--evaluation.baselines", "[herding]", "--evaluation.full_data_epochs", "0"], "set full_data_epochs"),
        (["--ckpt_path", "no/such.ckpt"], "there is no checkpoint no/such.ckpt"),
    ],
)
def test_setting_is_refused(
    words: list[str], expected: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refusal(capsys, *fit(recipe, tmp_path, *words))


def test_unknown_key_in_a_configuration(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text(recipe.read_text().replace("num_stages", "number_of_stages"))
    assert "number_of_stages" in refusal(capsys, *fit(config, tmp_path))


def test_checkpoint_of_another_dataset(
    run: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_folder(tmp_path / "other", seed=1)
    words = ["--data.real.root", other, "--ckpt_path", run / "checkpoints" / "last.ckpt"]
    assert "the checkpoint was made with" in refusal(capsys, *fit(recipe, tmp_path, *words))


def test_checkpoint_of_another_seed(run: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "seed_everything 3" in refusal(capsys, *fit(recipe, run, "--seed_everything", 4, "--ckpt_path", "last"))


def test_checkpoint_of_another_ipc(run: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "ipc" in refusal(capsys, *fit(recipe, run, "--model.ipc", 2, "--ckpt_path", "last"))


def test_folder_that_holds_a_run(run: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "continue it with `pdd resume" in refusal(capsys, *fit(recipe, run))


def test_experts_of_other_settings(run: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--stages.experts.folder", run / "experts" / "theta_0", "--stages.experts.batch_size", 8]
    message = refusal(capsys, *fit(recipe, tmp_path, *words))
    assert "training.batch_size: 16 on disk, 8 asked for" in message


def test_test_without_a_checkpoint(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["test", "--config", recipe, "--trainer.default_root_dir", tmp_path]
    assert "there is no checkpoint" in refusal(capsys, *words)


def test_experts_inits_of_a_method_without_experts(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = tmp_path / "method.yaml"
    network = "{class_path: pdd_lightning.networks.ConvNet, init_args: {depth: 2, width: 4}}"
    method.write_text(f"model: {{class_path: DistributionMatching, init_args: {{ipc: 1, network: {network}}}}}")
    words = fit(recipe, tmp_path, "--config", method, "--evaluation.expert_inits", "true")
    assert "DistributionMatching follows no trajectories" in refusal(capsys, *words)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_distilled_file(
    damage: str, run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray((run / "distilled.safetensors").read_bytes())
    if damage == "truncated":
        del content[-100:]
    else:
        content[-100] ^= 1
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    words = ["evaluate", path, "--data", "ImageFolder", "--data.root", image_folder]
    assert f"{path} is damaged" in refusal(capsys, *words)


@pytest.mark.parametrize("content", ["truncated", "foreign"])
def test_unusable_checkpoint(
    content: str, run: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "last.ckpt"
    if content == "truncated":
        path.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes()[:-500])
    else:
        CheckpointFiles().save_checkpoint({"state_dict": {}}, path)
    message = refusal(capsys, *fit(recipe, tmp_path, "--ckpt_path", path))
    assert ("is damaged" if content == "truncated" else "is not a checkpoint of a distillation") in message


def test_too_few_images_for_the_random_baseline(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = write_folder(tmp_path / "few", per_class=2)
    words = ["evaluate", run / "distilled.safetensors", "--data", "ImageFolder", "--data.root", few]
    assert "fewer than the 2 that the baselines need" in refusal(capsys, *words)


def test_damaged_expert_is_named_and_recorded_again_when_deleted(
    run: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "experts"
    shutil.copytree(run / "experts" / "theta_0", folder)
    sound = (folder / "expert_001.safetensors").read_bytes()
    (folder / "expert_001.safetensors").write_bytes(sound[:-8])
    words = fit(recipe, tmp_path / "b", "--stages.experts.folder", folder, "--stages.num_stages", 1)
    assert "expert_001.safetensors" in refusal(capsys, *words)
    (folder / "expert_001.safetensors").unlink()
    main([str(word) for word in words])
    assert (folder / "expert_001.safetensors").read_bytes() == sound


def test_exploding_loss_stops_with_the_last_good_images(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = fit(recipe, tmp_path, "--model.lr_img", 1e30, "--model.lr_lr", 1)
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert "the matching loss is not finite in stage 1" in str(stop.value.code)
    assert "Lower lr_img" in str(stop.value.code)
    assert (tmp_path / "last_good.safetensors").exists()


def test_an_update_that_ruins_the_images_is_not_frozen(recipe: Path, tmp_path: Path) -> None:
    words = fit(recipe, tmp_path, "--model.lr_img", 3e38, "--stages.iterations", 1, "--stages.num_stages", 1)
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in [*words, "--model.lr_teacher", 1, "--model.syn_steps", 5]])
    assert "not finite in stage 1" in str(stop.value.code)
    assert not (tmp_path / "distilled.safetensors").exists()
    assert DistilledDataset(tmp_path / "last_good.safetensors").images.isfinite().all()


def test_unknown_command_and_no_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no command evalute: did you mean evaluate" in refusal(capsys, "evalute")
    assert "name a recipe" in refusal(capsys, "fit")


def test_missing_options_are_named_as_they_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert "missing --to" in refusal(capsys, "share", "runs/a")
    assert "missing --data" in refusal(capsys, "describe", "zoo:digits_mtt")
    assert "there is no run in runs/nope" in refusal(capsys, "test", "runs/nope")


def test_an_unknown_option_is_reported_once(tmp_path: Path) -> None:
    process = start_pdd("fit", "digits_dm", "--modle", "DC")
    output, _ = process.communicate()
    assert (process.returncode, output.count("there is no option --modle")) == (2, 1)


def test_a_refused_start_leaves_no_folder(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refusal(capsys, *fit(recipe, tmp_path / "new", "--model.ipc", 10))
    assert not (tmp_path / "new").exists()
