"""Studies of stages' images and of continual learning: what they run, and what they make of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonargparse.typing import Path_fr
from matplotlib.figure import Figure

from pdd_lightning.errors import ConfigError
from pdd_lightning.results.tables import NUMBERS
from pdd_lightning.studies import ContinualLearning, Method, StageStatistics, Study

RECIPE = """
model:
  class_path: pdd_lightning.stages.DistributionMatching
  init_args: {network: net.yaml, ipc: 1}
data: {real: {class_path: ImageFolder, init_args: {root: here}}}
stages: {num_stages: 2, iterations: 30}
"""


@pytest.fixture
def methods(tmp_path: Path) -> list[Method]:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    path = Path_fr(str(tmp_path / "recipe.yaml"))
    return [Method(path, name="staged", fit={"data.real.image_size": 8}), Method(path, name="plain")]


def value(words: tuple[str, ...], option: str) -> str:
    return words[words.index(option) + 1]


def finish(study: Study, folder: Path, rows: Any) -> None:
    """Writes what the steps that give rows would leave; `rows(step)` are those."""
    for step in study.steps(folder):
        if step.words[0] != "fit":
            path = Path(value(step.words, "--output"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"rows": rows(step)}))


@pytest.mark.parametrize(
    ("tasks", "seeds", "message"), [(1, [0], "two tasks or more"), (3, [], "one seed"), (3, [1, 1], "none twice")]
)
def test_what_cannot_be_studied(methods: list[Method], tasks: int, seeds: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ContinualLearning(methods, tasks, seeds)


def test_memories_are_of_one_size(methods: list[Method]) -> None:
    with pytest.raises(ConfigError, match="'staged': 2, 'plain': 6"):
        ContinualLearning([methods[0], replace(methods[1], fit={"model.ipc": 3})], 3, [0])


def test_each_task_is_distilled_from_its_own_classes(methods: list[Method], tmp_path: Path) -> None:
    steps = ContinualLearning(methods, 3, [7], {"gdumb.epochs": 5}).steps(tmp_path)
    assert [step.words[0] for step in steps] == ["fit", "fit", "fit", "continual"] * 2
    for task, step in enumerate(steps[:3], 1):
        names = ("tasks", "task", "order_seed", "real", "real.root", "real.image_size")
        found = [value(step.words, f"--data.real.{name}") for name in names]
        assert found == ["3", str(task), "7", "ImageFolder", "here", "8"]
        assert value(step.words, "--data.real") == "pdd_lightning.data.ClassTask"
        assert "--data.image_size" not in step.words
    learn = steps[3]
    assert learn.after == tuple(step.name for step in steps[:3])
    made = [value(step.words, "--trainer.default_root_dir") + "/distilled.safetensors" for step in steps[:3]]
    assert list(learn.words[1:4]) == made
    assert (value(learn.words, "--data.image_size"), value(learn.words, "--gdumb.epochs")) == ("8", "5")
    assert "--memories" not in learn.words and value(steps[7].words, "--memories") == '["distilled"]'


def test_rows_of_memories_are_summarised_over_seeds(methods: list[Method], tmp_path: Path) -> None:
    study = ContinualLearning(methods, 2, [0, 1])

    def rows(step: Any) -> list[dict[str, Any]]:
        final = 0.5 + 0.2 * int(value(step.words, "--seed"))
        about = {"protocol": "gdumb", "images": 8, "part": "val", "seconds": 1.0, "forgetting": final / 2}
        about |= {"accuracies": [final, final], "average_accuracy": [1.0, final]}
        first = "staged" in step.name
        return [{"row": memory, **about} for memory in (("distilled", "random") if first else ("distilled",))]

    finish(study, tmp_path, rows)
    table = study.rows(tmp_path)
    assert [(row["memory"], row["method"]) for row in table] == [
        ("distilled", "staged"),
        ("random", None),
        ("distilled", "plain"),
    ]
    assert (table[0]["mean"], table[0]["after_1"], table[0]["after_2"]) == pytest.approx((0.6, 1.0, 0.6))
    assert (table[0]["forgetting"], table[0]["seed_std"]) == pytest.approx((0.3, 0.02**0.5))
    assert "| 60.0 ± 11.5 |" in study.table(table)
    figure = Figure()
    study.plot(figure, table)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["distilled, staged", "random", "distilled, plain"]


def test_numbers_of_stages_are_summarised_over_seeds(methods: list[Method], tmp_path: Path) -> None:
    study = StageStatistics(methods, [0, 1], {"training": {"epochs": 3}})
    steps = study.steps(tmp_path)
    assert [step.words[0] for step in steps] == ["fit", "describe"] * 4
    assert value(steps[1].words, "--training.epochs") == "3"

    def rows(step: Any) -> list[dict[str, Any]]:
        numbers = dict.fromkeys(NUMBERS, 0.25 + 0.5 * int(value(step.words, "--seed")))
        return [{"row": f"stage {stage}", "stage": stage, "images": 3, **numbers} for stage in (1, 2, None)]

    finish(study, tmp_path, rows)
    table = study.rows(tmp_path)
    assert [row["method"] for row in table] == ["staged"] * 3 + ["plain"] * 3
    assert (table[0]["low"], table[0]["low_std"]) == pytest.approx((0.5, 0.125**0.5))
    study.table(table)
