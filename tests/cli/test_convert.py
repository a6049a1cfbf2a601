"""Sets and experts of other forms, from the command line."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch

from pdd_lightning import DistilledDataset
from pdd_lightning.cli import main
from pdd_lightning.networks import ConvNet
from tests.cli.conftest import write_folder
from tests.cli.test_bad_input import refusal

NETWORK = "class_path: pdd_lightning.networks.ConvNet\ninit_args: {depth: 2, width: 4}\n"


@pytest.fixture(scope="module")
def data(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "data.yaml"
    path.write_text(
        f"class_path: pdd_lightning.data.ImageFolder\ninit_args: {{root: {image_folder}, val_fraction: 0.25}}\n"
    )
    return path


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "network.yaml"
    path.write_text(NETWORK)
    return path


@pytest.fixture
def mtt(tmp_path: Path) -> Path:
    """Two stages of one image per class, as the authors' code leaves them."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.save(images, folder / "images_best.pt")
    torch.save(torch.tensor([0, 1, 2, 0, 1, 2]), folder / "labels_best.pt")
    torch.save(torch.tensor(0.02), folder / "syn_lr_best.pt")
    return folder / "images_best.pt"


def pdd(*words: object) -> None:
    main([str(word) for word in words])


@pytest.mark.parametrize("normalization", ["standard", "zca"])
def test_evaluate_takes_an_imported_file(
    mtt: Path, data: Path, network: Path, tmp_path: Path, normalization: str
) -> None:
    output = tmp_path / "rows.json"
    words = ["--data", data, "--data.normalization", normalization, "--network", network, "--num_stages", 2]
    pdd("evaluate", mtt, *words, "--num_networks", 2, "--random_sets", 2, "--epochs", 2, "--output", output)
    rows = json.loads(output.read_text())["rows"]
    assert [(row["row"], row["images"]) for row in rows] == [("distilled", 6), ("random real", 6)]
    assert list(rows[0]["per_class"]) == ["blue", "green", "red"]


def test_evaluation_of_an_imported_file_is_that_of_its_conversion(
    mtt: Path, data: Path, network: Path, tmp_path: Path
) -> None:
    pdd("convert", mtt, tmp_path / "ours.safetensors", "--data", data, "--num_stages", 2)
    scores = []
    for path, words in ((mtt, ["--num_stages", 2]), (tmp_path / "ours.safetensors", [])):
        output = tmp_path / "rows.json"
        words = [
            *words,
            "--data",
            data,
            "--network",
            network,
            "--num_networks",
            2,
            "--random_sets",
            2,
            "--epochs",
            3,
            "--output",
            output,
        ]
        pdd("evaluate", path, *words)
        scores.append([row["per_class"] for row in json.loads(output.read_text())["rows"]])
    assert scores[0] == scores[1]


def test_evaluate_asks_for_what_the_file_does_not_say(
    mtt: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "name one with --network" in refusal(capsys, "evaluate", mtt, "--data", data)
    torch.save([torch.zeros(3, 3, 8, 8), torch.arange(3)], tmp_path / "data.pt")
    assert "give decode_factor" in refusal(capsys, "evaluate", tmp_path / "data.pt", "--data", data)


def test_convert_says_what_it_wrote_and_what_was_lost(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's own set needs no data."""
    capsys.readouterr()
    pdd("convert", run / "distilled.safetensors", tmp_path / "set.parquet")
    pdd("convert", run / "distilled.safetensors", tmp_path / "data.pt", "--format", "idc")
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'set.parquet'}: 6 images of 3 classes, 2 stages, parquet format" in printed
    assert "Note: images are rounded to 8 bits per channel" in printed
    assert "Note: learned rates are not stored: 0.0" in printed and "--num_stages 2" in printed


def test_there_and_back(mtt: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = tmp_path / "ours.safetensors"
    pdd("convert", mtt, ours, "--data", data, "--num_stages", 2)
    assert "Note: images are taken to be in the standard space of" in capsys.readouterr().out
    pdd("convert", ours, tmp_path / "back", "--format", "mtt")
    for name in ("images_best.pt", "labels_best.pt"):
        theirs = torch.load(mtt.with_name(name), weights_only=True)
        assert torch.equal(torch.load(tmp_path / "back" / name, weights_only=True), theirs)
    dataset = DistilledDataset(ours)
    assert dataset.metadata["imported_from"] == "MTT" and dataset.learning_rates == (None, pytest.approx(0.02))


def test_training_images_can_be_written_for_stored_ones(data: Path, tmp_path: Path) -> None:
    torch.save([torch.rand(3, 3, 8, 8), torch.arange(3)], tmp_path / "data.pt")
    words = ["--format", "folder", "--data", data, "--decode_factor", 2]
    pdd("convert", tmp_path / "data.pt", tmp_path / "stored", *words)
    pdd("convert", tmp_path / "data.pt", tmp_path / "decoded", *words, "--decoded", "true")
    assert [len(list((tmp_path / name).rglob("*.png"))) for name in ("stored", "decoded")] == [3, 12]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["SOURCE"], "name a source and a target"),
        (["SOURCE", "SOURCE", "a.safetensors"], "one distilled set at a time"),
        (["SOURCE", "a.pt"], "choose one of safetensors, folder, mtt"),
        (["SOURCE", "TAKEN"], "exists: choose another name, or replace it with --overwrite true"),
        (["missing.pt", "a.safetensors"], "cannot read missing.pt"),
        (["SOURCE", "a.safetensors", "--num_stages", "3"], "has num_stages 2"),
    ],
)
def test_conversion_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    taken = tmp_path / "taken.safetensors"
    taken.write_text("mine")
    names = {"SOURCE": str(run / "distilled.safetensors"), "TAKEN": str(taken)}
    assert expected in refusal(capsys, "convert", *(names.get(word, word) for word in words))
    assert taken.read_text() == "mine"


def test_overwrite_replaces(run: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken.safetensors"
    taken.write_text("mine")
    pdd("convert", run / "distilled.safetensors", taken, "--overwrite", "true")
    assert torch.equal(DistilledDataset(taken).images, DistilledDataset(run / "distilled.safetensors").images)


@pytest.fixture
def buffers(tmp_path: Path) -> list[Path]:
    """Two files of one expert each, of random parameters after three epochs."""
    make = partial(ConvNet, 3, 3, 8, depth=2, width=4)
    paths = []
    for number in range(2):
        expert = [[value.detach() for value in make().parameters()] for _ in range(4)]
        paths.append(tmp_path / f"replay_buffer_{number}.pt")
        torch.save([expert], paths[-1])
    return paths


def test_experts_of_others_are_distilled_from(
    buffers: list[Path], data: Path, network: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The settings that the conversion prints are those that a run takes the folder with."""
    experts = tmp_path / "experts"
    words = ["convert", *buffers, experts, "--data", data, "--network", network, "--seed", 3]
    pdd(*words, "--experts.batch_size", 16)
    printed = capsys.readouterr().out
    assert f"{experts}: 2 experts of 3 epochs, validation accuracy" in printed
    (advice,) = re.findall(r"Distill from them with (.*)", printed)
    before = {path: path.read_bytes() for path in experts.iterdir()}
    fit = ["fit", "--config", recipe, "--trainer.default_root_dir", tmp_path / "run"]
    assert "seed: 3 on disk, 5 asked for" in refusal(capsys, *fit, *advice.split(), "--seed_everything", 5)
    pdd(*fit, *advice.split(), "--stages.num_stages", 1)
    assert {path: path.read_bytes() for path in experts.iterdir()} == before, "experts were recorded anew"
    assert len(DistilledDataset(tmp_path / "run" / "distilled.safetensors")) == 3


def test_experts_need_network_and_data_and_an_empty_folder(
    buffers: list[Path], data: Path, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["convert", buffers[0], tmp_path / "experts"]
    assert "give --network and --data" in refusal(capsys, *words, "--data", data)
    words += ["--data", data, "--network", network]
    pdd(*words)
    first = (tmp_path / "experts" / "expert_000.safetensors").read_bytes()
    assert "holds experts: choose another folder" in refusal(capsys, *words)
    words[1] = buffers[1]
    assert "parameter 0 is (4, 3, 3, 3)" in refusal(capsys, *words, "--network.width", 5, "--overwrite", "true"), (
        "refused before the former experts are gone"
    )
    assert (tmp_path / "experts" / "expert_000.safetensors").read_bytes() == first
    pdd(*words, "--overwrite", "true")
    assert (tmp_path / "experts" / "expert_000.safetensors").read_bytes() != first


def test_an_image_folder_of_distilled_images_is_evaluated(
    run: Path, image_folder: Path, network: Path, tmp_path: Path
) -> None:
    pdd("convert", run / "distilled.safetensors", tmp_path / "set", "--format", "folder")
    words = ["--data", "ImageFolder", "--data.root", image_folder, "--network", network]
    pdd(
        "evaluate",
        tmp_path / "set",
        *words,
        "--num_networks",
        1,
        "--random_sets",
        1,
        "--epochs",
        1,
        "--output",
        tmp_path / "rows.json",
    )
    assert json.loads((tmp_path / "rows.json").read_text())["rows"][0]["images"] == 6


def test_a_folder_of_other_classes_is_named(
    run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_folder(tmp_path / "other")
    (other / "train" / "red").rename(other / "train" / "violet")
    words = ["evaluate", other, "--data", "ImageFolder", "--data.root", image_folder]
    assert "are no classes of" in refusal(capsys, *words)
