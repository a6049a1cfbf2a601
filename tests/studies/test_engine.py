"""Steps as processes: order, failures, interruptions, lost workers."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pdd_lightning.errors import ConfigError, StudyError
from pdd_lightning.studies import engine
from pdd_lightning.studies.engine import Step, run_steps

# A program whose args say what it does, one after another: a file gets a line; others as they say.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path

def leave(*_):
    Path(sys.argv[1] + ".saved").touch()
    sys.exit(143)

def wait(path):
    while not path.exists():
        time.sleep(0.02)

signal.signal(signal.SIGTERM, leave)
for word in sys.argv[1:]:
    kind, _, name = word.partition(":")
    if kind == "fail":
        sys.exit("the cause of it")
    elif kind == "need":
        assert Path(name).exists()
    elif kind == "wait":
        wait(Path(name))
    elif kind == "process":
        Path(name + ".tmp").write_text(str(os.getpid()))
        os.rename(name + ".tmp", name)
    else:
        with open(word, "a") as file:
            file.write(os.environ.get("OMP_NUM_THREADS", "") + "\\n")
"""
FAKE = (sys.executable, "-c", PROGRAM)


def local_cluster(**options: Any) -> Any:
    """A scheduler and two workers with a thread each."""
    distributed = pytest.importorskip("distributed")
    address = "127.0.0.1:0"
    options |= {"dashboard_address": address, "worker_dashboard_address": address, "silence_logs": 50}
    return distributed.LocalCluster(n_workers=2, threads_per_worker=1, **options)


@pytest.fixture(params=["threads", "dask"])
def workers(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Options of two workers: threads of this process, or of a Dask cluster in it."""
    if request.param == "threads":
        yield {"jobs": 2}
    else:
        with local_cluster(processes=False) as cluster:
            yield {"scheduler": cluster.scheduler_address}


def run(folder: Path, steps: list[Step], **options: Any) -> dict[str, float]:
    return run_steps(steps, folder, program=FAKE, **options)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def wait_for(path: Path) -> int:
    """The number that a step writes, once it is at work."""
    while not path.exists():
        time.sleep(0.02)
    return int(path.read_text())


def test_steps_run_in_order_and_at_a_time(tmp_path: Path, workers: dict[str, Any]) -> None:
    """`first` ends only when `other` is at work beside it, and `second` needs what it leaves."""
    first = Step("a/first", (f"wait:{tmp_path / 'begun'}", str(tmp_path / "made")))
    second = Step("a/second", (f"need:{tmp_path / 'made'}",), after=("a/first",))
    other = Step("other", (str(tmp_path / "begun"),))
    seconds = run(tmp_path, [first, second, other], **workers)
    assert seconds.keys() == {"a/first", "a/second", "other"} and min(seconds.values()) > 0
    assert (tmp_path / "steps" / "a" / "first.log").read_text().startswith("$ pdd wait:")


def test_a_failed_step_shows_its_log_and_the_others_go_on(tmp_path: Path, workers: dict[str, Any]) -> None:
    bad = Step("bad", ("fail",))
    needs = Step("needs", (str(tmp_path / "needs"),), after=("bad",))
    indirectly = Step("indirectly", (str(tmp_path / "indirectly"),), after=("needs",))
    other = Step("other", (str(tmp_path / "other"),))
    with pytest.raises(StudyError, match=r"bad failed with status 1(.|\n)*the cause of it(.|\n)*needs, indirectly\."):
        run(tmp_path, [bad, needs, indirectly, other], **workers)
    assert (tmp_path / "other").exists()
    assert not (tmp_path / "needs").exists() and not (tmp_path / "indirectly").exists()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, "143"), (signal.SIGINT, "130")], ids=["SIGTERM", "Ctrl-C"]
)
def test_interrupted_steps_save_their_state(
    tmp_path: Path, number: signal.Signals, status: str, workers: dict[str, Any]
) -> None:
    long = Step("long", (str(tmp_path / "long"), f"process:{tmp_path / 'at_work'}", f"wait:{tmp_path / 'never'}"))

    def interrupt() -> None:
        wait_for(tmp_path / "at_work")
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(SystemExit, match=status):
        run(tmp_path, [long, Step("next", (str(tmp_path / "next"),), after=("long",))], **workers)
    thread.join()
    assert (tmp_path / "long.saved").exists() and not (tmp_path / "next").exists()


def test_each_process_gets_its_share_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    for jobs, threads in ((2 * cores, "1"), (1, str(cores)), (1, "7")):
        if threads == "7":
            monkeypatch.setenv("OMP_NUM_THREADS", threads)
        output = tmp_path / f"{jobs}_{threads}"
        run(tmp_path, [Step(output.name, (str(output),))], jobs=jobs)
        assert output.read_text() == f"{threads}\n"


def test_a_step_that_outlived_its_study_is_awaited(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The second start begins when the process of the first has ended, though the study itself was killed."""
    made, begun, go_on = (tmp_path / name for name in ("made", "begun", "go_on"))
    args = (f"process:{begun}", f"wait:{go_on}", str(made))
    code = (
        "from pathlib import Path; from tests.studies.test_engine import run, Step;"
        f"run(Path({str(tmp_path)!r}), [Step('long', {args!r})])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    wait_for(begun)
    process.kill()
    process.wait()
    begun.unlink()

    def let_go() -> None:
        deadline = time.monotonic() + 60
        while "long still runs from an earlier start" not in printed[0] and time.monotonic() < deadline:
            printed[0] += capfd.readouterr().err
            time.sleep(0.02)
        waited.append(not begun.exists())
        go_on.touch()

    printed, waited = [""], list[bool]()
    thread = threading.Thread(target=let_go)
    thread.start()
    run(tmp_path, [Step("long", args)])
    thread.join()
    assert waited == [True]
    assert lines(made) == 2 and begun.exists()


def test_no_jobs_and_no_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="jobs must be >= 1"):
        run(tmp_path, [], jobs=0)
    monkeypatch.setattr(engine, "CONNECT_SECONDS", 0.2)
    with pytest.raises(ConfigError, match="no Dask scheduler at tcp://"):
        run(tmp_path, [], scheduler="tcp://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"pip install 'pdd-lightning\[cluster\]'"):
        run(tmp_path, [], scheduler="tcp://127.0.0.1:1")


def test_a_lost_workers_step_is_run_again(tmp_path: Path) -> None:
    """Its process outlives the worker, and is awaited; nothing is left out and nothing runs beside itself."""
    go_on = tmp_path / "go_on"
    steps = [
        Step(name, (f"process:{tmp_path / name}.begun", f"wait:{go_on}", str(tmp_path / name)))
        for name in ("first", "second")
    ]
    last = Step("last", (f"need:{tmp_path / 'first'}", f"need:{tmp_path / 'second'}"), after=("first", "second"))

    def lose_worker() -> None:
        for step in steps:
            wait_for(tmp_path / f"{step.name}.begun")
        os.kill(cluster.workers[0].process.pid, signal.SIGKILL)
        go_on.touch()

    with local_cluster() as cluster:
        thread = threading.Thread(target=lose_worker)
        thread.start()
        assert run(tmp_path, [*steps, last], scheduler=cluster.scheduler_address).keys() == {"first", "second", "last"}
        thread.join()
    assert sorted(lines(tmp_path / step.name) for step in steps) == [1, 2]


def test_each_step_takes_one_gpu_where_workers_offer_it(tmp_path: Path) -> None:
    used: list[float] = []

    def look() -> None:
        wait_for(tmp_path / "begun")
        used.extend(worker.used_resources["GPU"] for worker in cluster.scheduler.workers.values())
        (tmp_path / "go_on").touch()

    step = Step("step", (f"process:{tmp_path / 'begun'}", f"wait:{tmp_path / 'go_on'}"))
    with local_cluster(processes=False, resources={"GPU": 1}) as cluster:
        thread = threading.Thread(target=look)
        thread.start()
        run(tmp_path, [step], scheduler=cluster.scheduler_address)
        thread.join()
    assert sorted(used) == [0, 1]
