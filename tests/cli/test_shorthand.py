"""Short command lines stand for long ones."""

import json
from pathlib import Path

import pytest

from pdd_lightning.cli import main
from pdd_lightning.errors import ConfigError
from pdd_lightning.shorthand import CONFIGS, long_form, shipped
from tests.cli.conftest import PROJECT

RECIPE, NETWORK = CONFIGS / "recipe" / "digits_mtt.yaml", CONFIGS / "network" / "resnet18.yaml"


def test_the_packages_files_are_those_of_the_project() -> None:
    assert CONFIGS.resolve() == (PROJECT / "configs").resolve()
    for kind in ("recipe", "data", "network", "method", "study", "trainer"):
        assert list(shipped(kind)) == sorted(path.stem for path in (PROJECT / "configs" / kind).glob("*.yaml"))


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("fit digits_mtt", f"fit --config={RECIPE}"),
        ("fit digits_mtt --folder a --x 1", f"fit --config={RECIPE} --trainer.default_root_dir a --x 1"),
        ("test digits_mtt --folder=a", f"test --config={RECIPE} --trainer.default_root_dir=a"),
        ("fit --config digits_mtt", f"fit --config {RECIPE}"),
        ("fit --config=digits_mtt", f"fit --config={RECIPE}"),
        ("fit --model.network resnet18", f"fit --model.network {NETWORK}"),
        ("fit --model mtt --data.real digits",
         f"fit --model {CONFIGS / 'method' / 'mtt.yaml'} --data.real {CONFIGS / 'data' / 'digits.yaml'}"),
        ("evaluate a.safetensors --data=digits --network ResNet18",
         f"evaluate a.safetensors --data={CONFIGS / 'data' / 'digits.yaml'} --network ResNet18"),
        ("study digits_stages --folder a", f"study {CONFIGS / 'study' / 'digits_stages.yaml'} --folder a"),
        ("report digits", "report digits"),
        ("--help", "--help"),
        ("", ""),
    ],
)  # fmt: skip
def test_what_short_forms_stand_for(short: str, long: str) -> None:
    assert long_form(short.split()) == long.split()


def test_a_file_is_preferred_to_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits_mtt", "resnet18"):
        Path(name).write_text("")
    assert long_form(["fit", "digits_mtt", "--network", "resnet18"]) == [
        "fit", "--config=digits_mtt", "--network", "resnet18",
    ]  # fmt: skip


def test_a_run_folder_stands_for_what_is_in_it(tmp_path: Path) -> None:
    real = {"class_path": "pdd_lightning.data.Digits", "init_args": {"val_fraction": 0.2}}
    (tmp_path / "config.yaml").write_text(json.dumps({"data": {"real": real}}))
    run = [f"--config={tmp_path / 'config.yaml'}", f"--trainer.default_root_dir={tmp_path}"]
    assert long_form(["resume", str(tmp_path), "--x", "1"]) == ["fit", *run, "--ckpt_path=last", "--x", "1"]
    assert long_form(["test", str(tmp_path)]) == ["test", *run]
    made = str(tmp_path / "distilled.safetensors")
    assert long_form(["evaluate", str(tmp_path), "--epochs", "1"]) == [
        "evaluate", made, f"--data={json.dumps(real)}", "--epochs", "1",
    ]  # fmt: skip
    assert long_form(["describe", str(tmp_path), "--data", "CIFAR10"]) == ["describe", made, "--data", "CIFAR10"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "does not say the real images"),
        ("data: [1]", "does not say the real images"),
        ("\x00", "does not say the real images"),
        ("data: {real: {class_path: os.system}}", "os.system, which is not part of this package"),
        ("data: {real: {class_path: pdd_lightning.A, init_args: {real: {class_path: b.C}}}}", "b.C, which is not part"),
    ],
)
def test_the_configuration_of_a_stranger_is_not_trusted(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        long_form(["evaluate", str(tmp_path)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fit digits_mt", "there is no recipe digits_mt: did you mean digits_mtt"),
        ("fit zzz", "there is no recipe zzz: name a YAML file, or one of the package's, such as cifar100"),
        ("study digits_stage", "did you mean digits_stages"),
        ("resume", "name the folder"),
        ("resume .", "has no config.yaml"),
    ],
)
def test_what_is_not_there_is_named(words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        long_form(words.split())


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped("recipe"))
    assert all(len(line.split()) > 4 for line in lines)


def test_runs_are_listed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["runs", str(run)])
    table = capsys.readouterr().out
    assert all(word in table for word in (str(run), "TrajectoryMatching", "2 of 2", "finished", " MB"))


def test_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--model.help"])
    output = capsys.readouterr().out
    assert "TrajectoryMatching" in output
    assert "DistillationStage" not in output


def test_data_of_the_hugging_face_library_is_known_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "digits_dm", "--data.real", "HuggingFaceImages", "--data.real.source", "x", "--print_config"])
    assert stop.value.code == 0
    assert "HuggingFaceImages" in capsys.readouterr().out
