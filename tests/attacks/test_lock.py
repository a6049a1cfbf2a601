"""One run, one owner; and rows that several processes write at once."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pdd_lightning import files
from pdd_lightning.cli import main
from pdd_lightning.errors import ConfigError
from pdd_lightning.results.result_store import ResultStore
from tests.attacks.ending import fit_words, sentence_of
from tests.cli.conftest import PROJECT

HOLD = """
import fcntl, json, os, sys, time
lock = open(sys.argv[1] + "/.lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
with open(sys.argv[1] + "/.owner.json", "w") as about:
    json.dump({"process": os.getpid(), "host": "here", "since": "now", "token": "x"}, about)
print("owned", flush=True)
time.sleep(600)
"""
"""As `lock_folder` does it; in few imports."""


def test_a_second_start_is_refused(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files.lock_folder(tmp_path):
        before = sorted(path.name for path in tmp_path.iterdir())
        said = sentence_of(fit_words(recipe, tmp_path), capsys)
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert f"{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()} since 20" in said
    main(fit_words(recipe, tmp_path))


def test_a_killed_owner_does_not_block(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"owned\n"
        with pytest.raises(ConfigError, match=f"in use by process {holder.pid} on"), files.lock_folder(tmp_path):
            pass
        holder.kill()
    with files.lock_folder(tmp_path):
        pass


LEFT: dict[str, Callable[[Path], object]] = {
    "another machine": lambda about: about.write_text(
        json.dumps({"process": 1, "host": "elsewhere", "since": "2020-01-01 00:00:00", "token": "x"})
    ),
    "this machine": lambda about: about.write_text(
        json.dumps({"process": 2**22 - 1, "host": socket.gethostname(), "since": "now", "token": "x"})
    ),
    "cut off": lambda about: about.write_text('{"process": 1'),
    "no JSON": lambda about: about.write_bytes(b"\xff\x00"),
    "a lock with content": lambda about: about.with_name(".lock").write_text("12345\nelsewhere\n"),
    "nothing": lambda about: None,
}


@pytest.mark.parametrize("left", LEFT)
def test_what_a_dead_owner_left_does_not_block(left: str, tmp_path: Path) -> None:
    LEFT[left](tmp_path / ".owner.json")
    with files.lock_folder(tmp_path):
        LEFT[left](tmp_path / ".owner.json")
        with pytest.raises(ConfigError, match="is in use by"), files.lock_folder(tmp_path):
            pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is blocked there, and a line says so."""

    def missing(*_: object, **__: object) -> None:
        raise NotImplementedError

    notes: list[str] = []
    monkeypatch.setattr(files.FileLock, "acquire", missing)
    monkeypatch.setattr(files.logger, "warning", lambda text, *values: notes.append(text % values))
    with files.lock_folder(tmp_path):
        pass
    assert len(notes) == 1 and "cannot be locked" in notes[0]


def test_the_folder_is_recognized_by_its_owners_token(tmp_path: Path) -> None:
    with files.lock_folder(tmp_path / "a") as token:
        assert files.has_token(tmp_path / "a", token, seconds=0)
        (tmp_path / "b").mkdir()
        assert not files.has_token(tmp_path / "b", token, seconds=0)


def test_rows_written_at_once_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"

    def write(writer: int) -> None:
        store = ResultStore(path)
        for row in range(30):
            store.put({"writer": writer, "row": row}, {"value": "x" * 20000})

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = ResultStore(path)
    assert all(store.get({"writer": writer, "row": row}) for writer in range(4) for row in range(30))


def test_changes_of_one_file_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "count.json"
    path.write_text("0")

    def add() -> None:
        for _ in range(25):
            with files.lock_file(path):
                files.atomic_write_json(path, json.loads(path.read_text()) + 1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads(path.read_text()) == 100


def start_node(node: int, folder: Path, recipe: Path, port: int) -> "subprocess.Popen[str]":
    more = ["--trainer.strategy", "ddp", "--trainer.devices", 1, "--trainer.num_nodes", 2]
    environment = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(node)
    }  # fmt: skip
    command = [sys.executable, "-m", "pdd_lightning", *fit_words(recipe, folder, *more)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_nodes_need_one_folder(shared: bool, recipe: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = [tmp_path / "run", tmp_path / ("run" if shared else "other")]
    nodes = [start_node(node, folder, recipe, port) for node, folder in enumerate(folders)]
    outputs = [node.communicate()[0] for node in nodes]
    if shared:
        assert [node.returncode for node in nodes] == [0, 0], outputs
        return
    assert all(node.returncode == 1 for node in nodes), outputs
    assert all("process 1 does not see the run folder" in output for output in outputs), outputs
    assert not (tmp_path / "run" / "experts").exists() and not any("Traceback" in output for output in outputs)
