"""Which folders are shown, and what is said of those that are damaged or incomplete."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pdd_lightning.errors import ConfigError
from pdd_lightning.results.folders import read_folders
from tests.results.conftest import stage, write_summary

MakeRun = Callable[..., Path]


def notes(folder: Path) -> str:
    (run,) = read_folders([folder]).runs
    return "; ".join(run.notes)


def test_a_whole_run_has_no_notes(make_run: MakeRun) -> None:
    (run,) = read_folders([make_run("a")]).runs
    assert run.notes == []
    assert (run.name, run.summary.dataset["name"], run.settings["model"]) == ("a", "Blobs", "DistributionMatching")
    assert [picture.caption for picture in run.pictures] == ["distilled images", "easiest"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"stages": [', "summary.json is damaged"),
        ("[]", "summary.json is damaged: the whole file: Input should be a valid dictionary"),
        ('{"stages": [{"stage": 1}]}', "summary.json is damaged: stages.0.images: Field required"),
        (None, "it holds a distilled set, but no run"),
    ],
)
def test_a_run_without_usable_figures_is_named_and_the_others_are_shown(
    content: str | None, reason: str, make_run: MakeRun
) -> None:
    damaged, sound = make_run("damaged"), make_run("sound")
    if content is None:
        (damaged / "summary.json").unlink()
    else:
        (damaged / "summary.json").write_text(content)
    folders = read_folders([damaged, sound])
    assert [run.name for run in folders.runs] == ["sound"]
    (broken,) = folders.broken
    assert broken.name == "damaged"
    assert reason in broken.notes[0]


def test_a_run_without_a_finished_stage_is_named(make_run: MakeRun) -> None:
    begun, sound = make_run("begun"), make_run("sound")
    for file in ("summary.json", "distilled.safetensors"):
        (begun / file).unlink()
    (broken,) = read_folders([begun, sound]).broken
    assert (broken.name, broken.notes) == ("begun", ["no stage is finished yet: there is no summary.json"])


def test_a_damaged_set_is_noted_and_its_pictures_are_shown_instead(make_run: MakeRun) -> None:
    folder = make_run("a")
    path = folder / "distilled.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    (run,) = read_folders([folder]).runs
    assert "is damaged" in run.notes[0]
    assert [picture.caption for picture in run.pictures] == ["easiest", "stage 1", "stage 2", "union"]


def test_a_damaged_picture_is_noted(make_run: MakeRun) -> None:
    folder = make_run("a")
    (folder / "images" / "easiest.png").write_bytes(b"no picture")
    assert "easiest.png cannot be read" in notes(folder)


@pytest.mark.parametrize("content", ["model: [", "- 1\n", None])
def test_without_a_configuration_the_method_is_known_from_the_summary(content: str | None, make_run: MakeRun) -> None:
    folder = make_run("a", ipc=7)
    if content is None:
        (folder / "config.yaml").unlink()
    else:
        (folder / "config.yaml").write_text(content)
    (run,) = read_folders([folder]).runs
    assert "config.yaml" in run.notes[0]
    assert run.settings == {"seed_everything": "0", "model": "DistributionMatching", "model.ipc": "7"}


def test_a_stopped_run_says_how_far_it_came(make_run: MakeRun) -> None:
    folder = make_run("a")
    write_summary(folder, stages=[stage(1, 0.5)])
    assert notes(folder) == "1 of 2 stages are finished"
    (folder / "last_good.safetensors").touch()
    assert "a loss was not finite" in notes(folder)


def test_a_folder_of_runs_stands_for_them_and_files_are_passed_over(make_run: MakeRun) -> None:
    runs = make_run("b").parent
    make_run("a")
    (runs / "report.html").touch()
    (runs / "data").mkdir()
    assert [run.name for run in read_folders([runs]).runs] == ["a", "b"]
    folders = read_folders(sorted(runs.iterdir()))
    assert [run.name for run in folders.runs] == ["a", "b"]
    assert [broken.notes for broken in folders.broken] == [["it holds no run and no study"]]


def test_a_folder_given_twice_is_shown_once_and_equal_names_are_told_apart(make_run: MakeRun) -> None:
    first, second = make_run("x/run"), make_run("y/run")
    assert [run.name for run in read_folders([first, second, first]).runs] == [str(first), str(second)]


def test_a_study_is_read_from_its_json(make_study: Callable[[str], Path]) -> None:
    folder = make_study("stages")
    (study,) = read_folders([folder]).studies
    assert (study.result.title, [row["stages"] for row in study.result.rows]) == ("Stages at equal IPC", [1, 5])
    assert len(study.pictures) == 1 and study.notes == []
    (folder / "plot.png").unlink()
    (study,) = read_folders([folder]).studies
    (note,) = study.notes
    assert note.startswith("the picture plot.png cannot be read")


def test_nothing_to_show_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no run found in .*empty"):
        read_folders([tmp_path / "empty"])
    with pytest.raises(ConfigError, match=r"there is no folder .*none"):
        read_folders([tmp_path / "none"])
