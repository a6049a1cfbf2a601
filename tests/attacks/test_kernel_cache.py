"""The folder that compiled kernels are kept in: damage, what others planted, where it may not be, and kills."""

import ctypes
import hashlib
import logging
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pdd_lightning.kernels import compiled
from tests.attacks.test_images import limited

REAL = compiled.library()
pytestmark = pytest.mark.skipif(REAL is None, reason="there is no compiler")
NAME, SYMBOL = "kernels_key.so", "block_backward_float32"
ROOT = os.geteuid() == 0


@pytest.fixture(autouse=True)
def in_time(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing may wait for ever, such as for a named pipe."""
    with limited(600 if "slow" in request.keywords else 20):
        yield


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The library that this machine's compiler makes."""
    if REAL is not None and Path(REAL._name).exists():
        return Path(REAL._name).read_bytes()
    return compiled._build(["c++"], tmp_path_factory.mktemp("built")).read_bytes()


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    """A library that leaves a file behind when it is loaded, and that file."""
    folder = tmp_path_factory.mktemp("planted")
    mark = folder / "loaded"
    program = (
        f'#include <fcntl.h>\n__attribute__((constructor)) void f() {{ open("{mark}", O_CREAT | O_WRONLY, 0600); }}\n'
    )
    (folder / "x.c").write_text(program)
    subprocess.run(["cc", "-shared", "-fPIC", folder / "x.c", "-o", folder / "x.so"], check=True)
    return (folder / "x.so").read_bytes(), mark


class Compiler:
    """Takes the compiler's part, and counts how often it is asked."""

    def __init__(self, library: bytes) -> None:
        self.library = library
        self.folders: list[Path] = []
        self.seconds = 0.0

    def build(self, compiler: list[str], folder: Path) -> Path:
        self.folders.append(folder)
        time.sleep(self.seconds)
        (folder / "kernels.so").write_bytes(self.library)
        return folder / "kernels.so"


@pytest.fixture
def compiler(built: bytes, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    one = Compiler(built)
    monkeypatch.setattr(compiled, "_build", one.build)
    monkeypatch.setattr(compiled, "_key", lambda compiler: "key")
    return one


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: Compiler) -> Path:
    """The folder with a whole library in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    load()
    compiler.folders.clear()
    return tmp_path / "cache" / "pdd_lightning"


def load() -> ctypes.CDLL:
    """Load the library as a new process does, and use it."""
    library = compiled.library.__wrapped__()
    assert library is not None and ctypes.c_void_p.in_dll(library, SYMBOL)
    return library


def write(path: Path, content: bytes) -> None:
    """Write another file in the place of one that this process has loaded."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def plant(folder: Path, library: bytes) -> None:
    """Leave a library that fits its checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / NAME, library)
    (folder / NAME).with_suffix(".sha256").write_text(hashlib.sha256(library).hexdigest())


def zeroed(start: float, stop: float) -> Callable[[bytes], bytes]:
    return lambda data: (
        data[: int(start * len(data))]
        + bytes(int(stop * len(data)) - int(start * len(data)))
        + data[int(stop * len(data)) :]
    )


def flipped(place: float) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[min(int(place * len(data)), len(data) - 1)] ^= 16
        return bytes(changed)

    return flip


def header(place: int, fields: str, *values: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        struct.pack_into(fields, changed, place, *values)
        return bytes(changed)

    return change


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(share * len(data))]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    **{f"the first {100 * share:g} %": cut(share) for share in (0, 0.0001, 0.01, 0.1, 0.5, 0.9, 0.99)},
    "without its last byte": lambda data: data[:-1],
    "without its last page": lambda data: data[:-4096],
    "with one byte more": lambda data: data + b"\0",
    "twice": lambda data: 2 * data,
    "zeros": lambda data: bytes(len(data)),
    "first page zeros": zeroed(0, 0.02),
    "first half zeros": zeroed(0, 0.5),
    "middle zeros": zeroed(0.4, 0.6),
    "second half zeros": zeroed(0.5, 1),
    "last page zeros": zeroed(0.98, 1),
    **{f"a bit flipped at {place}": flipped(place) for place in (0, 0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 1)},
    "another architecture": header(18, "<H", 183),
    "32 bits": header(4, "B", 1),
    "the other byte order": header(5, "B", 2),
    "no shared library": header(16, "<H", 2),
    "segments outside the file": header(32, "<Q", 2**60),
    "too many segments": header(56, "<H", 65535),
    "no sections": header(40, "<Q", 0),
    "pages exchanged": lambda data: data[4096:8192] + data[:4096] + data[8192:],
    "random bytes": lambda data: random.Random(0).randbytes(len(data)),
    "text": lambda data: b"#!/bin/sh\necho hello\n",
    "a linker script": lambda data: b"INPUT(/lib/libc.so.6)",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_library_is_compiled_again(damage: str, cache: Path, compiler: Compiler, built: bytes) -> None:
    write(cache / NAME, DAMAGE[damage](built))
    load()
    assert len(compiler.folders) == 1 and (cache / NAME).read_bytes() == built
    load()
    assert len(compiler.folders) == 1


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        former = os.getcwd()  # noqa: PTH109
        os.chdir(path.parent)  # a socket's path must be short
        one.bind(path.name)
        os.chdir(former)


def through_link(path: Path) -> None:
    target = path.with_name("elsewhere")
    shutil.copy(path, target)
    path.unlink()
    path.symlink_to(target)


CHANGED: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "a pipe": lambda path: replaced(path, os.mkfifo),
    "a folder": lambda path: replaced(path, Path.mkdir),
    "a socket": lambda path: replaced(path, listening),
    "a link": through_link,
    "a link to nothing": lambda path: replaced(path, lambda path: path.symlink_to("nowhere")),
    "a link to itself": lambda path: replaced(path, lambda path: path.symlink_to(path.name)),
    "a link to a device": lambda path: replaced(path, lambda path: path.symlink_to("/dev/zero")),
    "one that its group may write": lambda path: path.chmod(0o620),
    "one that all may write": lambda path: path.chmod(0o606),
    "empty": lambda path: path.write_bytes(b""),
    "not UTF-8": lambda path: path.write_bytes(b"\xff" * 64),
    "very large": lambda path: os.truncate(path, 2**33),
}
if ROOT:
    CHANGED["one of another user"] = lambda path: os.chown(path, 65534, 65534)


@pytest.mark.parametrize("file", ["library", "checksum"])
@pytest.mark.parametrize("change", CHANGED)
def test_only_ordinary_files_of_the_user_are_loaded(
    change: str, file: str, cache: Path, compiler: Compiler, built: bytes, planted: tuple[bytes, Path], tmp_path: Path
) -> None:
    path = cache / NAME
    if change != "missing":
        plant(cache, planted[0])
    CHANGED[change](path if file == "library" else path.with_suffix(".sha256"))
    load()
    assert len(compiler.folders) == 1 and not planted[1].exists()
    assert path.read_bytes() == built and not path.is_symlink()
    load()
    assert len(compiler.folders) == 1


def opened(folder: Path, mode: int) -> None:
    folder.chmod(mode)


def exchanged(folder: Path, make: Callable[[Path], object]) -> None:
    """The folder lies elsewhere, and something else in its place."""
    folder.rename(folder.with_name("elsewhere"))
    make(folder)


def above(folder: Path, mode: int) -> None:
    folder.parent.chmod(mode)


UNSAFE: dict[str, Callable[[Path], object]] = {
    "that all may write": lambda folder: opened(folder, 0o777),
    "that all may write, sticky": lambda folder: opened(folder, 0o1777),
    "that others may write": lambda folder: opened(folder, 0o702),
    "that its group may write": lambda folder: opened(folder, 0o770),
    "below one that all may write": lambda folder: above(folder, 0o777),
    "below one that others may write": lambda folder: above(folder, 0o702),
    "that is a link": lambda folder: exchanged(folder, lambda path: path.symlink_to("elsewhere")),
    "that is a link elsewhere": lambda folder: exchanged(
        folder, lambda path: path.symlink_to(path.parent / "elsewhere")
    ),
    "that is a link to nothing": lambda folder: exchanged(folder, lambda path: path.symlink_to("nowhere")),
    "that is a link to itself": lambda folder: exchanged(folder, lambda path: path.symlink_to(path.name)),
    "that is a file": lambda folder: exchanged(folder, Path.touch),
    "that is a pipe": lambda folder: exchanged(folder, os.mkfifo),
    "below a file": lambda folder: (shutil.rmtree(folder.parent), folder.parent.touch()),
    "below a link to itself": lambda folder: (
        shutil.rmtree(folder.parent),
        folder.parent.symlink_to(folder.parent.name),
    ),
    "with a folder as lock": lambda folder: (
        (folder / "lock").unlink(),
        (folder / "lock").mkdir(),
        (folder / NAME).unlink(),
    ),
    "with a link as lock": lambda folder: (
        (folder / "lock").unlink(),
        (folder / "lock").symlink_to("nowhere"),
        (folder / NAME).unlink(),
    ),
}
if ROOT:
    UNSAFE |= {
        "of another user": lambda folder: os.chown(folder, 65534, 65534),
        "below one of another user": lambda folder: os.chown(folder.parent, 65534, 65534),
    }


@pytest.mark.parametrize("case", UNSAFE)
def test_without_a_folder_of_ones_own_it_is_compiled_for_the_process(
    case: str,
    cache: Path,
    compiler: Compiler,
    planted: tuple[bytes, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plant(cache, planted[0])
    UNSAFE[case](cache)
    with caplog.at_level(logging.INFO):
        load()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "compiled for this process alone" in warnings[0] and "\n" not in warnings[0]
    assert len(compiler.folders) == 1 and not compiler.folders[0].exists() and not planted[1].exists()
    assert list(tmp_path.glob("pdd_lightning_build_*")) == []


RELATIVE: dict[str, dict[str, str]] = {
    **{
        f"XDG_CACHE_HOME={name}": {"XDG_CACHE_HOME": name}
        for name in ("cache", ".", "..", "./cache", "~/cache", "", "$HOME")
    },
    **{f"HOME={name}": {"HOME": name, "XDG_CACHE_HOME": ""} for name in ("home", ".", "..", "./home", "~")},
    "both": {"HOME": "home", "XDG_CACHE_HOME": "cache"},
}


@pytest.mark.parametrize("case", RELATIVE)
def test_relative_places_are_not_used(
    case: str,
    cache: Path,
    compiler: Compiler,
    planted: tuple[bytes, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in RELATIVE[case].items():
        monkeypatch.setenv(name, value)
        if value:
            for inside in ("pdd_lightning", ".cache/pdd_lightning"):
                folder = (tmp_path / "here" / value).resolve() / inside
                if folder != tmp_path / "cache" / "pdd_lightning":
                    plant(folder, planted[0])
    (tmp_path / "here").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "here")
    load()
    assert len(compiler.folders) == 1 and not planted[1].exists()
    kept = "HOME" not in RELATIVE[case]
    assert (tmp_path / "home/.cache/pdd_lightning" / NAME).exists() == kept


def test_a_folder_that_others_may_only_read_is_closed(cache: Path, compiler: Compiler) -> None:
    cache.chmod(0o755)
    load()
    assert cache.stat().st_mode & 0o777 == 0o700 and compiler.folders == []


def test_what_is_made_is_the_users_alone_whatever_the_umask(
    tmp_path: Path, cache: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new" / "cache"))
    former = os.umask(0)
    try:
        load()
        load()
    finally:
        os.umask(former)
    assert len(compiler.folders) == 1
    folder = tmp_path / "new" / "cache" / "pdd_lightning"
    assert [path.stat().st_mode & 0o077 for path in (folder, folder / NAME, folder / "kernels_key.sha256")] == [0] * 3


@pytest.mark.parametrize("cause", ["not executable", "no room", "no lock"])
def test_a_folder_that_does_not_work_is_done_without(
    cause: str, cache: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if cause == "not executable":
        open_library = compiled._open

        def refuse(path: Path) -> ctypes.CDLL:
            if path.parent == cache:
                raise OSError("failed to map segment from shared object")
            return open_library(path)

        monkeypatch.setattr(compiled, "_open", refuse)
    else:
        (cache / NAME).unlink()

        def fail(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device") if cause == "no room" else NotImplementedError("no locks here")

        monkeypatch.setattr(*((Path, "replace") if cause == "no room" else (compiled, "FileLock")), fail)
    load()
    assert "compiled for this process alone" in caplog.text


def test_what_killed_processes_left_is_removed(cache: Path, compiler: Compiler, tmp_path: Path) -> None:
    (cache / NAME).unlink()
    for folder in (cache, tmp_path):
        (folder / "pdd_lightning_build_old").mkdir()
        (folder / "pdd_lightning_build_old" / "x.o").touch()
    os.utime(tmp_path / "pdd_lightning_build_old", (0, 0))
    (tmp_path / "pdd_lightning_build_busy").mkdir()
    load()
    assert sorted(path.name for path in cache.iterdir()) == ["kernels_key.sha256", NAME, "lock"]
    cache.chmod(0o777)
    load()
    assert [path.name for path in tmp_path.glob("pdd_lightning_build_*")] == ["pdd_lightning_build_busy"]


def test_of_those_that_start_together_one_compiles(cache: Path, compiler: Compiler) -> None:
    (cache / NAME).unlink()
    compiler.seconds = 0.3
    threads = [threading.Thread(target=load) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(compiler.folders) == 1


PROGRAM = "from pdd_lightning.kernels.compiled import library; print(library()._name)"


def start(cache: Path, **environment: str) -> subprocess.Popen[str]:
    variables = {**os.environ, "XDG_CACHE_HOME": str(cache), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, env=variables, text=True, start_new_session=True
    )


def counting(path: Path) -> Path:
    """A compiler that notes each call with something to compile."""
    script = path / "compiler"
    script.write_text(f'#!/bin/sh\ncase "$*" in *-c*) echo x >> {path}/calls;; esac\n{path}/hold\nexec c++ "$@"\n')
    script.chmod(0o755)
    (path / "hold").write_text("#!/bin/sh\n")
    (path / "hold").chmod(0o755)
    return script


@pytest.mark.slow
def test_processes_that_start_together_compile_once(tmp_path: Path) -> None:
    script = str(counting(tmp_path))
    processes = [start(tmp_path / "cache", CXX=script) for _ in range(4)]
    names = {process.communicate(timeout=600)[0] for process in processes}
    assert len(names) == 1 and str(tmp_path / "cache") in names.pop()
    assert len((tmp_path / "calls").read_text().split()) == len(compiled.SOURCES)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_kill_while_compiling_leaves_nothing_for_good(how: signal.Signals, tmp_path: Path) -> None:
    script = str(counting(tmp_path))
    (tmp_path / "hold").write_text(f"#!/bin/sh\n[ -f {tmp_path}/calls ] && [ ! -f {tmp_path}/killed ] && sleep 15\n:\n")
    killed = start(tmp_path / "cache", CXX=script)
    while not (tmp_path / "calls").exists():
        time.sleep(0.05)
    os.killpg(killed.pid, how)
    killed.communicate(timeout=60)
    (tmp_path / "killed").touch()
    assert start(tmp_path / "cache", CXX=script).communicate(timeout=600)[0].startswith(str(tmp_path / "cache"))
    names = sorted(path.suffix for path in (tmp_path / "cache" / "pdd_lightning").iterdir())
    assert names == ["", ".sha256", ".so"]
