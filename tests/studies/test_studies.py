"""What studies run, and what they make of it, without running it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonargparse.typing import Path_fr

from pdd_lightning.cli import PDDCLI, main
from pdd_lightning.commands import COMMANDS
from pdd_lightning.errors import ConfigError
from pdd_lightning.results.tables import NUMBERS
from pdd_lightning.studies import (
    BaseMethods,
    Conditioning,
    CrossArchitecture,
    GridSettings,
    LargerSets,
    Method,
    StageCount,
    StepRunner,
    Study,
)
from pdd_lightning.studies.larger_sets import crossing
from tests.cli.conftest import PROJECT

CONFIGS = sorted((PROJECT / "configs" / "study").glob("*.yaml"))
RECIPE = """
model:
  class_path: pdd_lightning.stages.IDC
  init_args: {network: net.yaml, ipc: 2, factor: 2}
data: {real: data.yaml}
stages: {num_stages: 2, iterations: 30}
evaluation: {epochs: 10, batch_size: 16}
"""


@pytest.fixture
def method(tmp_path: Path) -> Method:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return Method(Path_fr(str(tmp_path / "recipe.yaml")), one_stage={"model": {"init_args": {"lr_img": 0.5}}})


def words_of(study: Study, folder: Path) -> dict[str, tuple[str, ...]]:
    return {step.name: step.words for step in study.steps(folder)}


def value(words: tuple[str, ...], option: str) -> str:
    return words[words.index(option) + 1]


def finish(study: Study, folder: Path, accuracy: Any) -> None:
    """Writes what the steps of a study would leave; `accuracy(step)` is that of its networks."""
    for step in study.steps(folder):
        if step.words[0] == "fit":
            run = Path(value(step.words, "--trainer.default_root_dir"))
            seconds = {"experts": 1.0, "distil": 2.0, "transition": 3.0}
            run.mkdir(parents=True, exist_ok=True)
            (run / "summary.json").write_text(json.dumps({"stages": [{"seconds": seconds, "real_images": 7}] * 2}))
        if step.words[0] == "evaluate":
            about = {"protocol": "progressive", "part": "val", "images": 12, "seconds": 1.5, "steps": 99}
            rows = [{"row": "distilled", "accuracies": accuracy(step), **about}]
            if "--full_data_epochs" in step.words and value(step.words, "--full_data_epochs") != "0":
                rows.append({"row": "full real", "accuracies": [0.9], **about, "images": 1200})
            Path(value(step.words, "--output")).write_text(json.dumps({"rows": rows}))
        if step.words[0] == "describe":
            numbers = {"images": 3, **dict.fromkeys(NUMBERS, 0.6)}
            rows = [{"row": "a row", "stage": stage, **numbers} for stage in (1, 2, None)]
            Path(value(step.words, "--output")).write_text(json.dumps({"rows": rows}))
        if step.words[0] == "continual":
            about = {"protocol": "gdumb", "part": "val", "images": 12, "seconds": 1.5, "forgetting": 0.1}
            rows = [{"row": "distilled", "accuracies": accuracy(step), "average_accuracy": [0.9, 0.6], **about}]
            Path(value(step.words, "--output")).write_text(json.dumps({"rows": rows}))


class Nothing(StepRunner):
    """Takes the steps for done."""

    def run(self, steps: Any) -> None:
        pass


def shipped(path: Path, folder: Path) -> Any:
    parser = COMMANDS["study"].parser()
    return parser.instantiate(parser.parse_args([str(path), "--folder", str(folder)]))["study"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_studies_consist_of_commands_that_exist(path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Their words are accepted by the parsers, and what they name is there."""
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(PDDCLI, "fit", lambda self, **_: None)
    study = shipped(path, tmp_path)
    # One of those that differ only in their values.
    kinds = {tuple(word for word in step.words if word.startswith("--")): step for step in study.steps(tmp_path)}
    for step in kinds.values():
        if step.words[0] == "fit":
            main(step.words)
        else:
            COMMANDS[step.words[0]].parser().parse_args(list(step.words[1:]))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_studies_make_a_table_and_a_plot(path: Path, tmp_path: Path) -> None:
    study = shipped(path, tmp_path)
    finish(study, tmp_path, lambda step: [0.5, 0.7])
    study.run(tmp_path, Nothing(tmp_path))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"60\.0 ±|0\.6 ±", (tmp_path / "table.md").read_text())


def test_evaluation_follows_the_recipe_at_equal_steps(method: Method, tmp_path: Path) -> None:
    study = StageCount(method, GridSettings(3, [5], {"lr": 0.2}, "test"), [2, 1, 4], ["total"])
    words = words_of(study, tmp_path)
    # A stage of 2 images per class is 2 * 3 * 4 training images: 2 + 3 batches of 16 an epoch.
    one, two, four = (words[f"recipe/{run}/seed_5/evaluation"] for run in ("1x4_60", "2x2_30", "4x1_15"))
    assert [value(each, "--epochs") for each in (one, two, four)] == ["17", "10", "6"]  # 50 steps; 3 and 9 an epoch
    assert (value(two, "--lr"), value(two, "--batch_size"), value(two, "--seed"), value(two, "--part")) == (
        "0.2",
        "16",
        "5",
        "test",
    )
    assert value(two, "--data") == str(tmp_path / "data.yaml")
    assert "--baselines" in one and "--baselines" not in two


@pytest.mark.parametrize(("said", "count"), [(", factor: 3", 9), ("", 4)], ids=["said", "by default"])
def test_training_images_of_a_stored_one(tmp_path: Path, said: str, count: int) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.replace(", factor: 2", said))
    assert Method(Path_fr(str(tmp_path / "r.yaml"))).read().images_per_stored_image == count


def test_runs_of_a_seed_may_share_experts(method: Method, tmp_path: Path) -> None:
    method = replace(method, fit={"stages": {"experts": {"folder": "{folder}/experts/{seed}"}}})
    study = StageCount(method, GridSettings(3, [4, 5]), [2, 1], ["total"])
    found = {
        (value(words, "--seed_everything"), value(words, "--stages.experts.folder"))
        for words in words_of(study, tmp_path).values()
        if words[0] == "fit"
    }
    assert found == {(seed, f"{tmp_path}/experts/{seed}") for seed in ("4", "5")}


def test_places_are_filled_wherever_the_data_are_named(method: Method, tmp_path: Path) -> None:
    method = replace(method, fit={"data.real.class_path": "ImageFolder", "data.real.root": "{folder}/images/{seed}"})
    words = words_of(StageCount(method, GridSettings(3, [4]), [2], ["total"]), tmp_path)
    assert value(words["recipe/2x2_30/seed_4/fit"], "--data.real.root") == f"{tmp_path}/images/4"
    assert value(words["recipe/2x2_30/seed_4/evaluation"], "--data.root") == f"{tmp_path}/images/4"


def test_budgets_keep_iterations_in_total_or_per_stage(method: Method, tmp_path: Path) -> None:
    study = StageCount(method, GridSettings(3, [0]), [1, 2], ["total", "per_stage"])
    fits = [words for words in words_of(study, tmp_path).values() if words[0] == "fit"]
    names = ("--stages.num_stages", "--model.ipc", "--stages.iterations")
    found = {tuple(value(fit, name) for name in names) for fit in fits}
    assert found == {("1", "4", "60"), ("1", "4", "30"), ("2", "2", "30")}
    assert {value(fit, "--stages.num_stages"): "--model.lr_img" in fit for fit in fits} == {"1": True, "2": False}
    with pytest.raises(ConfigError, match="4 images per class cannot be made in 3 stages"):
        StageCount(method, GridSettings(3, [0]), [3], ["total"]).steps(tmp_path)


def test_data_of_a_recipe_with_changes(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        RECIPE.replace("data.yaml", "{class_path: ImageFolder, init_args: {root: here, val_fraction: 0.3}}")
    )
    method = Method(Path_fr(str(tmp_path / "r.yaml")), fit={"data.real.root": "there"})
    words = method.read().data_words()
    assert words == ["--data", "ImageFolder", "--data.root", "there", "--data.val_fraction", "0.3"]
    method = Method(Path_fr(str(tmp_path / "r.yaml")), fit={"data.real": "other.yaml"})
    assert method.read().data_words() == ["--data", "other.yaml"]


def test_conditioning_off_joins_single_stages_of_other_seeds(method: Method, tmp_path: Path) -> None:
    steps = Conditioning(method, GridSettings(3, [7])).steps(tmp_path)
    off = [step for step in steps if "/off/" in step.name]
    assert [step.words[0] for step in off] == ["fit", "fit", "join", "evaluate"]
    assert [value(step.words, "--seed_everything") for step in off[:2]] == ["7", "1007"]
    assert {value(step.words, "--stages.num_stages") for step in off[:2]} == {"1"}
    assert off[2].after == (off[0].name, off[1].name)
    made = [value(step.words, "--trainer.default_root_dir") + "/distilled.safetensors" for step in off[:2]]
    assert off[2].words[1:3] == tuple(made)
    assert value(off[2].words, "--output") == off[3].words[1]


def test_rows_summarise_networks_and_seeds(method: Method, tmp_path: Path) -> None:
    study = BaseMethods([method], GridSettings(3, [0, 1]), [2, 1], ["total"])
    finish(study, tmp_path, lambda step: [0.5, 0.7] if value(step.words, "--seed") == "0" else [0.7, 0.9])
    row = study.rows(tmp_path)[0]
    assert row["mean"] == pytest.approx(0.7)
    assert row["std"] == pytest.approx((0.08 / 3) ** 0.5)
    assert row["seed_std"] == pytest.approx(0.02**0.5)
    assert (row["seeds"], row["networks"], row["steps"], row["part"]) == (2, 2, 99, "val")
    assert (row["stages"], row["ipc"], row["iterations"], row["iterations_per_stage"]) == (2, 2, 60, 30)
    assert row["distil_seconds"] == 12.0


def test_results_are_written_only_when_everything_is_done(method: Method, tmp_path: Path) -> None:
    study = BaseMethods([method], GridSettings(3, [0, 1]), [2, 1], ["total"])
    finish(study, tmp_path, lambda step: [0.5, 0.7])

    study.run(tmp_path, Nothing(tmp_path))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "60.0 ± 11.5" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "table.csv").read_text().count("\n") == 3
    stored = json.loads((tmp_path / "study.json").read_text())
    assert stored["rows"][0]["mean"] == pytest.approx(0.6)
    assert stored["steps"][0]["command"].startswith("pdd fit --config ")

    class Refused(StepRunner):
        def check(self, steps: Any) -> None:
            raise ConfigError("other words")

    with pytest.raises(ConfigError):
        study.run(tmp_path, Refused(tmp_path))
    assert (tmp_path / "table.md").exists()

    class Interrupted(StepRunner):
        def run(self, steps: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(tmp_path, Interrupted(tmp_path))
    assert not {"study.json", "table.md", "table.csv", "plot.png"} & {path.name for path in tmp_path.iterdir()}


def test_crossing_is_found_between_sizes() -> None:
    assert crossing([(1, 0.5), (4, 0.9)], 0.7) == pytest.approx(2.0)
    assert crossing([(2, 0.8), (4, 0.9)], 0.7) == 2
    assert crossing([(1, 0.5), (4, 0.6)], 0.7) is None


def test_larger_sets_are_fractions_of_the_full_set(method: Method, tmp_path: Path) -> None:
    study = LargerSets(method, GridSettings(3, [0], {"full_data_epochs": 3}), [(1, 2), (2, 2)])
    finish(study, tmp_path, lambda step: [0.45 if "1x2" in step.name else 0.81])
    rows = study.rows(tmp_path)
    assert [row["of_accuracy"] for row in rows] == ["50.0 %", "100.0 %", "90.0 %"]
    assert [row["of_images"] for row in rows] == ["1.0 %", "100.0 %", "1.0 %"]
    with pytest.raises(ConfigError, match="full_data_epochs > 0"):
        LargerSets(method, GridSettings(3, [0]), [(1, 2)])


def test_seeds_must_differ() -> None:
    with pytest.raises(ConfigError, match="none twice"):
        GridSettings(10, [1, 1])


def test_there_must_be_something_to_compare(method: Method, tmp_path: Path) -> None:
    grid = GridSettings(3, [0])
    with pytest.raises(ConfigError, match="at least one recipe"):
        BaseMethods([], grid, [2], ["total"])
    for stages, budgets in (([], ["total"]), ([2], [])):
        with pytest.raises(ConfigError, match="nothing to compare"):
            StageCount(method, grid, stages, budgets).steps(tmp_path)
    with pytest.raises(ConfigError, match="another name"):
        CrossArchitecture(method, grid, {"own": "ResNet10"})
