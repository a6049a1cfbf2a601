"""Every YAML file under configs/ is parsed, and what it describes is made."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pdd_lightning.callbacks import Evaluation
from pdd_lightning.cli import PDDCLI, main
from pdd_lightning.progression import StageAdvance
from tests.cli.conftest import PROJECT

CONFIGS = PROJECT / "configs"
DIGITS = CONFIGS / "recipe" / "digits_mtt.yaml"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[PDDCLI]:
    """Command lines that were built; nothing is run."""
    seen: list[PDDCLI] = []

    def remember(self: PDDCLI, **kwargs: Any) -> None:
        seen.append(self)

    monkeypatch.setattr(PDDCLI, "fit", remember)
    return seen


def files(folder: str) -> list[str]:
    return sorted(path.name for path in (CONFIGS / folder).glob("*.yaml"))


def build(built: list[PDDCLI], tmp_path: Path, *words: object) -> PDDCLI:
    main(["fit", *map(str, words), "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path)])
    return built.pop()


@pytest.mark.parametrize("name", files("recipe"))
def test_recipe(name: str, built: list[PDDCLI], tmp_path: Path) -> None:
    cli = build(built, tmp_path, "--config", CONFIGS / "recipe" / name)
    channels = 1 if name.startswith("digits") else 3
    size = cli.datamodule.real.image_size if "folder" in name else {"d": 8, "c": 32, "t": 64}[name[0]]
    network = cli.model.network(channels, 10, size)
    assert sum(parameter.numel() for parameter in network.parameters()) > 0
    (advance,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, StageAdvance))
    (evaluation,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, Evaluation))
    if "_idc" in name:  # IDC trains all networks by a protocol of its own
        for training in (advance.transition.training(0.01), evaluation.settings.training):
            assert (training.milestones, training.gamma) == (pytest.approx((2 / 3, 5 / 6), abs=1e-3), 0.2)
            assert (training.batch_size, training.cutmix) == (64, 0.5)


def test_network_and_data_by_their_files(built: list[PDDCLI], tmp_path: Path) -> None:
    """Tests of networks and of data make all of them."""
    files = ["--model.network", CONFIGS / "network" / "resnet10.yaml", "--data.real", CONFIGS / "data" / "svhn.yaml"]
    cli = build(built, tmp_path, "--config", DIGITS, *files)
    assert cli.model.network(3, 10, 32)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert type(cli.datamodule.real).__name__ == "SVHN"


@pytest.mark.parametrize("name", files("method"))
def test_method(name: str, built: list[PDDCLI], tmp_path: Path) -> None:
    data = CONFIGS / "data" / "cifar10.yaml"
    assert build(built, tmp_path, "--model", CONFIGS / "method" / name, "--data.real", data).model.ipc == 2


@pytest.mark.parametrize("name", files("trainer"))
def test_trainer_composes_with_a_recipe(name: str, built: list[PDDCLI], tmp_path: Path) -> None:
    words = ["--config", DIGITS, "--config", CONFIGS / "trainer" / name, "--trainer.devices", 1]
    cli = build(built, tmp_path, *words)
    assert cli.model.syn_steps == 10


def test_later_configuration_and_command_line_win(built: list[PDDCLI], tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("stages: {num_stages: 2, iterations: 7}\n")
    cli = build(built, tmp_path, "--config", DIGITS, "--config", second, "--stages.iterations", 9)
    assert cli.config.fit.stages.num_stages == 2
    assert cli.datamodule.seed == 0
    assert cli.config.fit.stages.iterations == 9
    assert cli.config.fit.stages.experts.number == 8


def test_one_seed_governs_the_run(built: list[PDDCLI], tmp_path: Path) -> None:
    assert build(built, tmp_path, "--config", DIGITS, "--seed_everything", 5).datamodule.seed == 5
