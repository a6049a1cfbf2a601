"""Steps as processes: what is skipped, refused, left out, and ended."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pdd_lightning.errors import ConfigError, DamagedFileError, StudyError
from pdd_lightning.studies.runner import StepRunner
from pdd_lightning.studies.step import Step, distinct

# A program whose words say what it does, one after another: a file gets a line; `fail`, `slow` and `sleep` as they say.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path

def leave(*_):
    Path(sys.argv[1] + ".saved").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, leave)
for word in sys.argv[1:]:
    if word == "fail":
        sys.exit("the cause of it")
    elif word == "slow":
        time.sleep(0.3)
    elif word == "sleep":
        Path(sys.argv[1] + ".process").write_text(str(os.getpid()))
        time.sleep(60)
    elif word.startswith("need:"):
        assert Path(word[5:]).exists()
    else:
        with open(word, "a") as file:
            file.write(os.environ["OMP_NUM_THREADS"] + "\\n")
"""


def runner(folder: Path, jobs: int = 1) -> StepRunner:
    return StepRunner(folder, jobs, (sys.executable, "-c", PROGRAM))


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_what_is_done_is_not_repeated(tmp_path: Path) -> None:
    steps = [Step(name, (str(tmp_path / name),)) for name in ("first", "second")]
    runner(tmp_path).run(steps[:1])
    runner(tmp_path).run(steps)
    assert lines(tmp_path / "first") == lines(tmp_path / "second") == 1
    record = json.loads((tmp_path / "steps" / "first.json").read_text())
    assert record["exit"] == 0 and record["words"] == list(steps[0].words) and record["seconds"] > 0


def test_what_was_made_of_output_that_is_made_anew_is_repeated(tmp_path: Path) -> None:
    first = Step("first", (str(tmp_path / "first"),))
    steps = [first, Step("second", (str(tmp_path / "second"),), after=("first",)), Step("x", (str(tmp_path / "x"),))]
    runner(tmp_path).run(steps)
    (tmp_path / "steps" / "first.json").unlink()
    runner(tmp_path).run(steps)
    assert [lines(tmp_path / name) for name in ("first", "second", "x")] == [2, 2, 1]


def test_a_step_waits_for_what_it_needs(tmp_path: Path) -> None:
    first = Step("first", ("slow", str(tmp_path / "made")))
    runner(tmp_path, jobs=2).run([first, Step("second", (f"need:{tmp_path / 'made'}",), after=("first",))])


def test_a_failed_step_shows_its_log_and_the_others_go_on(tmp_path: Path) -> None:
    bad = Step("bad", (str(tmp_path / "bad"), "fail"))
    needs = Step("needs", (str(tmp_path / "needs"),), after=("bad",))
    indirectly = Step("indirectly", (str(tmp_path / "indirectly"),), after=("needs",))
    other = Step("other", (str(tmp_path / "other"),))
    with pytest.raises(StudyError, match=r"bad failed with status 1(.|\n)*the cause of it(.|\n)*needs, indirectly"):
        runner(tmp_path).run([bad, needs, indirectly, other])
    assert (tmp_path / "other").exists()
    assert not (tmp_path / "needs").exists() and not (tmp_path / "indirectly").exists()


def test_a_failed_step_may_be_corrected(tmp_path: Path) -> None:
    with pytest.raises(StudyError):
        runner(tmp_path).run([Step("step", (str(tmp_path / "made"), "fail"))])
    runner(tmp_path).run([Step("step", (str(tmp_path / "made"),))])
    assert lines(tmp_path / "made") == 2


def test_other_words_of_a_done_step_are_refused_before_anything_runs(tmp_path: Path) -> None:
    made = str(tmp_path / "made")
    runner(tmp_path).run([Step("step", (made,))])
    new = Step("new", (str(tmp_path / "new"),))
    with pytest.raises(ConfigError, match=r"other words:\n(.|\n)*word 1: .*made.* on disk, .*changed.* asked for"):
        runner(tmp_path).run([new, Step("step", (str(tmp_path / "changed"),))])
    assert not (tmp_path / "new").exists()


def test_a_recipe_that_was_changed_in_between_is_refused(tmp_path: Path) -> None:
    """Also in a file that it names; comments may change."""
    recipe, network = tmp_path / "recipe.yaml", tmp_path / "net.yaml"
    recipe.write_text("model: {network: net.yaml}\nlr: 1\n")
    network.write_text("width: 4\n")
    program = (sys.executable, "-c", "")
    steps = [Step("first", ("--config", str(recipe))), Step("second", ("--config", str(recipe), "--ipc", "2"))]
    StepRunner(tmp_path, 1, program).run(steps[:1])
    recipe.write_text("# A comment.\nmodel: {network: net.yaml}\nlr: 1\n")
    StepRunner(tmp_path, 1, program).run(steps)
    network.write_text("width: 8\n")
    with pytest.raises(ConfigError, match=r"first was run with other words:\n .*recipe\.yaml says something else now"):
        StepRunner(tmp_path, 1, program).run(steps)


def test_each_process_gets_its_share_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    runner(tmp_path, jobs=2 * cores).run([Step("many", (str(tmp_path / "many"),))])
    runner(tmp_path, jobs=1).run([Step("one", (str(tmp_path / "one"),))])
    assert (tmp_path / "many").read_text() == "1\n"
    assert (tmp_path / "one").read_text() == f"{cores}\n"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    runner(tmp_path, jobs=1).run([Step("set", (str(tmp_path / "set"),))])
    assert (tmp_path / "set").read_text() == "7\n"


def wait_for(path: Path) -> int:
    """The process number that a sleeping step writes."""
    deadline = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(path.read_text())


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, "143"), (signal.SIGINT, "130")], ids=["SIGTERM", "Ctrl-C"]
)
def test_interrupted_steps_save_their_state_and_are_started_again(
    tmp_path: Path, number: signal.Signals, status: str
) -> None:
    step = Step("long", (str(tmp_path / "long"), "sleep"))

    def interrupt() -> None:
        wait_for(tmp_path / "long.process")
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(SystemExit, match=status):
        runner(tmp_path).run([step])
    thread.join()
    assert (tmp_path / "long.saved").exists()
    record = json.loads((tmp_path / "steps" / "long.json").read_text())
    assert record["exit"] is None and record["seconds"] > 0
    with pytest.raises(ConfigError, match="other words"):
        runner(tmp_path).run([Step("long", (str(tmp_path / "other"),))])
    StepRunner(tmp_path, 1, (sys.executable, "-c", "")).run([step])
    assert json.loads((tmp_path / "steps" / "long.json").read_text())["seconds"] > record["seconds"]


def test_a_step_that_outlived_its_study_is_not_started_twice(tmp_path: Path) -> None:
    words = (str(tmp_path / "long"), "sleep")
    code = (
        "import sys; from pathlib import Path; from tests.studies.test_runner import runner, Step;"
        f"runner(Path({str(tmp_path)!r})).run([Step('long', {words!r})])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    step_process = wait_for(tmp_path / "long.process")
    process.kill()
    process.wait()
    try:
        with pytest.raises(ConfigError, match="at work from an earlier start"):
            runner(tmp_path).run([Step("long", words)])
    finally:
        os.kill(step_process, signal.SIGTERM)
    assert lines(tmp_path / "long") == 1


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "step.json").write_text("{")
    with pytest.raises(DamagedFileError, match=r"step\.json is damaged"):
        runner(tmp_path).run([Step("step", ())])


def test_a_name_stands_for_one_command() -> None:
    first = Step("first", ("a",))
    assert distinct([first, first]) == [first]
    with pytest.raises(ConfigError, match="give the methods different names"):
        distinct([first, Step("first", ("b",))])
