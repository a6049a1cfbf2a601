"""A damaged or hostile checkpoint is never used: the one before it is, or one sentence says why nothing is."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pdd_lightning import DistilledDataset
from pdd_lightning.callbacks import checkpoint as module
from pdd_lightning.callbacks.checkpoint import CheckpointFiles, has_checkpoint, read_checkpoint
from pdd_lightning.cli import main
from pdd_lightning.errors import ConfigError, DamagedFileError, PDDError
from tests.attacks.conftest import DELETE, Prepared, changed, places, refusal

NO_ADVICE = ("weights_only", "Traceback", "torch.load")


def same(first: Any, second: Any) -> bool:
    """Whether nested content is equal, tensors bit for bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(one, second[name]) for name, one in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.fixture
def folder(prepared: Prepared, tmp_path: Path) -> Path:
    """A run folder of its own, finished, as far as checkpoints are concerned."""
    shutil.copytree(prepared.run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def content_of(path: Path) -> dict[str, Any]:
    return {name: value for name, value in read_checkpoint(path).items() if name != "path"}


def signed(path: Path, content: Any) -> None:
    """Writes a checkpoint with a checksum that is right."""
    CheckpointFiles().save_checkpoint(content, path)


def hostile_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Hostile(path.parent / "it_ran")))


def hostile_archive(path: Path) -> None:
    torch.save({"ProgressiveDataModule": Hostile(path.parent / "it_ran")}, path)


def hostile_and_signed(path: Path) -> None:
    signed(path, {"ProgressiveDataModule": Hostile(path.parent / "it_ran")})


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(path.with_suffix(".new"), "w") as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part), zipfile.ZIP_DEFLATED)
    path.with_suffix(".new").replace(path)


def flipped(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(share * (len(data) - 1))] ^= 8
        path.write_bytes(data)

    return damage


def cut(share: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, int(share * path.stat().st_size))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b""),
    "one byte": lambda path: path.write_bytes(b"P"),
    "text": lambda path: path.write_text("no checkpoint"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "the end is zero": lambda path: path.write_bytes(path.read_bytes()[:-300] + bytes(300)),
    "a block is zero": lambda path: path.write_bytes(path.read_bytes()[:4096] + bytes(512) + path.read_bytes()[4608:]),
    "appended to": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "twice": lambda path: path.write_bytes(path.read_bytes() * 2),
    "compressed": compressed,
    **{f"cut at {share}": cut(share) for share in (0.01, 0.3, 0.5, 0.9, 0.99, 0.999)},
    **{f"flipped at {number}/20": flipped(number / 20) for number in range(21)},
}
HOSTILE = {"pickle": hostile_pickle, "archive": hostile_archive, "signed archive": hostile_and_signed}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_one_before_is_taken_where_the_last_is_damaged(
    damage: str, last: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, former = content_of(last), content_of(last.with_name("previous.ckpt"))
    DAMAGE[damage](last)
    read = read_checkpoint(last)
    path = read.pop("path")
    if path == str(last):  # no more than the mark of the checksum was hit: the archive has checksums of its own
        assert same(read, whole)
    else:
        assert same(read, former) and not same(read, whole)
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "last.ckpt is damaged" in line and "previous.ckpt, is taken" in line


@pytest.mark.parametrize("damage", ["empty", "flipped at 10/20"])
def test_both_damaged_is_one_sentence(damage: str, prepared: Prepared, folder: Path, last: Path) -> None:
    for path in (last, last.with_name("previous.ckpt")):
        DAMAGE[damage](path)
    for words in (["fit", "--ckpt_path", "last"], ["test", "--ckpt_path", last]):
        message = refusal(*words, "--config", prepared.recipe, "--trainer.default_root_dir", folder)
        assert "last.ckpt is damaged" in message and "previous.ckpt, is damaged, too" in message
        assert not [word for word in NO_ADVICE if word in message]


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("verb", ["fit", "test"])
def test_code_in_a_checkpoint_does_not_run(kind: str, verb: str, prepared: Prepared, folder: Path, last: Path) -> None:
    last.with_name("previous.ckpt").unlink()
    HOSTILE[kind](last)
    words = ["--config", prepared.recipe, "--trainer.default_root_dir", folder, "--ckpt_path"]
    message = refusal(verb, *words, "last" if verb == "fit" else last)
    assert "last.ckpt is" in message and not [word for word in NO_ADVICE if word in message]
    assert not (last.parent / "it_ran").exists()


@pytest.mark.parametrize("content", [[], {}, {"state_dict": {}}, torch.zeros(3), None, "text", 3])
def test_files_of_something_else(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(DamagedFileError, match="does not end with the checksum"):
        read_checkpoint(tmp_path / "other.ckpt")
    signed(tmp_path / "other.ckpt", content)
    with pytest.raises(ConfigError, match="is not a checkpoint of a distillation"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "last.ckpt")
    os.mkfifo(tmp_path / "pipe.ckpt")
    (tmp_path / "folder.ckpt").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(PDDError, match="not a file"):
            read_checkpoint(tmp_path / f"{name}.ckpt")


NAN, WRONG = float("nan"), torch.zeros(2, 2)
IN = "callbacks.StageAdvance."
ALTERED: list[tuple[str, Any, str]] = [
    (f"{IN}iteration", -1, "iteration"),
    (f"{IN}iteration", 10**9, "iteration"),
    (f"{IN}iteration", 1.5, "iteration"),
    (f"{IN}iteration", None, "iteration"),
    (f"{IN}iteration", DELETE, "iteration"),
    (f"{IN}union", DELETE, "union"),
    (f"{IN}union", None, "union"),
    (f"{IN}union.images", torch.full((6, 3, 8, 8), NAN), "union.images"),
    (f"{IN}union.images", torch.zeros(6, 3, 8, 8, dtype=torch.float64), "union.images"),
    (f"{IN}union.images", torch.zeros(5, 3, 8, 8), "do not fit"),
    (f"{IN}union.images", torch.zeros(1).expand(6, 3, 10**6, 10**6), "union.images"),
    (f"{IN}union.labels", torch.tensor([-1] * 6), "labels"),
    (f"{IN}union.labels", torch.tensor([10**9] * 6), "labels"),
    (f"{IN}union.stages", torch.tensor([1, 1, 1, 3, 3, 3]), "stages"),
    (f"{IN}union.learning_rates", [1e300, 0.1], "learning_rates"),
    (f"{IN}union.learning_rates", [0.1], "stages"),
    (f"{IN}union.learning_rates", [NAN, 0.1], "learning_rates"),
    (f"{IN}union.decode_factor", 10**6, "decode_factor"),
    (f"{IN}settings", None, "settings"),
    (f"{IN}settings", [1], "settings"),
    (f"{IN}settings", {"stages": NAN}, "settings"),
    (f"{IN}settings.stages", 3, "iteration"),
    (f"{IN}settings.stages.iterations", "many", "iteration"),
    (f"{IN}history", [], "history"),
    (f"{IN}history", None, "history"),
    (f"{IN}history.0.stage", 2, "history"),
    (f"{IN}history.0.val_accuracy", 7.48, "history.0.val_accuracy"),
    (f"{IN}history.1.seconds", {"distil": -1.0}, "history.1.seconds"),
    (f"{IN}meter", None, "meter"),
    (f"{IN}meter.first_count", -1, "meter.first_count"),
    (f"{IN}meter.seconds", NAN, "meter.seconds"),
    (f"{IN}scoring_seconds", -1.0, "scoring_seconds"),
    (f"{IN}scores", {"indices": WRONG}, "scores"),
    (f"{IN}scores", {"evil": "text"}, "scores"),
    ("callbacks", None, "callbacks"),
    ("callbacks", {}, "StageAdvance"),
    ("callbacks", DELETE, "callbacks"),
    ("epoch", -1, "epoch"),
    ("epoch", None, "epoch"),
    ("global_step", 10**30, "global_step"),
    ("global_step", "3", "global_step"),
    ("pytorch-lightning_version", "0.0.1", "pytorch-lightning_version"),
    ("pytorch-lightning_version", None, "pytorch-lightning_version"),
    ("pytorch-lightning_version", "2.6.6\n evil", "pytorch-lightning_version"),
    ("loops", None, "loops"),
    ("loops", {"fit_loop": torch.zeros(1)}, "loops"),
    ("loops", DELETE, "loops"),
    ("state_dict", None, "state_dict"),
    ("state_dict.images", torch.full((3, 3, 8, 8), NAN), "state_dict"),
    ("state_dict.images", torch.zeros(1).expand(3, 10**9), "state_dict"),
    ("state_dict.images", NAN, "state_dict"),
    ("optimizer_states", [], "optimizer_states"),
    ("optimizer_states", None, "optimizer_states"),
    ("optimizer_states.0.param_groups", [], "param_groups"),
    ("optimizer_states.0.param_groups.0.lr", -1.0, "param_groups.0.lr"),
    ("optimizer_states.0.param_groups.0.lr", NAN, "param_groups.0.lr"),
    ("optimizer_states.0.param_groups.0.lr", "high", "param_groups.0.lr"),
    ("optimizer_states.0.param_groups.0.params", [-1], "params"),
    ("optimizer_states.0.state", {0: {"momentum_buffer": torch.full((3, 3, 8, 8), NAN)}}, "state"),
    ("optimizer_states.0.state", [1], "state"),
    ("optimizer_states.0.state", {0: {"momentum_buffer": NAN}}, "state"),
    ("ProgressiveDataModule", None, "ProgressiveDataModule"),
    ("ProgressiveDataModule.seed", -1, "ProgressiveDataModule.seed"),
    ("ProgressiveDataModule.seed", None, "ProgressiveDataModule.seed"),
    ("ProgressiveDataModule.fingerprint", 3, "ProgressiveDataModule.fingerprint"),
    ("ProgressiveDataModule.fingerprint", DELETE, "ProgressiveDataModule.fingerprint"),
    ("ProgressiveDataModule.dataset", "a\0b", "ProgressiveDataModule.dataset"),
]


@pytest.fixture(scope="module")
def whole(prepared: Prepared) -> dict[str, Any]:
    return content_of(prepared.run / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(("path", "value", "expected"), ALTERED, ids=lambda value: str(value)[:40])
def test_what_no_run_writes_is_refused(
    path: str, value: Any, expected: str, whole: dict[str, Any], tmp_path: Path
) -> None:
    signed(tmp_path / "altered.ckpt", changed(whole, path, value))
    with pytest.raises(PDDError) as caught:
        read_checkpoint(tmp_path / "altered.ckpt")
    message = str(caught.value)
    assert expected in message and "\n" not in message and len(message) < 700


def fit(prepared: Prepared, folder: Path, *words: object) -> None:
    own = ["--config", prepared.recipe, "--trainer.default_root_dir", folder, "--trainer.logger", "false"]
    main([str(word) for word in ["fit", *own, "--stages.iterations", 4, "--checkpoint_every", 1, *words]])


STATES: dict[str, Callable[[Path], None]] = {
    "the last is damaged": lambda last: last.write_bytes(b""),
    "killed before the last took its name": lambda last: last.unlink(),
    "killed while the next was written": lambda last: last.with_name("last.partial").write_bytes(b"half"),
    "killed while the former was named": lambda last: os.link(last, last.with_name("previous.partial")),
    "killed after the former was named": lambda last: shutil.copy(last, last.with_name("previous.ckpt")),
    "the former is damaged": lambda last: last.with_name("previous.ckpt").write_bytes(b"P"),
    "there is no former": lambda last: last.with_name("previous.ckpt").unlink(),
}


@pytest.mark.parametrize("state", STATES)
def test_a_run_continues_bit_for_bit_from_any_state(
    state: str, prepared: Prepared, tmp_path: Path, stopped: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    STATES[state](last)
    assert has_checkpoint(last)
    fit(prepared, tmp_path / "run", "--ckpt_path", "last")
    straight, continued = (DistilledDataset(run / "distilled.safetensors") for run in (prepared.run, tmp_path / "run"))
    assert torch.equal(straight.images, continued.images)
    assert straight.learning_rates == continued.learning_rates
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "previous.ckpt"]
    for path in last.parent.iterdir():
        assert read_checkpoint(path)["path"] == str(path)


@pytest.fixture(scope="module")
def stopped(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, left in its second stage."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    fit(prepared, folder, "--trainer.max_steps", 6)
    return folder


def test_a_damaged_last_one_does_not_take_the_place_of_the_former(
    prepared: Prepared, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(b"damaged")
    former, seen = last.with_name("previous.ckpt").read_bytes(), []

    def publish(partial: Path, path: Path) -> None:
        seen.append(last.with_name("previous.ckpt").read_bytes() == former)
        partial.replace(path)

    monkeypatch.setattr(module, "publish", publish)
    fit(prepared, tmp_path / "run", "--ckpt_path", "last")
    assert seen[0] and not seen[-1]


def test_what_cannot_be_read_back_does_not_replace_anything(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Path.replace

    def lose(self: Path, target: Path) -> Path:
        os.truncate(self, 1000)  # the disk fails
        return publish(self, target)

    monkeypatch.setattr(Path, "replace", lose)
    with pytest.raises(DamagedFileError, match="check the disk"):
        CheckpointFiles().save_checkpoint(whole, tmp_path / "last.partial")


@pytest.mark.slow
def test_flips_anywhere_change_nothing(last: Path) -> None:
    """Of single-bit flips at random places none leads to another position than one of the two that were saved."""
    data, known = last.read_bytes(), [content_of(last), content_of(last.with_name("previous.ckpt"))]
    generator = random.Random(0)
    for _ in range(400):
        flipped = bytearray(data)
        flipped[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        last.write_bytes(flipped)
        read = content_of(last)
        assert any(same(read, one) for one in known)


@pytest.mark.slow
def test_random_alterations_are_refused_or_harmless(whole: dict[str, Any], tmp_path: Path) -> None:
    values = [None, -1, 2**63, NAN, float("inf"), "x" * 400, "\0", [], {}, [[]], WRONG, True, 1e300, DELETE]
    generator, found = random.Random(1), places(whole)
    for _ in range(400):
        signed(tmp_path / "altered.ckpt", changed(whole, generator.choice(found), generator.choice(values)))
        try:
            read_checkpoint(tmp_path / "altered.ckpt")
        except PDDError as error:
            assert "\n" not in str(error)
