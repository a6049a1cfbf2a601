"""Tasks are computed once, kept at once, continued, and shared by processes."""

import threading

import pytest
import torch

from pdd_lightning import distributed
from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation import tasks as tasks_module
from pdd_lightning.evaluation.tasks import Task, run_tasks
from pdd_lightning.results.result_store import ResultStore


@pytest.fixture
def computed():
    """Names of the tasks that were computed, in order."""
    return []


@pytest.fixture
def task(computed):
    """Makes a task whose value is its name and those of its needs; `error` is raised instead."""

    def make(name, needs=(), error=None, steps=3):
        def compute(on_steps, *values):
            if error:
                raise error
            computed.append(name)
            on_steps(steps)
            return [name, *values]

        return Task(name, steps, {"name": name}, compute, needs)

    return make


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.jsonl"


def test_values_come_in_the_order_of_the_tasks_and_are_computed_once(task, computed, path, capsys):
    tasks = [task(name) for name in "abc"]
    assert run_tasks(tasks, ResultStore(path)) == [["a"], ["b"], ["c"]]
    assert "computed before" not in capsys.readouterr().out
    others = [task(name) for name in "cdab"]
    assert run_tasks(others, ResultStore(path)) == [["c"], ["d"], ["a"], ["b"]]
    assert computed == ["a", "b", "c", "d"]
    assert f"3 of 4 results were computed before: they are kept in {path}" in capsys.readouterr().out


@pytest.mark.parametrize("error", [ConfigError("bad"), KeyboardInterrupt(), RuntimeError("bad")])
def test_what_was_done_before_an_interruption_is_kept(task, computed, path, error):
    with pytest.raises(type(error)):
        run_tasks([task("a"), task("b"), task("c", error=error), task("d")], ResultStore(path))
    text = path.read_text()
    path.write_text(text[:-5])  # killed while the second was being written
    assert run_tasks([task(name) for name in "abcd"], ResultStore(path)) == [["a"], ["b"], ["c"], ["d"]]
    assert computed == ["a", "b", "b", "c", "d"]


def test_what_tasks_need_is_computed_first_once_and_only_if_it_is_needed(task, computed, path):
    shared = task("shared")
    first, second = task("first", [shared]), task("second", [task("own"), shared])
    assert run_tasks([first, second], ResultStore(path)) == [["first", ["shared"]], ["second", ["own"], ["shared"]]]
    assert computed == ["shared", "own", "first", "second"]
    computed.clear()
    run_tasks([first, task("third", [shared]), task("fourth")], ResultStore(path))
    run_tasks([first, second], ResultStore(path))
    assert computed == ["third", "fourth"]


def test_the_bar_counts_the_steps_that_are_left(task, path, monkeypatch):
    bars = []
    make_bar = tasks_module.progress_bar
    monkeypatch.setattr(tasks_module, "progress_bar", lambda *words: bars.append(make_bar(*words)) or bars[-1])
    run_tasks([task("a", steps=5)], ResultStore(path))
    run_tasks([task("a", steps=5), task("b", [task("c", steps=2)], steps=4)], ResultStore(path))
    assert [(bar.total, bar.n) for bar in bars] == [(5, 5), (6, 6)]
    run_tasks([task("a", steps=5)], ResultStore(path))
    assert bars[-1].disable  # nothing is left


@pytest.mark.parametrize("context", [torch.autocast("cpu", torch.bfloat16), torch.no_grad(), torch.inference_mode()])
def test_tasks_are_done_in_float32_and_with_gradients_whatever_the_callers_context(context):
    weight = torch.nn.Linear(2, 1).weight

    def compute(_):
        output = torch.nn.functional.linear(torch.ones(1, 2), weight)
        output.sum().backward()
        return [str(output.dtype), weight.grad.tolist()]

    with context:
        assert run_tasks([Task("gradient", 1, {}, compute)], ResultStore()) == [["torch.float32", [[1.0, 1.0]]]]


class Threads:
    """Threads that take the part of processes."""

    def __init__(self, number, monkeypatch):
        self.number = number
        self.barrier = threading.Barrier(number, timeout=20)
        self.own = threading.local()
        self.given = [None] * number
        monkeypatch.setattr(distributed, "rank", lambda: self.own.rank)
        monkeypatch.setattr(distributed, "world_size", lambda: number)
        monkeypatch.setattr(distributed, "gather", self.gather)
        monkeypatch.setattr(distributed, "broadcast", lambda value: self.gather(value)[0])

    def gather(self, value):
        self.given[self.own.rank] = value
        self.barrier.wait()
        values = list(self.given)
        self.barrier.wait()
        return values

    def run(self, work):
        """What `work(rank)` returns or raises in each thread."""
        outcomes = [None] * self.number

        def start(rank):
            self.own.rank = rank
            try:
                outcomes[rank] = work(rank)
            except ConfigError as error:
                outcomes[rank] = error

        threads = [threading.Thread(target=start, args=(rank,)) for rank in range(self.number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcomes


@pytest.mark.parametrize("count", [1, 2, 7])
def test_processes_share_the_tasks_and_get_all_values(task, computed, path, monkeypatch, count):
    """The third process has opened the file before anything was in it."""
    early = ResultStore(path)
    run_tasks([task("0")], ResultStore(path))
    processes = Threads(3, monkeypatch)

    def work(rank):
        needed = task("needed")
        tasks = [task(str(number), [needed]) for number in range(count)]
        return run_tasks(tasks, early if rank == 2 else ResultStore(path), progress=False)

    values = processes.run(work)
    assert values == [[["0"], *([str(number), ["needed"]] for number in range(1, count))]] * 3
    assert sorted(computed) == sorted([str(number) for number in range(count)] + ["needed"] * (count > 1))
    assert len(path.read_text().splitlines()) == len(computed)


def test_an_error_of_one_process_is_raised_by_all(task, path, monkeypatch):
    errors = Threads(3, monkeypatch).run(
        lambda rank: run_tasks(
            [task("a"), task("b", error=ConfigError("of b")), task("c")], ResultStore(path), progress=False
        )
    )
    assert [str(error) for error in errors] == ["of b"] * 3
