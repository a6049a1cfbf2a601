"""Sharing a distilled set, and loading shared ones."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from pdd_lightning import DistilledDataset
from pdd_lightning.cli import main
from pdd_lightning.data import hub
from pdd_lightning.errors import ConfigError, DataError

pytest.importorskip("pyarrow")
huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def shared(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("shared") / "set"
    main(["share", str(run), "--to", str(target), "--license", "mit"])
    return target


def test_the_set_is_shared_whole(run: Path, shared: Path) -> None:
    original, copy = DistilledDataset.load(run), DistilledDataset.load(shared)
    assert torch.equal(copy.images, original.images)
    assert copy.metadata == original.metadata


def test_the_card_says_what_it_is(run: Path, shared: Path) -> None:
    text = (shared / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert (header["license"], header["configs"][0]["data_files"]) == ("mit", "data/train.parquet")
    summary = json.loads((run / "summary.json").read_text())
    for row in summary["evaluation"]:
        assert f"{100 * row['mean']:.1f} ± {100 * row['std']:.1f}" in text
    for wanted in ("TrajectoryMatching", "seed 3", DistilledDataset.load(run).metadata["sha256"], "config.yaml"):
        assert wanted in text
    assert {path.name for path in shared.iterdir()} >= {"union.png", "config.yaml", "distilled.safetensors"}


def test_other_programs_read_classes_and_stages(
    run: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    rows = datasets.load_dataset("parquet", data_files=str(shared / "data" / "train.parquet"), split="train")
    original = DistilledDataset.load(run)
    assert rows.features["label"].names == original.class_names
    assert (rows["label"][:], rows["stage"][:]) == (original.labels.tolist(), original.stages.tolist())
    assert rows[0]["image"].size == original.images.shape[:1:-1]


def test_a_folder_is_not_replaced_unasked(run: Path, shared: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["share", str(run), "--to", str(shared)])
    assert "exists already" in str(stop.value)
    main(["share", str(run), "--to", str(shared), "--overwrite", "true"])
    assert DistilledDataset.load(shared)


def test_a_run_without_a_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["share", str(tmp_path), "--to", str(tmp_path / "new")])
    assert "distilled.safetensors" in str(stop.value)
    assert not list(tmp_path.iterdir())


def test_upload_to_the_hub(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    uploaded = {}

    def upload_folder(repo_id: str, repo_type: str, folder_path: str) -> None:
        uploaded[repo_id, repo_type] = {path.name for path in Path(folder_path).iterdir()}

    api = SimpleNamespace(create_repo=lambda name, **_: f"https://hub/datasets/{name}", upload_folder=upload_folder)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    main(["share", str(run), "--to", "hub:someone/tiny"])
    assert "https://hub/datasets/someone/tiny" in capsys.readouterr().out
    assert uploaded["someone/tiny", "dataset"] >= {"README.md", "data", "distilled.safetensors"}


def test_a_set_of_the_hub_comes_from_its_cache_offline(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.file_download.constants, "HF_HUB_CACHE", str(tmp_path))
    cached, commit = tmp_path / "datasets--someone--tiny", "0" * 40
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots" / commit).mkdir(parents=True)
    (cached / "snapshots" / commit / hub.FILE).write_bytes((shared / hub.FILE).read_bytes())
    assert torch.equal(DistilledDataset.load("hub:someone/tiny").images, DistilledDataset.load(shared).images)
    with pytest.raises(DataError, match=r"cannot get .* of hub:someone/other"):
        DistilledDataset.load("hub:someone/other")
    with pytest.raises(ConfigError, match="hub:owner/name"):
        DistilledDataset.load("hub:../../etc")


def test_sets_of_the_zoo(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "ZOO", shared.parent)
    assert torch.equal(DistilledDataset.load("zoo:set").images, DistilledDataset.load(shared).images)
    with pytest.raises(ConfigError, match="did you mean set"):
        DistilledDataset.load("zoo:sett")
