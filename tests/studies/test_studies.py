"""What studies of accuracy run, and what they make of it, without running it."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from pdd_lightning.cli import PDDCLI, main
from pdd_lightning.commands import COMMANDS
from pdd_lightning.errors import ConfigError
from pdd_lightning.studies.arms import Method
from pdd_lightning.studies.definition import Study
from pdd_lightning.studies.engine import Step
from pdd_lightning.studies.kinds import AccuracyStudy, read_study, size_at
from pdd_lightning.studies.recipe import Recipe
from tests.cli.conftest import PROJECT
from tests.studies.conftest import finish, value

CONFIGS = sorted((PROJECT / "configs" / "study").glob("*.yaml"))
Methods = Callable[..., dict[str, Any]]


def study(*methods: dict[str, Any], **entries: Any) -> AccuracyStudy:
    return AccuracyStudy.model_validate({"title": "t", "methods": methods, "num_classes": 3, "seeds": [0], **entries})


def args_of(study: Study, folder: Path) -> dict[str, tuple[str, ...]]:
    return {step.name: step.args for step in study.steps(folder)}


def nothing(steps: Sequence[Step]) -> dict[str, float]:
    """Takes the steps for done."""
    return {step.name: 1.0 for step in steps}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_studies_consist_of_commands_that_exist(path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Their arguments are accepted by the parsers, and what they name is there."""
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(PDDCLI, "fit", lambda self, **_: None)
    # One of those that differ only in their values.
    steps = read_study(path).steps(tmp_path)
    kinds = {tuple(word for word in step.args if word.startswith("--")): step for step in steps}
    for step in kinds.values():
        if step.args[0] == "fit":
            main(step.args)
        else:
            COMMANDS[step.args[0]].parser().parse_args(list(step.args[1:]))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_studies_make_a_table_and_a_plot(path: Path, tmp_path: Path) -> None:
    shipped = read_study(path)
    finish(shipped, tmp_path, lambda step: [0.5, 0.7])
    shipped.make(tmp_path, nothing)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"60\.0|0\.5 ", (tmp_path / "table.md").read_text())


def test_evaluation_follows_the_recipe_at_equal_steps(recipe: Methods, tmp_path: Path) -> None:
    grid = {"stages": [2, 1, 4], "budgets": ["total"], "evaluate": {"lr": 0.2}, "part": "test", "seeds": [5]}
    args = args_of(study(recipe(), **grid), tmp_path)
    # A stage of 2 images per class is 2 * 3 * 4 training images: 2 + 3 batches of 16 an epoch.
    one, two, four = (args[f"recipe/{run}/seed_5/evaluation"] for run in ("1x4_60", "2x2_30", "4x1_15"))
    assert [value(each, "--epochs") for each in (one, two, four)] == ["17", "10", "6"]  # 50 steps; 3 and 9 an epoch
    found = [value(two, f"--{name}") for name in ("lr", "batch_size", "seed", "part", "data")]
    assert found == ["0.2", "16", "5", "test", str(tmp_path / "data.yaml")]
    unmatched = args_of(study(recipe(), **grid, match_steps=False), tmp_path)
    assert value(unmatched["recipe/1x4_60/seed_5/evaluation"], "--epochs") == "10"


def test_real_images_are_evaluated_once(recipe: Methods, tmp_path: Path) -> None:
    """Random ones for each number of images, all of them for each kind of evaluation."""
    arms = {"a": {}, "b": {"fit": {"x": 1}}, "c": {"ipc": 5}, "d": {"evaluate": {"network": "ResNet10"}}}
    args = args_of(study(recipe(), arms=arms, evaluate={"full_data_epochs": 7}), tmp_path)
    evaluated = [each for each in args.values() if each[0] == "evaluate"]
    assert [value(each, "--full_data_epochs") for each in evaluated] == ["7", "0", "0", "7"]
    assert ["--baselines" in each for each in evaluated] == [False, True, False, False]


def test_arms_that_only_evaluate_otherwise_share_their_runs(recipe: Methods, tmp_path: Path) -> None:
    arms = {
        "own": {},
        "other": {"evaluate": {"network": "ResNet10"}},
        "hard": {"fit": {"stages.discard.keep": [1, 0.5]}},
    }
    kinds = study(recipe(), arms=arms, column="network")
    steps = kinds.steps(tmp_path)
    assert [step.name.removeprefix("recipe/2x2_30") for step in steps] == [
        "/seed_0/fit",
        "/seed_0/evaluation",
        "/seed_0/evaluation_other",
        "_hard/seed_0/fit",
        "_hard/seed_0/evaluation",
    ]
    assert value(steps[2].args, "--network") == "ResNet10" and "--network" not in steps[1].args
    assert value(steps[3].args, "--stages.discard.keep") == "[1,0.5]"
    finish(kinds, tmp_path)
    assert [row["network"] for row in kinds.rows(tmp_path)] == ["own", "other", "hard"]
    assert 'network hard: {"stages.discard.keep": [1, 0.5]}.' in kinds.remarks([])


@pytest.mark.parametrize(("factor", "count"), [(", factor: 3", 9), ("", 4)], ids=["given", "default"])
def test_training_images_of_a_stored_one(recipe: Methods, factor: str, count: int) -> None:
    assert Recipe(recipe(", factor: 2", factor)["recipe"], {}).images_per_stored_image == count


def test_places_are_filled(recipe: Methods, tmp_path: Path) -> None:
    """Runs of a seed may share experts; data may lie in the study's folder."""
    fit = {
        "stages": {"experts": {"folder": "{folder}/experts/{seed}"}},
        "data.real.class_path": "ImageFolder",
        "data.real.root": "{folder}/images/{seed}",
    }
    args = args_of(study(recipe(fit=fit), stages=[2, 1], budgets=["total"], seeds=[4, 5]), tmp_path)
    for seed in ("4", "5"):
        fits = [each for each in args.values() if each[0] == "fit" and value(each, "--seed_everything") == seed]
        assert {value(each, "--stages.experts.folder") for each in fits} == {f"{tmp_path}/experts/{seed}"}
        assert {value(each, "--data.real.root") for each in fits} == {f"{tmp_path}/images/{seed}"}
        assert value(args[f"recipe/2x2_30/seed_{seed}/evaluation"], "--data.root") == f"{tmp_path}/images/{seed}"


def test_budgets_keep_iterations_in_total_or_per_stage(recipe: Methods, tmp_path: Path) -> None:
    method = recipe(one_stage={"model": {"init_args": {"lr_img": 0.5}}})
    grid = {"stages": [1, 2], "budgets": ["total", "per_stage"]}
    fits = [args for args in args_of(study(method, **grid), tmp_path).values() if args[0] == "fit"]
    names = ("--stages.num_stages", "--model.ipc", "--stages.iterations")
    found = {tuple(value(fit, name) for name in names) for fit in fits}
    assert found == {("1", "4", "60"), ("1", "4", "30"), ("2", "2", "30")}
    assert {value(fit, "--stages.num_stages"): "--model.lr_img" in fit for fit in fits} == {"1": True, "2": False}
    with pytest.raises(ConfigError, match="4 images per class cannot be made in 3 stages"):
        study(method, stages=[3], budgets=["total"]).steps(tmp_path)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        # The recipe's own run is part of both lines.
        (
            {"stages": [1, 2], "budgets": ["total", "per_stage"], "series": "{budget}"},
            {"same total": [2, 2], "same per stage": [2, 2]},
        ),
        ({"arms": {"one": {"stages": 1}, "two": {"stages": 2}}}, {"distilled, progressive": [2, 2]}),
    ],
)
def test_lines_over_the_number_of_stages(
    recipe: Methods, tmp_path: Path, entries: dict[str, Any], expected: dict[str, list[int]]
) -> None:
    counts = study(recipe(), x="stages", **entries)
    finish(counts, tmp_path)
    figure = Figure()
    counts.plot(figure, counts.rows(tmp_path))
    lines = {line.get_label(): [len(part) for part in line[0].get_xydata()] for line in figure.axes[0].containers}
    assert lines == expected


def test_data_of_a_recipe_with_changes(recipe: Methods) -> None:
    method = recipe("data.yaml", "{class_path: ImageFolder, init_args: {root: here, val_fraction: 0.3}}")
    found = Recipe(method["recipe"], {"data.real.root": "there"}).data()
    assert found == {"data": "ImageFolder", "data.root": "there", "data.val_fraction": 0.3}
    assert Recipe(method["recipe"], {"data.real": "other.yaml"}).data() == {"data": "other.yaml"}


def test_independent_stages_are_joined_sets_of_other_seeds(recipe: Methods, tmp_path: Path) -> None:
    arms = {"on": {}, "off": {"independent": True}}
    steps = study(recipe(), arms=arms, column="conditioning", seeds=[7]).steps(tmp_path)
    off = [step for step in steps if "_off/" in step.name]
    assert [step.args[0] for step in off] == ["fit", "fit", "join", "evaluate"]
    assert [value(step.args, "--seed_everything") for step in off[:2]] == ["7", "1007"]
    assert {value(step.args, "--stages.num_stages") for step in off[:2]} == {"1"}
    assert off[2].after == (off[0].name, off[1].name)
    made = [value(step.args, "--trainer.default_root_dir") + "/distilled.safetensors" for step in off[:2]]
    assert off[2].args[1:3] == tuple(made)
    assert value(off[2].args, "--output") == off[3].args[1]


def test_rows_summarise_networks_and_seeds(recipe: Methods, tmp_path: Path) -> None:
    grid = study(recipe(), stages=[2, 1], budgets=["total"], seeds=[0, 1], columns=["real_images", "seconds_saved"])
    finish(grid, tmp_path, lambda step: [0.5, 0.7] if value(step.args, "--seed") == "0" else [0.7, 0.9])
    row = grid.rows(tmp_path)[0]
    assert row["mean"] == pytest.approx(0.7)
    assert row["std"] == pytest.approx((0.08 / 3) ** 0.5)
    assert row["seed_std"] == pytest.approx(0.02**0.5)
    assert (row["seeds"], row["networks"], row["steps"], row["part"]) == (2, 2, 99, "val")
    assert (row["stages"], row["ipc"], row["iterations"], row["iterations_per_stage"]) == (2, 2, 60, 30)
    assert (row["distil_seconds"], row["seconds_saved"], row["real_images"]) == (12.0, 0.0, 7.0)


def test_results_are_written_only_when_everything_is_done(recipe: Methods, tmp_path: Path) -> None:
    grid = study(recipe(), stages=[2, 1], budgets=["total"], seeds=[0, 1])
    finish(grid, tmp_path, lambda step: [0.5, 0.7])
    grid.make(tmp_path, nothing)
    assert (tmp_path / "table.csv").read_text().count("\n") == 3
    stored = json.loads((tmp_path / "study.json").read_text())
    assert stored["rows"][0]["mean"] == pytest.approx(0.6)
    assert stored["steps"][0]["command"].startswith("pdd fit --config ") and stored["steps"][0]["seconds"] == 1.0

    def interrupted(steps: Sequence[Step]) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grid.make(tmp_path, interrupted)
    assert not {"study.json", "table.md", "table.csv", "plot.png"} & {path.name for path in tmp_path.iterdir()}


def test_the_size_at_an_accuracy_is_found_between_points() -> None:
    assert size_at([(4, 0.9), (1, 0.5)], 0.7) == pytest.approx(2.0)
    assert size_at([(2, 0.8), (4, 0.9)], 0.7) == 2
    assert size_at([(1, 0.5), (4, 0.6)], 0.7) is None


def test_sizes_are_fractions_of_the_full_set(recipe: Methods, tmp_path: Path) -> None:
    arms = {"small": {"stages": 1, "ipc": 2}, "large": {"stages": 2, "ipc": 2}}
    entries = {"arms": arms, "goal": 0.9, "columns": ["per_class", "of_images", "of_accuracy"]}
    sizes = study(recipe(), evaluate={"full_data_epochs": 3}, **entries)
    finish(sizes, tmp_path, lambda step: [0.45 if "1x2" in step.name else 0.81])
    rows = sizes.rows(tmp_path)
    assert [row["of_accuracy"] for row in rows] == ["50.0 %", "100.0 %", "90.0 %"]
    assert [row["of_images"] for row in rows] == ["1.0 %", "100.0 %", "1.0 %"]
    assert "stages" not in rows[1] and "network" not in rows[0]
    remark = "90% of the full set's accuracy, distilled (progressive): at about 4.0 images per class."
    assert remark in sizes.remarks(rows)
    with pytest.raises(ConfigError, match="full_data_epochs > 0"):
        study(recipe(), **entries).steps(tmp_path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"seeds": [1, 1]}, "a seed counts once"),
        ({"stages": [2]}, "nothing to compare"),
        ({"budgets": ["total"]}, "nothing to compare"),
        ({"series": "{row"}, "series must name columns in braces"),
        ({"methods": 2}, "two different steps would be called recipe/"),
    ],
)
def test_what_cannot_be_studied(recipe: Methods, tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    methods = [recipe(), recipe(fit={"x": 1})][: entries.pop("methods", 1)]
    with pytest.raises(ConfigError, match=message):
        study(*methods, **entries).steps(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "holds no settings"),
        ("command: nonsense", "command must be one of evaluate, describe, continual, got 'nonsense'"),
        ("title: t\nmethods: []", r"methods: .*; num_classes: Field required"),
        ("title: t\nmethods: [{recipe: r.yaml, x: 1}]\nnum_classes: 3", r"methods\.0\.x: Extra inputs"),
    ],
)
def test_a_file_that_is_no_study(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_study(tmp_path / "study.yaml")


def test_files_are_named_relative_to_the_study(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("title: t\nnum_classes: 3\nmethods: [{recipe: sub/r.yaml}]")
    assert read_study(tmp_path / "study.yaml").methods == (Method(recipe=tmp_path / "sub" / "r.yaml"),)
