"""A whole run through the command line: what it writes, and what reads it back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pdd_lightning import DistilledDataset
from pdd_lightning.cli import main
from pdd_lightning.data import ForgettingScores
from tests.cli.conftest import PROJECT, run_pdd


def test_distilled_set_holds_all_stages(run: Path) -> None:
    dataset = DistilledDataset(run / "distilled.safetensors")
    assert dataset.images.shape == (6, 3, 8, 8)
    assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.stages.tolist() == [1, 1, 1, 2, 2, 2]
    assert dataset.class_names == ["blue", "green", "red"]
    assert all(rate > 0 for rate in dataset.learning_rates)
    assert dataset.metadata["settings"]["syn_steps"] == 2


def test_summary_has_a_report_per_stage_and_the_evaluations(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert [stage["images"] for stage in summary["stages"]] == [3, 6]
    assert [stage["real_images"] for stage in summary["stages"]] == [27, 27]
    for stage in summary["stages"]:
        assert stage["first_loss"] > 0
        assert 0 <= stage["val_accuracy"] <= 1
        assert stage["val_networks"] == 2
        assert set(stage["seconds"]) == {"distil", "transition", "experts"}
        assert stage["peak_memory_mb"] > 0
    rows = [(row["part"], row["row"], row["images"], row["n"]) for row in summary["evaluation"]]
    assert rows == [
        ("val", "distilled", 6, 2),
        ("val", "random real", 6, 2),
        ("test", "distilled", 6, 2),
        ("test", "random real", 6, 2),
        ("test", "full real", 27, 2),
    ]


def test_pictures_are_written(run: Path) -> None:
    names = {path.name for path in (run / "images").iterdir()}
    assert names == {"stage_1.png", "stage_2.png", "union.png", "easiest.png", "hardest.png"}
    with Image.open(run / "images" / "union.png") as union, Image.open(run / "images" / "stage_1.png") as stage:
        assert union.width > stage.width


def test_tensorboard_holds_scalars_images_and_histograms(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"matching_loss", "learned_lr", "grad_norm", "stages/val_accuracy"} <= set(tags["scalars"])
    assert "experts_of_stage_1/training_loss_mean" in tags["scalars"]
    assert len(events.Scalars("matching_loss")) == 12
    assert {"images/stage_1", "images/stage_2", "images/union"} <= set(tags["images"])
    assert {"pixels/stage_2", "forgetting/scores"} <= set(tags["histograms"])
    assert {"forgetting/easiest", "forgetting/hardest"} <= set(tags["images"])
    assert [event.value for event in events.Scalars("stages/real_images")] == [27, 27]
    assert [event.step for event in events.Scalars("accuracy/val_distilled")] == [6], "the number of images, once"


def test_scores_can_be_given_back(run: Path, recipe: Path, tmp_path: Path) -> None:
    """The scores of a run leave easy examples out of another one."""
    assert len(ForgettingScores.load(run / "forgetting.npz")) == 27
    words = ["fit", "--config", recipe, "--trainer.default_root_dir", tmp_path, "--stages.discard.keep", "[0.8,0.5]"]
    main([str(word) for word in [*words, "--stages.discard.scores", run / "forgetting.npz"]])
    summary = json.loads((tmp_path / "summary.json").read_text())
    first, second = (stage["real_images"] for stage in summary["stages"])
    assert first == 22 and second in (14, 15, 16)  # one more for each class that would be without
    assert not (tmp_path / "experts" / "scoring").exists()


def test_run_folder_holds_its_configuration_and_checkpoint(run: Path) -> None:
    assert "syn_steps: 2" in (run / "config.yaml").read_text()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_evaluate_reads_the_file(run: Path, image_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.yaml"
    data.write_text(f"class_path: pdd_lightning.data.ImageFolder\ninit_args: {{root: {image_folder}}}\n")
    output = tmp_path / "results.json"
    words = ["evaluate", run / "distilled.safetensors", "--data", data, "--network", "ResNet10"]
    main([str(word) for word in [*words, "--num_networks", 1, "--random_sets", 1, "--epochs", 1, "--output", output]])
    rows = json.loads(output.read_text())["rows"]
    assert [row["row"] for row in rows] == ["distilled", "random real"]
    assert rows[0]["protocol"] == "progressive"
    assert len((tmp_path / "results.networks.jsonl").read_text().splitlines()) == 2


def test_a_run_is_tested_in_float32_whatever_the_precision(run: Path, recipe: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "evaluation.jsonl").unlink()
    words = ["test", "--config", recipe, "--ckpt_path", copy / "checkpoints" / "last.ckpt"]
    main([str(word) for word in [*words, "--trainer.precision", "bf16-mixed"]])
    before, after = (json.loads((folder / "summary.json").read_text())["evaluation"] for folder in (run, copy))
    assert [{**row, "seconds": 0} for row in after] == [{**row, "seconds": 0} for row in before]


def test_evaluate_compares_with_whatever_is_asked_for(run: Path, image_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    words = ["evaluate", run / "distilled.safetensors", "--data", "ImageFolder", "--data.root", image_folder]
    words += ["--num_networks", 1, "--random_sets", 1, "--epochs", 1, "--full_data_epochs", 1, "--output", output]
    words += ["--protocols", "[progressive,union]", "--baselines", "[herding,kmeans]", "--every_stage", "true"]
    words += ["--experts", run / "experts" / "theta_0", "--ranking", "true", "--augment", "crop"]
    main([str(word) for word in words])
    content = json.loads(output.read_text())
    staged = ("distilled", "distilled, experts' inits", "random real", "herding", "k-means centres")
    protocols = (("progressive", 1), ("progressive", 2), ("union", 2))
    assert [(row["row"], row["protocol"], row["stage"]) for row in content["rows"]] == [
        *[(row, *protocol) for row in staged for protocol in protocols],
        ("full real", "all images", 1),
        *[
            (f"{row}, no augmentation", "progressive", stage)
            for row in ("distilled", "random real")
            for stage in (1, 2)
        ],
    ]
    assert set(content["ranking"]) == {"label_robust_score", "augmentation_robust_score"}
    assert all(0 < score < 1 for score in content["ranking"].values())


def test_testing_again_takes_the_results_that_are_there(
    run: Path, recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads((run / "summary.json").read_text())["evaluation"]
    monkeypatch.setattr(torch.optim.SGD, "step", None)  # whatever is trained fails
    words = ["test", "--config", recipe, "--ckpt_path", run / "checkpoints" / "last.ckpt"]
    main([str(word) for word in words])
    assert "6 of 6 results were computed before" in capsys.readouterr().out
    assert json.loads((run / "summary.json").read_text())["evaluation"] == before


def test_a_run_is_evaluated_from_its_experts_inits_too(run: Path, recipe: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    words = ["test", "--config", recipe, "--ckpt_path", copy / "checkpoints" / "last.ckpt"]
    words += ["--evaluation.expert_inits", "true", "--evaluation.baselines", "[]", "--evaluation.full_data_epochs", 0]
    main([str(word) for word in words])
    rows = json.loads((copy / "summary.json").read_text())["evaluation"]
    tested = [(row["row"], row["init"], row["n"]) for row in rows if row["part"] == "test"]
    assert tested == [("distilled", "fresh", 2), ("distilled, experts' inits", "expert", 2)]


def test_a_finished_run_ends_at_once_and_stays_as_it_is(run: Path, recipe: Path) -> None:
    before = DistilledDataset(run / "distilled.safetensors").images
    experts = {path: path.stat().st_mtime_ns for path in (run / "experts").rglob("*.safetensors")}
    main(["fit", "--config", str(recipe), "--trainer.default_root_dir", str(run), "--ckpt_path", "last"])
    assert torch.equal(DistilledDataset(run / "distilled.safetensors").images, before)
    assert {path: path.stat().st_mtime_ns for path in (run / "experts").rglob("*.safetensors")} == experts


def test_one_stage_is_the_base_method(recipe: Path, tmp_path: Path) -> None:
    words = ["fit", "--config", recipe, "--trainer.default_root_dir", tmp_path, "--stages.num_stages", 1]
    main([str(word) for word in words])
    assert DistilledDataset(tmp_path / "distilled.safetensors").num_stages == 1


def test_time_limit_stops_and_the_run_continues(recipe: Path, tmp_path: Path, run: Path) -> None:
    """`max_steps` leaves stage 1 early; nothing may be frozen then, and the continued run equals the straight one."""
    words = ["fit", "--config", str(recipe), "--trainer.default_root_dir", str(tmp_path)]
    main([*words, "--trainer.max_steps", "3"])
    assert not (tmp_path / "distilled.safetensors").exists()
    main([*words, "--ckpt_path", "last"])
    straight = DistilledDataset(run / "distilled.safetensors")
    assert torch.equal(DistilledDataset(tmp_path / "distilled.safetensors").images, straight.images)


def test_fast_dev_run_goes_through(recipe: Path, tmp_path: Path) -> None:
    main(
        ["fit", "--config", str(recipe), "--trainer.default_root_dir", str(tmp_path), "--trainer.fast_dev_run", "true"]
    )
    assert not (tmp_path / "checkpoints").exists()


def test_short_names_and_network_files_work_in_a_process_of_its_own(run: Path, image_folder: Path) -> None:
    network = PROJECT / "configs" / "network" / "convnet_digits.yaml"
    words = ["--data", "ImageFolder", "--data.root", image_folder, "--network", network]
    result = run_pdd(
        "evaluate", run / "distilled.safetensors", *words, "--num_networks", 1, "--random_sets", 1, "--epochs", 1
    )
    assert result.returncode == 0, result.stdout
    assert "random real" in result.stdout
