"""Two CPU processes under DDP: one run, equal images."""

import json
from pathlib import Path

import pytest
import torch

from pdd_lightning import DistilledDataset
from pdd_lightning.cli import main
from tests.cli.conftest import run_pdd

pytestmark = pytest.mark.slow

CALLBACK = '''
"""A callback that stores what each process holds after a stage."""

from pathlib import Path

import torch

from pdd_lightning.progression import StageObserver


class StoreRanks(StageObserver):
    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_experts_ready(self, trainer, stage_module, store, after_stage):
        (self.folder / f"experts_{after_stage}_{trainer.global_rank}").touch()

    def on_stage_end(self, trainer, stage_module, history):
        union = stage_module.data.union
        content = {"images": union.images, "labels": union.labels}
        torch.save(content, self.folder / f"stage_{union.num_stages}_{trainer.global_rank}.pt")
'''


DATM = ["--model", "DATM", "--model.lr_label", 5.0, "--model.first_max_start_epoch", 1]
FTD = ["--model", "FTD", "--model.image_average", 0.9]


DISCARD = ["--stages.discard.keep", "[0.9,0.6]", "--stages.discard.networks", 3, "--stages.discard.epochs", 4]


@pytest.mark.parametrize(
    "options", [[], DATM, FTD, DISCARD], ids=["plain", "soft labels", "average", "easy examples left out"]
)
def test_two_processes_run_all_stages_with_equal_images(
    options: list[object], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store_ranks.py").write_text(CALLBACK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    run = tmp_path / "run"
    words = ["--config", recipe, "--trainer.default_root_dir", run, "--trainer.strategy", "ddp", "--trainer.devices", 2]
    words += options
    result = run_pdd(
        "fit", *words, "--trainer.callbacks", "store_ranks.StoreRanks", "--trainer.callbacks.folder", tmp_path
    )
    assert result.returncode == 0, result.stdout
    for stage in (1, 2):
        first, second = (torch.load(tmp_path / f"stage_{stage}_{rank}.pt") for rank in (0, 1))
        assert torch.equal(first["images"], second["images"])
        assert torch.equal(first["labels"], second["labels"])
        assert first["labels"].is_floating_point() == (options == DATM)
        assert len(first["images"]) == 3 * stage
    assert len(list((run / "experts" / "theta_1").glob("*.safetensors"))) == 2
    assert DistilledDataset(run / "distilled.safetensors").num_stages == 2
    rows = json.loads((run / "summary.json").read_text())["evaluation"]
    assert rows[0]["n"] == 2

    tested = run_pdd("test", *words)
    assert tested.returncode == 0, tested.stdout
    rows = json.loads((run / "summary.json").read_text())["evaluation"]
    assert [(row["part"], row["row"], row["n"]) for row in rows[1:]] == [
        ("test", "distilled", 2),
        ("test", "random real", 2),
        ("test", "full real", 2),
    ]


def test_experts_do_not_depend_on_the_number_of_processes(recipe: Path, tmp_path: Path) -> None:
    files = []
    for devices in (1, 2):
        run = tmp_path / str(devices)
        words = ["--trainer.default_root_dir", run, "--stages.num_stages", 1, "--trainer.devices", devices]
        result = run_pdd("fit", "--config", recipe, "--trainer.strategy", "ddp", *words)
        assert result.returncode == 0, result.stdout
        files.append([path.read_bytes() for path in sorted((run / "experts" / "theta_0").glob("*.safetensors"))])
    assert files[0] == files[1]


def test_more_processes_than_networks(recipe: Path, tmp_path: Path) -> None:
    words = ["--config", recipe, "--trainer.default_root_dir", tmp_path, "--trainer.strategy", "ddp"]
    few = [
        "--evaluation.num_networks",
        1,
        "--evaluation.random_sets",
        1,
        "--evaluation.full_data_epochs",
        0,
        "--trainer.devices",
        3,
    ]
    for verb in ("fit", "test"):
        result = run_pdd(verb, *words, *few)
        assert result.returncode == 0, result.stdout
    rows = json.loads((tmp_path / "summary.json").read_text())["evaluation"]
    assert [(row["part"], row["row"]) for row in rows] == [
        ("val", "distilled"),
        ("test", "distilled"),
        ("test", "random real"),
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "--random_sets", 3, "--epochs", 2, "--full_data_epochs", 1, "--baselines", "[random,herding]"],
        ["describe", "--training.epochs", 1],
    ],
    ids=lambda words: words[0],
)
def test_networks_do_not_depend_on_the_number_of_processes(
    words: list[object], run: Path, image_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    verb, *options = words
    options = [run / "distilled.safetensors", "--data", "ImageFolder", "--data.root", image_folder, *options]
    options += ["--num_networks", 3, "--device", "cpu"]
    rows, tables = [], []
    for processes in (1, 2):
        output = tmp_path / f"{processes}.json"
        main([str(word) for word in [verb, *options, "--output", output, "--processes", processes]])
        rows.append([{**row, "seconds": 0} for row in json.loads(output.read_text())["rows"]])
        tables.append(len(capfd.readouterr().out.splitlines()))
    assert rows[0] == rows[1]
    assert tables[0] == tables[1] > 3, "another process than the first has printed something"
    kept = [(tmp_path / f"{processes}.networks.jsonl").read_text().splitlines() for processes in (1, 2)]
    assert len(kept[0]) == len(kept[1]) == (10 + 3 if verb == "evaluate" else 3)


def test_bad_input_is_refused_by_all_processes_in_one_message(image_folder: Path, tmp_path: Path) -> None:
    words = ["evaluate", tmp_path / "none.safetensors", "--data", "ImageFolder", "--data.root", image_folder]
    result = run_pdd(*words, "--device", "cpu", "--processes", 2)
    assert result.returncode == 1
    assert result.stdout.startswith("pdd: error: cannot read ") and len(result.stdout.splitlines()) == 1
