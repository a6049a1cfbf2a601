"""Ctrl-C and SIGTERM at any moment of any verb: one line that says how to continue, and nothing is lost."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from pdd_lightning import DistilledDataset
from pdd_lightning.progression.observer import stage_module
from tests.attacks.ending import fit_words, words
from tests.cli.conftest import PROJECT

LIMIT = 60.0
"""Seconds until a process must have ended. It takes a fraction of one, but the machine may be busy."""
VERBS = ("fit", "test", "evaluate", "describe", "continual", "convert", "join", "report", "study")
STUDY = """
title: Conditioning
methods: [{name: tiny, recipe: RECIPE}]
column: conditioning
arms: {"on": {}, "off": {independent: true}}
num_classes: 3
seeds: [0]
evaluate: {full_data_epochs: 0}
x: protocol
"""


@pytest.fixture(scope="module")
def commands(
    run: Path, recipe: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    """A command line of each verb that works for some seconds; FOLDER stands for a copy of the run."""
    data = ("--data", "ImageFolder", "--data.root", image_folder)
    distilled = run / "distilled.safetensors"
    study = tmp_path_factory.mktemp("study") / "study.yaml"
    study.write_text(STUDY.replace("RECIPE", str(recipe)))
    return {
        "continual": words("continual", distilled, *data, "--output", "FOLDER/rows.json"),
        "study": words("study", study, "--folder", "FOLDER/study"),
        "fit": fit_words(recipe, Path("FOLDER/new"), "--stages.iterations", 60, "--stages.transition.epochs", 60),
        "test": words("test", "--config", recipe, "--trainer.default_root_dir", "FOLDER", "--evaluation.epochs", 300),
        "evaluate": words("evaluate", distilled, *data, "--epochs", 900, "--output", "FOLDER/rows.json"),
        "describe": words("describe", distilled, *data, "--training.epochs", 90, "--output", "FOLDER/rows.json"),
        "convert": words("convert", distilled, "FOLDER/set", "--format", "mtt"),
        "join": words("join", distilled, distilled, "--output", "FOLDER/joined.safetensors"),
        "report": words("report", run, "--output", "FOLDER/report.html"),
    }


def started(arguments: list[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "pdd_lightning", *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=PROJECT, stdout=pipe, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None and not catches(process.pid):
        time.sleep(0.001)
    return process


def catches(process: int) -> bool:
    """Whether a process catches SIGTERM: what comes before is the start of Python, and its way to end."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (caught,) = [int(line.split()[1], 16) for line in lines if line.startswith("SigCgt")]
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def ended(process: "subprocess.Popen[str]", number: int) -> tuple[str, int]:
    """Sends the signal; output and exit status."""
    process.send_signal(number)
    output, _ = process.communicate(timeout=LIMIT)
    return output, process.returncode


def check(output: str, status: int, number: int) -> bool:
    """Whether the signal came before the command was done; what must hold if it did."""
    if status in (0, 1):
        return False
    assert status == 128 + number, output
    assert "Traceback" not in output and "Error" not in output and "Exception" not in output, output
    lines = [line for line in output.replace("\r", "\n").splitlines() if line.startswith("pdd: ")]
    assert len(lines) == 1 and lines[0].startswith("pdd: stopped."), output
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["interrupt", "terminate"])
def test_while_importing(number: int) -> None:
    process = started(["report", "nowhere"])
    time.sleep(0.2)
    output, status = ended(process, number)
    assert check(output, status, number)
    assert "Nothing was begun" in output


class SendSignal(Callback):
    """Sends a signal to its own process in the middle of an iteration."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        if stage_module(pl_module).state.iteration == 3:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_in_an_iteration_the_run_is_saved(number: int, recipe: Path, tmp_path: Path) -> None:
    more = ["--trainer.callbacks", "tests.attacks.test_signals.SendSignal", "--trainer.callbacks.number", int(number)]
    more += ["--stages.iterations", 100000, "--checkpoint_every", 50000]
    process = started(fit_words(recipe, tmp_path, *more))
    output, _ = process.communicate()
    assert check(output, process.returncode, number)
    assert "continues the run" in output
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["StageAdvance"]
    assert state["iteration"] >= 4


def moments(verb: str) -> Iterator[float]:
    """Random moments, the same each time: half of them while importing."""
    generator = random.Random(verb)
    count = int(os.environ.get("PDD_ATTACKS", "4"))
    yield from (generator.uniform(0.1, 12.0) for _ in range(count))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["interrupt", "terminate"])
@pytest.mark.parametrize("verb", VERBS)
def test_at_a_random_moment(verb: str, number: int, commands: dict[str, list[str]], run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    arguments = [word.replace("FOLDER", str(tmp_path)) for word in commands[verb]]
    for moment in moments(f"{verb} {number}"):
        process = started(arguments)
        time.sleep(moment)
        print(verb, moment, check(*ended(process, number), number))
    assert not list(tmp_path.rglob(".*.tmp"))
    assert DistilledDataset(tmp_path / "distilled.safetensors").num_stages == 2
