"""What cannot be read or written, and what memory lacks: one sentence, nothing half-written, and a way to continue."""

import errno
import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from pdd_lightning import DistilledDataset, files
from pdd_lightning.cli import main
from tests.attacks.ending import fit_words, sentence_of, words
from tests.cli.conftest import PROJECT

NOBODY = 65534


class LockFolder(Callback):
    """Takes the permission to write away from a run folder while the run goes on."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            for folder in (Path(trainer.default_root_dir), *Path(trainer.default_root_dir).rglob("*")):
                folder.chmod(0o555)


class RemoveFolder(Callback):
    """Deletes the checkpoints' folder, and puts a file in its place."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            shutil.rmtree(Path(trainer.default_root_dir) / "checkpoints")
            (Path(trainer.default_root_dir) / "checkpoints").touch()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may write to."""
    with tempfile.TemporaryDirectory(prefix="pdd_attack_", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o777)
        yield Path(name)


@contextmanager
def without_privileges() -> Iterator[None]:
    """Permissions hold inside the block, also where the tests are run by the administrator."""
    former = os.geteuid()
    if former == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(former)


@pytest.fixture
def public(image_folder: Path, open_folder: Path) -> tuple[Path, Path]:
    """The recipe and its images where every user can read them, and a folder to write to."""
    images = shutil.copytree(image_folder, open_folder / "images")
    for path in (images, *images.rglob("*")):
        path.chmod(0o755)
    from tests.cli.conftest import RECIPE

    recipe = open_folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("ROOT", str(images)))
    recipe.chmod(0o644)
    return recipe, open_folder


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def no_rests(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".partial"))]


SIZES = [0, 3000]
MANY_SIZES = [1, 10, 200, 50, 100, 500, 1000, 1500, 2000, 2500, 4000, 5000, 6000, 8000, 10000, 15000, 20000, 30000]


# Of a thread of TensorBoard's, which `pdd` leaves out: the error is raised, too.
IN_A_THREAD = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def stop_at_size(size: int, recipe: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run whose files may not grow beyond a size ends in one sentence, and continues without the limit."""
    with largest_file(size):
        try:
            said = sentence_of(fit_words(recipe, folder), capsys)
        except BaseException as error:
            if "DID NOT RAISE" in str(error):
                return
            raise
    assert "cannot read or write" in said and os.strerror(errno.EFBIG) in said and str(folder) in said, said
    assert no_rests(folder)
    main(fit_words(recipe, folder))
    assert DistilledDataset(folder / "distilled.safetensors").num_stages == 1


@IN_A_THREAD
@pytest.mark.parametrize("size", SIZES)
def test_file_too_large(size: int, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stop_at_size(size, recipe, tmp_path, capsys)


@IN_A_THREAD
@pytest.mark.slow
@pytest.mark.parametrize("size", MANY_SIZES)
def test_file_too_large_at_many_sizes(
    size: int, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at_size(size, recipe, tmp_path, capsys)


def full_disk_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Has the write of that number fail, and all that follow, as on a full disk; whether there were so many."""
    count, sync = iter(range(1, 10**6)), os.fsync

    def fail(descriptor: int) -> None:
        if (reached := next(count)) > number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)
        return reached

    monkeypatch.setattr(os, "fsync", fail)
    return lambda: next(count) > number + 1


def stop_at_write(number: int, recipe: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        full_disk_at(number, patch)
        said = sentence_of(fit_words(recipe, folder), capsys)
    assert os.strerror(errno.ENOSPC) in said and str(folder) in said, said
    assert no_rests(folder)
    main(fit_words(recipe, folder))
    assert DistilledDataset(folder / "distilled.safetensors").num_stages == 1


@pytest.mark.parametrize("number", [9])
def test_disk_full(number: int, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stop_at_write(number, recipe, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(0, 40, 2))
def test_disk_full_at_many_writes(
    number: int, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at_write(number, recipe, tmp_path, capsys)


@pytest.mark.parametrize("attack", ["LockFolder", "RemoveFolder"])
def test_a_folder_that_becomes_useless_during_the_run(
    attack: str, public: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = public
    root = folder / "run"
    more = ["--trainer.callbacks", f"tests.attacks.test_endings.{attack}", "--stages.iterations", 9]
    with without_privileges():
        said = sentence_of(fit_words(recipe, root, *more), capsys)
        assert "cannot read or write" in said and str(root) in said and "pdd resume" in said


OTHER_VERBS = ["fit", "evaluate", "report", "convert", "describe"]
PLACES = {
    "read-only folder": lambda folder: folder / "locked" / "run",
    "read-only run": lambda folder: folder / "locked",
    "a file": lambda folder: folder / "file",
    "below a file": lambda folder: folder / "file" / "run",
    "name too long": lambda folder: folder / ("x" * 300),
    "path too long": lambda folder: folder / "/".join(["y" * 200] * 25),
    "not ours": lambda folder: Path("/proc/run"),
    "a link to nowhere": lambda folder: folder / "broken",
    "a device": lambda folder: Path(os.devnull),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("verb", ["join", *(pytest.param(verb, marks=pytest.mark.slow) for verb in OTHER_VERBS)])
def test_places_that_cannot_be_written(
    verb: str, place: str, public: tuple[Path, Path], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = public
    (folder / "locked").mkdir(mode=0o555)
    (folder / "file").touch(mode=0o644)
    (folder / "broken").symlink_to(folder / "no" / "such")
    distilled = folder / "distilled.safetensors"
    shutil.copy(run / "distilled.safetensors", distilled)
    distilled.chmod(0o644)
    target = PLACES[place](folder)
    name = target if place in ("a file", "a device", "a link to nowhere") else target / "out.json"
    data = ("--data", "ImageFolder", "--data.root", folder / "images")
    lines = {
        "fit": fit_words(recipe, target),
        "evaluate": words("evaluate", distilled, *data, "--output", name),
        "describe": words("describe", distilled, *data, "--figure", name),
        "join": words("join", distilled, distilled, "--output", name),
        "report": words("report", folder, "--output", name),
        "convert": words("convert", distilled, name, "--format", "mtt", "--overwrite", "true"),
    }
    (folder / "summary.json").touch()
    if verb in ("evaluate", "join", "report", "describe") and place in ("a file", "a link to nowhere"):
        pytest.skip("such a file can be written")
    with without_privileges():
        said = sentence_of(lines[verb], capsys)
    assert "step/s" not in said
    assert (folder / "file").read_text() == ""


@pytest.mark.parametrize("verb", ["fit", "evaluate"])
def test_memory_that_is_lacking(
    verb: str,
    recipe: Path,
    run: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As torch says it, and as Python does."""
    data = ("--data", "ImageFolder", "--data.root", image_folder)
    line = fit_words(recipe, tmp_path) if verb == "fit" else words("evaluate", run / "distilled.safetensors", *data)
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")):

        def lack(*_: object, error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.functional, "cross_entropy", lack)
            said = sentence_of(line, capsys)
        assert "not enough memory" in said


@pytest.mark.parametrize("closed", ["out", "both"])
def test_a_closed_pipe(closed: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr(sys, "stdout", Closed())
    if closed == "both":
        monkeypatch.setattr(sys, "stderr", Closed())
    with pytest.raises(SystemExit, match="the output could not be written, since what read it has ended"):
        main(words("report", run, "--output", tmp_path / "report.html"))
    assert (tmp_path / "report.html").exists()


def test_what_was_not_foreseen(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its traceback is in a file, which is named."""

    def fail(*_: object, **__: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("pdd_lightning.stages.trajectory_matching.unroll", fail)
    with pytest.raises(SystemExit) as stop:
        main(fit_words(recipe, tmp_path))
    said = str(stop.value.code)
    (written,) = tmp_path.glob("traceback_*.txt")
    assert "unexpected KeyError" in said and str(written) in said and "continues the run" in said
    assert "surprise" in written.read_text() and len(said.splitlines()) == 1


def pdd(
    arguments: list[str], redirect: str = "", before: str = "", cwd: Path = PROJECT
) -> "subprocess.CompletedProcess[str]":
    """A process of the command line, started by a shell."""
    line = f"{before} {sys.executable} -m pdd_lightning {' '.join(arguments)} {redirect}"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(["bash", "-c", line], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    result = pdd(["recipes"], before=f"mkdir {gone}; cd {gone}; rmdir {gone};")
    assert result.returncode == 1
    assert (
        result.stderr == "pdd: error: the working directory no longer exists: change to another one and start again\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("redirect", ["| true", "> /dev/full", ">&-", "2>&- >&-"])
def test_output_that_cannot_be_written(redirect: str, run: Path, tmp_path: Path) -> None:
    result = pdd(["report", str(run), "--output", str(tmp_path / "report.html")], redirect)
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if "pdd: error" in line]
    assert len(lines) == (1 if redirect in ("| true", "> /dev/full") else 0)
    assert (tmp_path / "report.html").exists()


LIMITS = [300_000]
MANY_LIMITS = [
    50_000,
    100_000,
    600_000,
    1_000_000,
    1_500_000,
    2_000_000,
    2_500_000,
    3_000_000,
    3_200_000,
    3_400_000,
    3_600_000,
]


def start_in_memory(kilobytes: int, run: Path, folder: Path) -> None:
    result = pdd(["report", str(run), "--output", str(folder / "r.html")], before=f"ulimit -v {kilobytes};")
    if result.returncode:
        assert "Traceback" not in result.stderr, result.stderr
        assert [line for line in result.stderr.splitlines() if line.startswith("pdd: error: ")], result.stderr


@pytest.mark.parametrize("kilobytes", LIMITS)
def test_memory_that_lacks_for_the_imports(kilobytes: int, run: Path, tmp_path: Path) -> None:
    start_in_memory(kilobytes, run, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", MANY_LIMITS)
def test_memory_that_lacks_at_many_limits(kilobytes: int, run: Path, tmp_path: Path) -> None:
    start_in_memory(kilobytes, run, tmp_path)


def test_rests_of_killed_processes_are_removed(recipe: Path, tmp_path: Path) -> None:
    """But not those that a living process is writing."""
    (tmp_path / "experts").mkdir()
    dead = [tmp_path / ".config.yaml.0123.tmp", tmp_path / "experts" / ".manifest.json.4567.tmp"]
    for path in dead:
        path.touch()
    alive = tmp_path / ".summary.json.89ab.tmp"
    with alive.open("xb") as file:
        files._lock_temporary(file.fileno())
        main(fit_words(recipe, tmp_path))
        assert alive.exists() and not any(path.exists() for path in dead)


def test_checkpoints_do_not_pass_through_the_temporary_folder(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no" / "such"))
    main(fit_words(recipe, tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
