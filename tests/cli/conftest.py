"""A generated image folder and a recipe small enough to run in seconds."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from pdd_lightning.cli import main

PROJECT = Path(__file__).parents[2]

RECIPE = """
seed_everything: 3
model:
  class_path: pdd_lightning.stages.TrajectoryMatching
  init_args:
    network:
      class_path: pdd_lightning.networks.ConvNet
      init_args: {depth: 2, width: 4}
    ipc: 1
    syn_steps: 2
    expert_epochs: 1
    max_start_epoch: 2
    lr_img: 10.0
data:
  real:
    class_path: pdd_lightning.data.ImageFolder
    init_args: {root: ROOT, val_fraction: 0.25}
stages:
  num_stages: 2
  iterations: 6
  experts: {number: 2, batch_size: 16}
  transition: {epochs: 3}
evaluation: {num_networks: 2, random_sets: 2, epochs: 2, full_data_epochs: 1}
checkpoint_every: 2
trainer:
  accelerator: cpu
  log_every_n_steps: 1
"""


def write_folder(root: Path, per_class: int = 12, size: int = 8, seed: int = 0) -> Path:
    """Noisy images of three classes that differ in colour, in the layout of an image folder."""
    generator = torch.Generator().manual_seed(seed)
    for part, count in {"train": per_class, "test": 4}.items():
        for label, name in enumerate(("blue", "green", "red")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 120, (size, size, 3), generator=generator)
                pixels[..., 2 - label] += 100
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{number:03d}.png")
    return root


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def recipe(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE.replace("ROOT", str(image_folder)))
    return path


@pytest.fixture(scope="session")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was fitted and tested."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    main(["fit", "--config", str(recipe), "--trainer.default_root_dir", str(folder)])
    main(["test", "--config", str(recipe), "--ckpt_path", str(folder / "checkpoints" / "last.ckpt")])
    return folder


def start_pdd(*arguments: object) -> "subprocess.Popen[str]":
    """Starts the command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pdd_lightning", *map(str, arguments)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_pdd(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Runs the command line in a process of its own; output and errors are in `stdout`."""
    process = start_pdd(*arguments)
    output, _ = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output)
