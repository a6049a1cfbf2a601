"""Studies of stages' images and of continual learning: what they run, and what they make of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from pdd_lightning.errors import ConfigError
from pdd_lightning.studies.kinds import ContinualLearning, StageStatistics
from tests.studies.conftest import finish, value

Methods = Callable[..., dict[str, Any]]


@pytest.fixture
def methods(recipe: Methods) -> list[dict[str, Any]]:
    data = "{class_path: ImageFolder, init_args: {root: here}}"
    return [
        recipe("data.yaml", data, name="staged", fit={"data.real.image_size": 8}),
        recipe("data.yaml", data, name="b"),
    ]


def continual(methods: list[dict[str, Any]], tasks: int = 3, **entries: Any) -> ContinualLearning:
    return ContinualLearning.model_validate({"title": "t", "methods": methods, "tasks": tasks, **entries})


def test_memories_are_of_one_size(methods: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'staged/2x2_30': 4, 'b/2x3_30': 6"):
        continual([methods[0], {**methods[1], "fit": {"model.ipc": 3}}]).steps(tmp_path)


def test_each_task_is_distilled_from_its_own_classes(methods: list[dict[str, Any]], tmp_path: Path) -> None:
    steps = continual(methods, seeds=[7], continual={"gdumb": {"epochs": 5}}).steps(tmp_path)
    assert [step.args[0] for step in steps] == ["fit", "fit", "fit", "continual"] * 2
    for task, step in enumerate(steps[:3], 1):
        names = ("tasks", "task", "order_seed", "real", "real.root", "real.image_size")
        found = [value(step.args, f"--data.real.{name}") for name in names]
        assert found == ["3", str(task), "7", "ImageFolder", "here", "8"]
        assert value(step.args, "--data.real") == "pdd_lightning.data.ClassTask"
        assert "--data.real.image_size" not in step.args
    learn = steps[3]
    assert learn.after == tuple(step.name for step in steps[:3])
    made = [value(step.args, "--trainer.default_root_dir") + "/distilled.safetensors" for step in steps[:3]]
    assert list(learn.args[1:4]) == made
    assert (value(learn.args, "--data.image_size"), value(learn.args, "--gdumb.epochs")) == ("8", "5")
    assert "--memories" not in learn.args and value(steps[7].args, "--memories") == '["distilled"]'


def test_rows_of_memories_are_summarised_over_seeds(methods: list[dict[str, Any]], tmp_path: Path) -> None:
    study = continual(methods, 2, seeds=[0, 1])
    finish(study, tmp_path)
    table = study.rows(tmp_path)
    assert [(row["memory"], row["method"]) for row in table] == [
        ("distilled", "staged"),
        ("random", None),
        ("distilled", "b"),
    ]
    assert (table[0]["mean"], table[0]["after_1"], table[0]["after_2"]) == pytest.approx((0.7, 1.0, 0.7))
    assert (table[0]["forgetting"], table[0]["seed_std"]) == pytest.approx((0.35, 0.02**0.5))
    figure = Figure()
    study.plot(figure, table)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["distilled, staged", "random", "distilled, b"]


def test_numbers_of_stages_are_summarised_over_seeds(methods: list[dict[str, Any]], tmp_path: Path) -> None:
    describe = {"training": {"epochs": 3}}
    study = StageStatistics.model_validate({"title": "t", "methods": methods, "seeds": [0, 1], "describe": describe})
    steps = study.steps(tmp_path)
    assert sorted(step.args[0] for step in steps) == ["describe"] * 4 + ["fit"] * 4
    assert value(steps[1].args, "--training.epochs") == "3"
    finish(study, tmp_path)
    table = study.rows(tmp_path)
    assert [row["method"] for row in table] == ["staged"] * 3 + ["b"] * 3
    assert (table[0]["low"], table[0]["low_std"]) == pytest.approx((0.7, 0.02**0.5))
