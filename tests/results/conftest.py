"""Run folders and study folders as `pdd` leaves them, generated."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from pdd_lightning.data.distilled import save_distilled
from pdd_lightning.data.pixels import Standardized
from pdd_lightning.data.synthetic import SyntheticSet

NAMES = ["blue", "green", "red"]
PLAIN = Standardized([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])


def stage(number: int, accuracy: float, **more: Any) -> dict[str, Any]:
    return {
        "stage": number,
        "images": 3 * number,
        "learned_lr": 0.0123,
        "lr_img": 1.0,
        "first_loss": 1.5,
        "last_loss": 0.875,
        "val_accuracy": accuracy,
        "val_std": 0.01,
        "val_networks": 4,
        "seconds": {"experts": 1.0, "distil": 20.0, "transition": 3.0},
        "peak_memory_mb": 800.0 + number,
        **more,
    }


def row(name: str, mean: float, part: str = "test", protocol: str = "progressive", **more: Any) -> dict[str, Any]:
    return {
        "row": name,
        "protocol": protocol,
        "part": part,
        "images": 6,
        "mean": mean,
        "std": 0.02,
        "n": 5,
        "accuracies": [mean] * 5,
        "per_class": dict(zip(NAMES, (mean - 0.1, mean, min(1.0, mean + 0.1)), strict=True)),
        "seconds": 7.0,
        **more,
    }


def rows(mean: float) -> list[dict[str, Any]]:
    full = row("full real", 0.95, protocol="all images", images=90)
    return [row("distilled", mean - 0.01, "val"), row("distilled", mean), row("random real", 0.5), full]


def write_summary(folder: Path, **entries: Any) -> None:
    summary = json.loads((folder / "summary.json").read_text()) if (folder / "summary.json").exists() else {}
    (folder / "summary.json").write_text(json.dumps({**summary, **entries}))


def config(seed: int, folder: Path, **settings: Any) -> dict[str, Any]:
    model = {"ipc": 1, "lr_img": 1.0, **settings}
    return {
        "seed_everything": seed,
        "trainer": {"default_root_dir": str(folder), "accelerator": "cpu", "max_time": None},
        "model": {"class_path": "pdd_lightning.stages.DistributionMatching", "init_args": model},
        "stages": {"num_stages": 2, "iterations": 1500},
    }


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run of two stages; `settings` are the method's."""

    def write(name: str, seed: int = 0, mean: float = 0.8, names: list[str] = NAMES, **settings: Any) -> Path:
        folder = tmp_path / "runs" / name
        (folder / "images").mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config(seed, folder, **settings)))
        about = {"name": "Blobs", "fingerprint": "0123"}
        stages = [stage(1, mean - 0.2), stage(2, mean - 0.1)]
        stored = {"method": "DistributionMatching", **settings}
        write_summary(folder, dataset=about, seed=seed, settings=stored, stages=stages, evaluation=rows(mean))
        generator = torch.Generator().manual_seed(seed)
        images = torch.rand(6, 3, 8, 8, generator=generator)
        labels = torch.arange(3).repeat(2)
        distilled = SyntheticSet(images, labels, torch.arange(1, 3).repeat_interleave(3), (0.01, 0.02))
        save_distilled(folder / "distilled.safetensors", distilled, PLAIN, names, {})
        for picture in ("stage_1", "stage_2", "union", "easiest"):
            Image.new("RGB", (30, 20), (200, 40, 90)).save(folder / "images" / f"{picture}.png")
        return folder

    return write


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a study's outputs."""

    def write(name: str) -> Path:
        folder = tmp_path / "studies" / name
        folder.mkdir(parents=True)
        about = {"title": "Stages at equal IPC", "notes": ["Three seeds <each>."], "package_version": "0.1.0"}
        rows = [{"row": "distilled", "stages": stages, "mean": 0.8125, "std": 0.01, "part": "val"} for stages in (1, 5)]
        steps = [{"name": "a", "command": "pdd fit --config a.yaml", "seconds": 3.0}]
        (folder / "study.json").write_text(json.dumps({**about, "rows": rows, "steps": steps}))
        Image.new("RGB", (40, 30), (255, 255, 255)).save(folder / "plot.png")
        return folder

    return write
