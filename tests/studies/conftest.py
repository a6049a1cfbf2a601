"""Recipes to study, and what the steps of studies would leave."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pdd_lightning.results.tables import STATISTICS
from pdd_lightning.studies.definition import Study
from pdd_lightning.studies.engine import Step

RECIPE = """
model:
  class_path: pdd_lightning.stages.IDC
  init_args: {network: net.yaml, ipc: 2, factor: 2}
data: {real: data.yaml}
stages: {num_stages: 2, iterations: 30}
evaluation: {epochs: 10, batch_size: 16}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Writes the recipe, with a text in place of another, and gives a method with further entries."""

    def write(old: str = "", new: str = "", **entries: Any) -> dict[str, Any]:
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE.replace(old, new) if old else RECIPE)
        return {"recipe": path, **entries}

    return write


def value(args: tuple[str, ...], option: str) -> str:
    return args[args.index(option) + 1]


def numbers(step: Step) -> float:
    """An accuracy or other number that depends on the seed alone."""
    return 0.6 + 0.2 * int(value(step.args, "--seed"))


def finish(study: Study, folder: Path, accuracies: Callable[[Step], list[float]] | None = None) -> None:
    """Writes what the steps of a study would leave; `accuracies(step)` are those of its networks."""
    for step in study.steps(folder):
        if step.args[0] == "fit":
            run = Path(value(step.args, "--trainer.default_root_dir"))
            run.mkdir(parents=True, exist_ok=True)
            (run / "summary.json").write_text(json.dumps({"stages": [stage(number) for number in (1, 2)]}))
        elif step.args[0] != "join":
            output = Path(value(step.args, "--output"))
            output.parent.mkdir(parents=True, exist_ok=True)
            found = accuracies(step) if accuracies else [numbers(step)]
            output.write_text(json.dumps({"rows": rows(step, found)}))


def stage(number: int) -> dict[str, Any]:
    names = ("lr_img", "first_loss", "last_loss", "val_accuracy", "val_std", "peak_memory_mb")
    about = {"stage": number, "images": 6 * number, "val_networks": 2, "real_images": 7}
    return {**about, **dict.fromkeys(names, 1.0), "seconds": {"experts": 1.0, "distil": 2.0, "transition": 3.0}}


def rows(step: Step, accuracies: list[float]) -> list[dict[str, Any]]:
    """What `pdd evaluate`, `describe` and `continual` write."""
    if step.args[0] == "describe":
        every = dict.fromkeys(STATISTICS, accuracies[0])
        return [{"row": f"stage {stage}", "stage": stage, "images": 3, **every} for stage in (1, 2, None)]
    about = {"protocol": "progressive", "part": "val", "images": 12, "seconds": 1.5, "steps": 99, "n": len(accuracies)}
    distilled = {"row": "distilled", "accuracies": accuracies, **about}
    if step.args[0] == "continual":
        own = {"protocol": "gdumb", "forgetting": accuracies[-1] / 2, "average_accuracy": [1.0, accuracies[-1]]}
        memories = ["distilled"] if "--memories" in step.args else ["distilled", "random"]
        return [{**distilled, **own, "row": memory} for memory in memories]
    if "--full_data_epochs" in step.args and value(step.args, "--full_data_epochs") != "0":
        return [distilled, {**about, "row": "full real", "accuracies": [0.9], "images": 1200}]
    return [distilled]
