"""Distilling and evaluating from Python."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger

import pdd_lightning
from pdd_lightning import DistilledDataset
from pdd_lightning.data import Digits, ImageFolder
from pdd_lightning.errors import ConfigError, UsageError
from pdd_lightning.networks import ConvNet
from pdd_lightning.results.schema import RunSummary
from pdd_lightning.stored import read_stored
from tests.cli.conftest import write_folder

SHORT = {"stages.experts.number": 2, "stages.transition.epochs": 2, "evaluation.epochs": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def distilled(folder: Path) -> DistilledDataset:
    real = Digits(val_fraction=0.3)
    return pdd_lightning.distill(
        real, "dm", 2, ipc=1, iterations=2, folder=folder, seed=3, options=SHORT, enable_progress_bar=False
    )


def test_distill_makes_a_run_with_what_was_given(distilled: DistilledDataset, folder: Path) -> None:
    assert (len(distilled), distilled.num_stages) == (20, 2)
    summary = read_stored(RunSummary, folder / "summary.json")
    assert (summary.seed, summary.settings["method"]) == (3, "DistributionMatching")
    config = (folder / "config.yaml").read_text()
    assert "val_fraction: 0.3" in config
    assert "enable_progress_bar: false" in config


def test_distill_continues_a_run(distilled: DistilledDataset, folder: Path) -> None:
    before = (folder / "distilled.safetensors").stat().st_mtime_ns
    arguments = {"ipc": 1, "iterations": 2, "folder": folder, "seed": 3, "options": SHORT}
    again = pdd_lightning.distill(Digits(val_fraction=0.3), "dm", 2, **arguments)  # type: ignore[arg-type]
    assert torch.equal(again.images, distilled.images)
    assert (folder / "distilled.safetensors").stat().st_mtime_ns == before


def test_distill_takes_images_and_a_network_of_ones_own(tmp_path: Path) -> None:
    real = ImageFolder(str(write_folder(tmp_path / "images")), image_size=8)
    distilled = pdd_lightning.distill(
        real, "dm", 1, ipc=1, iterations=1, folder=tmp_path / "run", network=ConvNet, options=SHORT
    )
    assert distilled.images.shape[1:] == (3, 8, 8)
    assert distilled.metadata["network"]["class_path"].endswith("ConvNet")


def test_unknown_names_are_errors_that_say_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"choose from .*idc.*mtt"):
        pdd_lightning.distill("digits", "nonsense")
    with pytest.raises(ConfigError, match="distill has no argument stage: did you mean stages"):
        pdd_lightning.distill("digits", "dm", stage=2)
    with pytest.raises(ConfigError, match="evaluate has no argument epoch: did you mean epochs"):
        pdd_lightning.evaluate("zoo:digits_mtt", "digits", epoch=2)
    with pytest.raises(UsageError, match="has no argument lr_imgs: did you mean lr_img"):
        pdd_lightning.distill("digits", "dm", options={"model.lr_imgs": 1.0})


class PictureLogger(DummyLogger):
    """A logger that takes pictures as Lightning's for Weights & Biases does."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, list[tuple[int | None, float]]] = {}
        self.pictures: dict[str, tuple[int, ...]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.metrics.setdefault(name, []).append((step, value))

    def log_image(self, key: str, images: list[np.ndarray]) -> None:
        self.pictures[key] = images[0].shape


def test_other_loggers_get_numbers_and_pictures(tmp_path: Path) -> None:
    pictures, table = PictureLogger(), CSVLogger(tmp_path, name="csv", version="")
    distilled = pdd_lightning.distill(
        "digits", "dm", 2, 1, 2, tmp_path / "run", options=SHORT, logger=[pictures, table], log_every_n_steps=1
    )
    assert [step for step, _ in pictures.metrics["stages/val_accuracy"]] == [1, 2]
    (accuracy,) = pictures.metrics["accuracy/val_distilled"]
    assert accuracy[0] == len(distilled)
    assert len(pictures.metrics["matching_loss"]) == 4
    assert pictures.pictures["images/union"][-1] == 3
    assert {"images/stage_1", "images/stage_2"} <= set(pictures.pictures)
    header = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"matching_loss", "stages/val_accuracy", "accuracy/val_distilled"} <= set(header)


def test_evaluate_gives_rows_that_print_as_a_table(distilled: DistilledDataset, folder: Path) -> None:
    settings = {"epochs": 2, "num_networks": 2, "random_sets": 2}
    rows = pdd_lightning.evaluate(distilled, Digits(val_fraction=0.3), seed=1, **settings)
    assert [row["row"] for row in rows] == ["distilled", "random real"]
    assert "accuracy %" in str(rows)
    of_folder = pdd_lightning.evaluate(folder, Digits(val_fraction=0.3), seed=1, **settings)
    assert [row["accuracies"] for row in of_folder] == [row["accuracies"] for row in rows]


def test_evaluate_takes_named_networks_and_data(distilled: DistilledDataset) -> None:
    rows = pdd_lightning.evaluate(distilled, "digits", "vit", epochs=1, num_networks=1, random_sets=1)
    assert rows[0]["network"]["class_path"].endswith("ViT")


def test_what_sets_and_data_say_of_themselves(distilled: DistilledDataset) -> None:
    assert "20 images (10 + 10) of 1 x 8 x 8" in repr(distilled)
    assert "10 images (10)" in repr(distilled.union(1))
    assert "data:image/png;base64," in distilled._repr_html_()
    real = Digits()
    assert "not loaded" in repr(real)
    real.setup()
    assert "10 classes" in repr(real)


def test_a_rate_to_train_with(distilled: DistilledDataset) -> None:
    assert distilled.learning_rates == (None, None)
    assert distilled.learning_rate(2) == 0.01
