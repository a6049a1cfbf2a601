"""`pdd continual` from the command line, with sets distilled from one task's classes each."""

import json
from pathlib import Path

import pytest

from pdd_lightning.cli import main
from tests.cli.conftest import PROJECT

DIGITS = str(PROJECT / "configs" / "data" / "digits.yaml")
FIT = """
model:
  class_path: pdd_lightning.stages.DistributionMatching
  init_args:
    network: {class_path: pdd_lightning.networks.ConvNet, init_args: {depth: 2, width: 4}}
    real_batch: 4
data: {real: TASK}
stages: {num_stages: 1, iterations: 2, experts: {number: 1}, transition: {epochs: 1}}
evaluation: {num_networks: 1, epochs: 1}
trainer: {accelerator: cpu, enable_progress_bar: false, log_every_n_steps: 1}
"""


@pytest.fixture
def memories(tmp_path: Path) -> list[str]:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(FIT.replace("TASK", str(PROJECT / "configs" / "data" / "digits_task.yaml")))
    for task in ("1", "2"):
        words = ["--config", str(recipe), "--data.real.task", task]
        main(["fit", *words, "--trainer.default_root_dir", str(tmp_path / task)])
    return [str(tmp_path / task / "distilled.safetensors") for task in ("1", "2")]


def test_tasks_are_distilled_and_learned(
    memories: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, figure = tmp_path / "rows.json", tmp_path / "f" / "figure.png"
    few = ["--num_networks", "1", "--gdumb.epochs", "1", "--replay.epochs", "1", "--device", "cpu", "--part", "val"]
    main(["continual", *memories, "--data", DIGITS, *few, "--output", str(output), "--figure", str(figure)])
    written = json.loads(output.read_text())
    assert len(written["rows"]) == 7 and all(row["part"] == "val" for row in written["rows"])
    assert [len(names) for names in written["tasks"]] == [2, 2]
    assert written["settings"]["gdumb"]["epochs"] == 1
    printed = capsys.readouterr().out
    assert "forgetting" in printed and "another split" not in printed
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "rows.networks.jsonl").read_text().splitlines()) == 7 + 2  # herding's choices, too
    main(["continual", *memories, "--data", DIGITS, "--data.seed", "1", *few, "--protocols", "[gdumb]"])
    assert capsys.readouterr().out.count("another split") == 2


@pytest.mark.slow
def test_rows_do_not_depend_on_the_number_of_processes(memories: list[str], tmp_path: Path) -> None:
    few = ["--num_networks", "2", "--gdumb.epochs", "1", "--replay.epochs", "1", "--device", "cpu", "--part", "val"]
    rows = []
    for processes in ("1", "2"):
        output = tmp_path / f"{processes}.json"
        main(["continual", *memories, "--data", DIGITS, *few, "--output", str(output), "--processes", processes])
        rows.append([{**row, "seconds": 0} for row in json.loads(output.read_text())["rows"]])
    assert rows[0] == rows[1]
