"""Files that somebody else wrote, or that a power cut left: each is refused in one sentence, and takes no memory.

A test goes through a table of cases, and names those that fail.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import random
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from pdd_lightning.augment import DSA
from pdd_lightning.cli import main
from pdd_lightning.data import ForgettingScores
from pdd_lightning.data.distilled import DistilledDataset, save_distilled
from pdd_lightning.data.formats import ImportOptions, open_distilled, target_format
from pdd_lightning.data.pixels import Whitened
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError, DataError, PDDError
from pdd_lightning.evaluation import EvaluationSettings, Subject, evaluate
from pdd_lightning.experts import TrajectoryStore
from pdd_lightning.networks import ConvNet
from pdd_lightning.results.result_store import ResultStore
from pdd_lightning.results.schema import RunSummary, StudyResult
from pdd_lightning.stored import MAX_NAME_BYTES, load_tensors, load_yaml, read_bytes, read_stored
from pdd_lightning.studies.kinds import read_study
from tests.attacks.conftest import DELETE, Prepared, changed, forged, places, refusal
from tests.tiny import Blobs

NAN, INF = math.nan, math.inf
DEEP = "[" * 100_000 + "]" * 100_000
Case = tuple[object, Callable[[], Any], tuple[str, ...]]
"""A name, a call that must be refused, and what its sentence must contain."""


def all_refused(cases: Iterable[Case]) -> None:
    """Each call is refused in one line of bounded length that says what was expected."""
    failures = []
    for name, call, expected in cases:
        try:
            with pytest.raises(PDDError) as caught:
                call()
            message = str(caught.value)
            assert "\n" not in message and len(message) < 900 and message.isprintable(), message
            assert all(part in message for part in expected), f"{expected}: {message}"
        except (Exception, pytest.fail.Exception) as error:
            failures.append(f"{name}: {type(error).__name__}: {error}"[:400])
    assert not failures, "\n".join(failures)


def altered_json(
    path: Path, content: Any, table: dict[str, list[Any]], read: Callable[[], Any], *expected: str, prefix: str = ""
) -> Iterator[Case]:
    """A JSON file with one entry replaced by each value of the table in turn; without a change it is read."""
    path.write_text(json.dumps(content))
    read()
    for entry, values in table.items():
        for value in values:
            path.write_text(json.dumps(changed(content, prefix + entry, value)))
            yield f"{entry} {str(value)[:40]}", read, expected or (f"{path.name} is damaged", entry.split(".")[0])


# ---- distilled sets ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(prepared: Prepared) -> Path:
    return prepared.run / "distilled.safetensors"


@pytest.fixture(scope="module")
def whitened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = Blobs(normalization="zca")
    data.setup()
    assert isinstance(data.pixels, Whitened)
    images = SyntheticSet.empty((3, 8, 8)).append(torch.randn(3, 3, 8, 8), torch.arange(3), 0.1)
    return save_distilled(tmp_path_factory.mktemp("zca") / "s.safetensors", images, data.pixels, data.class_names, {})


def put(name: str, value: Any) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    """Replaces a tensor, by a function of what it was or a value, or else an entry of the header."""

    def alter(tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        place: dict[str, Any] = tensors if name in tensors else header
        if value is DELETE:
            del place[name]
        else:
            place[name] = value(place[name]) if callable(value) else value

    return alter


def at(index: Any, value: float) -> Callable[[Tensor], Tensor]:
    """Replaces some numbers of a tensor."""

    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[index] = value
        return tensor

    return change


def cut(*index: Any) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor[index]


ONE, ALL, LESS, NONE = None, slice(None), slice(1, None), slice(0)
EVEN = torch.full((6, 3), 1 / 3)
NO_NETWORKS = [
    None, [], 3, True, '"ConvNet"', {}, {"class_path": None}, {"class_path": 3}, {"class_path": ["os"]},
    {"class_path": "a\0b"}, {"class_path": "a" * 300}, {"class_path": "a.B", "init_args": None}, DEEP,
    {"class_path": "a.B", "init_args": []}, {"class_path": "a.B", "init_args": "width"}, {"init_args": {}},
    {"class_path": "a.B", "init_args": {"width": NAN}}, '{"class_path": "a.B", "init_args": {"width": 1e999}}',
    '{"class_path": "a.B", "init_args": {"x": ' + DEEP,
    '{"class_path": "a.B", "init_args": {"x": ' + "[" * 400 + "]" * 400 + "}}",
    '{"class_path": "a.B", "init_args": {"x": ' + "9" * 5000 + "}}",
]  # fmt: skip
NO_SETTINGS = [
    None, [], 3, '"text"', {"augment": 3}, {"augment": None}, {"augment": ["flip"]}, {"align_corners": "yes"},
    {"align_corners": 1}, {"augment_together": None}, {"lr": NAN}, {"lr": -INF}, {"augment": "x" * 300}, DEEP,
]  # fmt: skip
NO_DATASETS = [
    None, [], 3, '"digits"', {"name": 3}, {"fingerprint": []}, {"name": "a\0"}, {"name": "x" * 300},
    {"fingerprint": 1.5},
]  # fmt: skip
SETS: list[tuple[str, str, list[Any]]] = [  # an entry, what the sentence says of it, and what it is replaced by
    ("images", "images", [at((0, 0, 0, 0), NAN), at((-1, -1, -1, -1), INF), at((1, 1, 1, 1), -INF), DELETE]),
    ("images", "images: expected [N, C, H, W] float32", [Tensor.double, Tensor.half, Tensor.long, cut(0), cut(ONE)]),
    ("images", "empty", [cut(ALL, NONE), cut(..., NONE)]),
    ("images", "do not fit", [cut(LESS), cut(NONE)]),
    ("images", "pixel space", [cut(ALL, slice(2))]),
    ("labels", "labels", [at(0, -1), at(0, 2**62), DELETE, EVEN * NAN, EVEN * INF, torch.zeros(6, 0)]),
    ("labels", "labels are of 4 classes", [at(0, 3), torch.full((6, 4), 0.25)]),
    ("labels", "labels are of 2 classes", [torch.full((6, 2), 0.5)]),
    ("labels", "labels: expected", [Tensor.float, Tensor.int, Tensor.bool, cut(ONE), EVEN.double()]),
    ("labels", "do not fit", [lambda labels: torch.cat([labels, labels[:1]])]),
    ("labels", "not probabilities", [EVEN * 2, EVEN * 0, torch.tensor([[1.5, -0.5, 0.0]] * 6)]),
    ("stages", "stages must be 1 to 2", [torch.tensor([1, 1, 1, 3, 3, 3]), lambda stages: stages - 1]),
    ("stages", "stages must be 1 to 2", [lambda stages: stages + 1, at(-1, 3), at(-1, 10**18)]),
    ("stages", "stages: expected", [Tensor.double, cut(ALL, ONE)]),
    ("stages", "stages", [DELETE]),
    ("stages", "do not fit", [cut(LESS)]),
    ("learning_rates", "learning_rates", [at(0, 1e300), at(0, 0), at(1, -0.1), at(1, INF), DELETE]),
    ("learning_rates", "learning_rates: expected", [cut(ONE), cut(0), Tensor.float, Tensor.long]),
    ("learning_rates", "learning_rates", [lambda rates: rates[:1].repeat(10**6)]),
    ("learning_rates", "stages must be 1 to 4", [lambda rates: rates.repeat(2)]),
    ("learning_rates", "stages must be 1 to 0", [cut(NONE)]),
    (
        "pixels.std",
        "std",
        [at(0, 0), at(0, -1), at(0, NAN), at(0, INF), cut(slice(2)), cut(ONE), Tensor.double, DELETE],
    ),
    ("pixels.mean", "mean", [at(0, NAN), at(0, INF), cut(slice(1)), DELETE]),
    ("pixel_space", "matrix", ["zca"]),
    ("pixel_space", "unknown pixel space", ["polar"]),
    ("pixel_space", "pixel space", [DELETE]),
    ("decode_factor", "decode_factor", ["0", "99", "-1", "1000000", "two", "", "1.5", "\u00b2", DELETE]),
    ("class_names", "class_names", [None, 3, '"abc"', {"a": 1, "b": 2, "c": 3}, DEEP, [], '["a", "b"', DELETE]),
    ("class_names", "class_names", [[str(number) for number in range(200_000)]]),
    ("class_names", "class_names.0", [[0, 1, 2]]),
    ("class_names", "class_names.1", [["a", other, "c"] for other in (None, ["b"], "b\0", "\x1b[2J", "b\nb")]),
    ("class_names", "class_names.1", [["a", "b" * (MAX_NAME_BYTES + 1), "c"], ["a", "\u00e4" * 128, "c"]]),
    ("class_names", "class_names.1", ['["a", "\\ud800", "c"]']),
    ("class_names", "labels are of 3 classes", [["a", "b"]]),
    ("network", "network", NO_NETWORKS),
    ("settings", "settings", NO_SETTINGS),
    ("dataset", "dataset", NO_DATASETS),
    ("joined", "joined", [None, 3, '"text"', {}, [3], [None], [["x"]], ["x" * 300]]),
    ("method", "method", ["DM\n\x1b[31m", "M" * 10**6]),
    ("more", "more", ["{", DEEP, "NaN", "[1e999]", '"\\udc00"']),
    ("format_version", "upgrade", ["2", "2" * 10**5, DELETE]),
]
ZCA: list[tuple[str, str, list[Any]]] = [
    ("pixels.matrix", "matrix", [cut(ALL, LESS), cut(LESS, LESS), cut(0), at((3, 3), NAN), at((3, 3), INF)]),
    ("pixels.matrix", "matrix", [Tensor.double, DELETE]),
    ("pixels.matrix", "positive definite", [lambda matrix: -matrix, lambda matrix: matrix * 0]),
    ("pixels.matrix", "symmetric", [at((0, 1), 0.9)]),
    ("pixels.mean", "matrix", [cut(LESS)]),
    ("pixels.mean", "mean", [at(0, NAN), DELETE]),
    ("images", "pixel space", [cut(..., LESS, LESS)]),
]


@pytest.mark.parametrize("kind", ["plain", "whitened"])
def test_forged_sets(kind: str, plain: Path, whitened: Path, tmp_path: Path) -> None:
    source, table = (plain, SETS) if kind == "plain" else (whitened, ZCA)
    path = tmp_path / "set.safetensors"
    copy = DistilledDataset(forged(source, path, lambda *_: None))  # it is not the forging that is refused
    assert torch.equal(copy.images, DistilledDataset(source).images)

    def cases() -> Iterator[Case]:
        for name, expected, values in table:
            for number, value in enumerate(values):
                forged(source, path, put(name, value))
                yield f"{name} {number} ({expected})", lambda: DistilledDataset(path), (expected, "set.safetensors")

    all_refused(cases())


def with_header(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


def with_tensor(dtype: str, shape: list[int]) -> bytes:
    return with_header(
        json.dumps({"images": {"dtype": dtype, "shape": shape, "data_offsets": [0, 4]}}).encode()
    ) + bytes(4)


RAW: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "one byte": lambda _: b"\0",
    "text": lambda _: b"no set of images",
    "zeros": lambda data: bytes(len(data)),
    "a header of 2^63 bytes": lambda data: struct.pack("<Q", 2**63) + data[8:],
    "a header of 2^40 bytes": lambda data: struct.pack("<Q", 2**40) + data[8:],
    "no header": lambda _: with_header(b"{}"),
    "a header that is a list": lambda _: with_header(b"[]"),
    "a header that is no JSON": lambda _: with_header(b"{'a'}"),
    "a header 100,000 deep": lambda _: with_header(b'{"a":' * 100_000),
    "not UTF-8": lambda _: with_header(b'{"\xff": 1}'),
    "a tensor of 10^13 numbers": lambda _: with_tensor("F32", [10**13]),
    "a tensor that overflows": lambda _: with_tensor("F32", [2**33, 2**33]),
    "an unknown type of numbers": lambda _: with_tensor("X9", [1]),
    "cut in the header": lambda data: data[:100],
    "cut in the middle": lambda data: data[: len(data) // 2],
    "without the last byte": lambda data: data[:-1],
    "a byte more": lambda data: data + b"\0",
    "twice": lambda data: data * 2,
    "a flipped bit": lambda data: data[:-50] + bytes([data[-50] ^ 1]) + data[-49:],
}


def test_files_that_are_no_set(plain: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "set.safetensors", plain.read_bytes()

    def cases() -> Iterator[Case]:
        for kind, alter in RAW.items():
            path.write_bytes(alter(data))
            yield kind, lambda: DistilledDataset(path), ("set.safetensors",)

    all_refused(cases())


READERS: dict[str, Callable[[Path], Any]] = {
    "set": DistilledDataset,
    "summary": partial(read_stored, RunSummary),
    "any set": open_distilled,
    "tensors": load_tensors,
    "scores": ForgettingScores.load,
    "study": read_study,
}


def test_what_is_no_file(tmp_path: Path) -> None:
    for kind in ("pipe", "folder", "device", "circle", "missing"):
        (tmp_path / kind).mkdir()
    paths = {kind.name: kind / "file.safetensors" for kind in tmp_path.iterdir()}
    os.mkfifo(paths["pipe"])
    paths["folder"].mkdir()
    paths["device"].symlink_to("/dev/zero")
    paths["circle"].symlink_to(paths["circle"])
    all_refused(
        (f"{name} {kind}", partial(read, path), ("file.safetensors",))
        for name, read in READERS.items()
        for kind, path in paths.items()
    )


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(2**33)  # takes no room on the disk
    tracemalloc.start()
    all_refused([("large", lambda: read_bytes(tmp_path / "large.json", 10**6), ("has more than 1000000 bytes",))])
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


# ---- JSON ----------------------------------------------------------------------------------------------------------

BROKEN = {
    "empty": b"",
    "cut": b'{"stages": [{"st',
    "zeros": bytes(100),
    "not UTF-8": b'{"seed": "\xff"}',
    "UTF-16": '{"seed": 1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"seed": 1}',
    "a list": b"[]",
    "null": b"null",
    "a number": b"3",
    "NaN": b"NaN",
    "a text": b'"text"',
    "two documents": b"{}{}",
    "100,000 deep": DEEP.encode(),
    "500 deep": b'{"settings": {"a": ' + b"[" * 500 + b"]" * 500 + b"}, " + b'"seed": -1}',
    "an integer of 5,000 digits": b'{"seed": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("model", [RunSummary, StudyResult])
def test_json_that_is_none_or_of_something_else(model: type[Any], tmp_path: Path) -> None:
    ignored = () if model is RunSummary else ("500 deep", "an integer of 5,000 digits")  # in an entry it does not know

    def cases() -> Iterator[Case]:
        for kind, data in BROKEN.items():
            (tmp_path / "file.json").write_bytes(data)
            if kind not in ignored:
                yield kind, lambda: read_stored(model, tmp_path / "file.json"), ("file.json is damaged",)

    all_refused(cases())


STAGE, ROW = "stages.0.", "evaluation.0."
SUMMARY: dict[str, list[Any]] = {
    "seed": [-1, 2**64, 1.5, "3", True, [], NAN],
    "dataset": [None, [], "x", {"name": 3}, {"name": "a\0"}, {"x" * 300: "a"}],
    "settings": [None, [], "x", {"a": NAN}, {"a": INF}, {"a": "\ud800"}],
    "package_version": [3, [], "x" * 300, "a\nb"],
    "stages": [None, {}, 3, [None], [3], ["x"], [[]]],
    f"{STAGE}stage": [0, -1, 2, 1.5, True, None, "1", 10**9, DELETE],
    f"{STAGE}images": [-1, None, 1.5, 10**30, DELETE],
    f"{STAGE}learned_lr": [0, -1.0, 1e300, NAN, INF, "x"],
    f"{STAGE}lr_img": [0, -1.0, NAN, INF, None, DELETE],
    f"{STAGE}first_loss": [NAN, INF, None, "x", DELETE],
    f"{STAGE}last_loss": [NAN, -INF, [], True],
    f"{STAGE}val_accuracy": [7.48, -0.1, NAN, INF, None, "high", DELETE],
    f"{STAGE}val_std": [-0.1, 748.0, NAN],
    f"{STAGE}val_networks": [-1, 1.5, None],
    f"{STAGE}seconds": [None, [], {"distil": -1.0}, {"distil": NAN}, {"distil": "x"}, {"a\0": 1.0}],
    f"{STAGE}peak_memory_mb": [-1.0, NAN, None],
    f"{STAGE}real_images": [-1, 1.5, "x"],
    "evaluation": [None, {}, [None], ["x"], [[]]],
    f"{ROW}row": [None, 3, "a\0", "x" * 300, DELETE],
    f"{ROW}part": [None, 3, [], DELETE],
    f"{ROW}protocol": [None, 3, {}],
    f"{ROW}mean": [7.48, -0.1, NAN, INF, None, "x", True, DELETE],
    f"{ROW}std": [7.48, -0.1, NAN, "x"],
    f"{ROW}n": [-1, 1.5, 10**13, 7],
    f"{ROW}accuracies": [None, [7.48], [-1.0], [NAN], ["x"], {}, [0.5] * 9],
    f"{ROW}per_class": [None, [], {"a": 7.48}, {"a": NAN}, {"a": None}, {"a\0": 0.5}, {"x" * 300: 0.5}],
    f"{ROW}seconds": [-1.0, NAN, "x"],
    f"{ROW}images": [-1, 1.5, "x"],
    f"{ROW}stage": [-1, "x"],
    f"{ROW}seconds_std": ["x", [], {}],
    f"{ROW}novelty": [NAN, INF, "\ud800", [INF]],
}


def test_figures_that_no_run_has(prepared: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    content = json.loads((prepared.run / "summary.json").read_text())
    all_refused(altered_json(path, content, SUMMARY, lambda: read_stored(RunSummary, path)))


STUDY = {
    "study": "AccuracyStudy",
    "title": "t",
    "notes": ["n"],
    "rows": [{"row": "distilled", "mean": 0.5, "std": 0.1, "after_1": 0.5, "x": 1.5, "x_std": 0.1, "forgetting": -0.1}],
    "steps": [{"name": "a", "command": "pdd fit", "seconds": 1.0}],
}
STUDIES: dict[str, list[Any]] = {
    "title": [None, 3, []],
    "study": [3, "x" * 300, "a\0"],
    "notes": [None, "text", [3], [None]],
    "rows": [None, {}, "x", [None], [3], [[]]],
    "rows.0.mean": [7.48, "high", [], True, INF],
    "rows.0.std": [7.48, "x", {}],
    "rows.0.after_1": [748, "x", [0.5]],
    "rows.0.forgetting": [-7.0, "x"],
    "rows.0.x_std": ["x", [], {}],
    "rows.0.seed_std": ["x", 2.0],
    "rows.0.val_accuracy": ["x", 99.0],
    "rows.0.row": ["\ud800"],
    "steps": [None, {}, [None], [{}], [{"command": 3}]],
    "steps.0.seconds": [-1.0, "x"],
    "steps.0.command": [None, 3, DELETE],
    "package_version": [3, "a\nb"],
}


def test_tables_that_no_study_writes(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    all_refused(altered_json(path, STUDY, STUDIES, lambda: read_stored(StudyResult, path)))
    path.write_text(json.dumps(STUDY))
    assert read_stored(StudyResult, path).rows == STUDY["rows"]


# ---- experts -------------------------------------------------------------------------------------------------------


@pytest.fixture
def experts(prepared: Prepared, tmp_path: Path) -> Path:
    shutil.copytree(prepared.run / "experts" / "theta_0", tmp_path / "experts")
    return tmp_path / "experts"


MANIFESTS: dict[str, list[Any]] = {
    "settings": [None, [], "x", {}, DELETE],
    "settings.number": [-1, 0, 1, 10**9, 1.5, "2", True, None, [], DELETE],
    "settings.data": [NAN, "\ud800"],
    "experts": [None, {}, 3, [None], [3], [{}], DELETE],
}
RECORDS: dict[str, list[Any]] = {
    "sha256": [None, 3, "x", "0" * 63, "../" * 21, DELETE],
    "losses": [None, 3, ["x"], [None], DELETE],
    "accuracies": [None, [7.48], [NAN], [-1.0], ["x"]],
    "start_accuracy": [7.48, -1.0, NAN, None, "x", DELETE],
    "end_accuracy": [7.48, NAN, True, DELETE],
    "start_seconds": [-1.0, NAN, "x"],
    "record_seconds": [-1.0, INF, None, DELETE],
}


def test_manifests_and_records_that_no_recorder_writes(experts: Path) -> None:
    path, read = experts / "manifest.json", lambda: TrajectoryStore.existing(experts)
    manifest = json.loads(path.read_text())
    all_refused(altered_json(path, manifest, MANIFESTS, read))
    all_refused(altered_json(path, manifest, RECORDS, read, "manifest.json is damaged", prefix="experts.0."))
    path.write_text(json.dumps(manifest))
    all_refused(altered_json(experts / "expert_000.json", manifest["experts"][0], RECORDS, read))


@pytest.mark.parametrize("kind", ["empty", "cut in the middle", "a header of 2^40 bytes", "text", "a flipped bit"])
def test_damaged_experts_are_not_used(kind: str, experts: Path, prepared: Prepared) -> None:
    file = experts / "expert_000.safetensors"
    file.write_bytes(RAW[kind](file.read_bytes()))
    store = TrajectoryStore.existing(experts)
    assert store.damaged() == [0]
    if kind != "a flipped bit":
        reads = [lambda: store.segment(0, 0, 1), lambda: store.forgetting(0)]
        all_refused((kind, read, ("expert_000.safetensors is damaged",)) for read in reads)
    words = ["evaluate", prepared.run / "distilled.safetensors", *prepared.words, "--experts", experts]
    assert "expert_000.safetensors is damaged" in refusal(*words)


def test_experts_of_another_form(experts: Path) -> None:
    def cases() -> Iterator[Case]:
        for shape, dtype in (((3,), None), ((2, 3, 4), None), ((1, 9), None), ((3, 9), torch.float64)):
            save_file({"snapshots": torch.zeros(shape, dtype=dtype)}, experts / "expert_000.safetensors")
            yield shape, lambda: TrajectoryStore.existing(experts).segment(0, 0, 1), ("expert_000.safetensors",)
        save_file({"other": torch.zeros(3, 9)}, experts / "expert_000.safetensors")
        yield "other", lambda: TrajectoryStore.existing(experts).segment(0, 0, 1), ("expert_000.safetensors",)

    all_refused(cases())


# ---- results of networks -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, staged_blobs: SyntheticSet, blobs: Blobs) -> Any:
    """Evaluates with the results in a file, of which one is there."""
    path = tmp_path_factory.mktemp("results") / "evaluation.jsonl"
    settings = EvaluationSettings(num_networks=1, epochs=1, baselines=())

    def run(text: str | bytes | None) -> list[dict[str, Any]]:
        if text is not None:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        network = partial(ConvNet, depth=1, width=2)
        subject = Subject(staged_blobs, blobs, blobs.pixels, network, DSA("none"), store=ResultStore(path))
        return evaluate(subject, settings, progress=False)

    run(None)
    return run, json.loads(path.read_text())


RESULTS: dict[str, list[Any]] = {
    "value": [3, [], "x", {}, True],
    "value.scores": [None, [], {}, [None], "x"],
    "value.scores.0.accuracy": [7.48, -0.1, NAN, INF, None, "x", True, DELETE],
    "value.scores.0.per_class": [None, [], [7.48] * 3, [NAN] * 3, [0.5] * 4, ["x"] * 3, DELETE],
    "value.seconds": [None, [], [-1.0, 1.0], [NAN, 1.0], [1.0], ["x", "y"], DELETE],
    "value.number": [1, -1, 0.5, None, "0", DELETE],
    "value.about": [None, {}, [], DELETE],
    "value.about.row": ["full real", 3],
    "value.about.phases": [[], None],
    "value.about.images": [[10**6, 10**6], []],
    "value.about.part": ["val", None],
}


def test_results_that_no_network_has(results: Any, tmp_path: Path) -> None:
    run, line = results
    path = tmp_path / "line.json"
    read = lambda: run(path.read_bytes() + b"\n")  # noqa: E731
    all_refused(altered_json(path, line, RESULTS, read, "evaluation.jsonl", "delete the file"))


LINES = {
    "empty": b"",
    "cut": b'{"key": "abc", "val',
    "not UTF-8": b'{"key": "\xff"}',
    "zeros": bytes(300),
    "a list": b"[1]",
    "a key that is a list": b'{"key": [1], "value": 2}',
    "no value": b'{"key": "a"}',
    "100,000 deep": DEEP.encode(),
    "binary": bytes(range(256)) * 4,
}


def test_lines_that_are_none_count_for_nothing(results: Any) -> None:
    run, line = results
    expected = run(json.dumps(line) + "\n")
    for data in LINES.values():
        assert run(data + b"\n" + json.dumps(line).encode() + b"\n" + data) == expected
        (again,) = run(data)
        assert again["accuracies"] == expected[0]["accuracies"]


# ---- forgetting scores ---------------------------------------------------------------------------------------------

FIVE = {name: np.arange(5) / 5 for name in ("scores", "counts", "errors", "learned")} | {"indices": np.arange(5)}


def npz(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{**FIVE, **columns})
    return buffer.getvalue()


def claiming(shape: tuple[int, ...], dtype: str = "<f8", method: int = zipfile.ZIP_STORED, body: bytes = b"") -> bytes:
    """A file whose column `scores` claims a shape."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(npz())) as source, zipfile.ZipFile(buffer, "w", method) as target:
        for part in source.infolist():
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
            content = header.getvalue() + body if part.filename == "scores.npy" else source.read(part)
            target.writestr(part.filename, content)
    return buffer.getvalue()


class Calls:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def nested_lists() -> list[Any]:
    """10^12 numbers that take no room."""
    level: list[Any] = [0] * 10
    for _ in range(11):
        level = [level] * 10
    return level


SCORES: dict[str, bytes] = {
    "3 * 10^9 numbers": claiming((3 * 10**9,)),
    "10^18 numbers": claiming((10**9, 10**9)),
    "numbers of 2 GB each": claiming((10,), "<U500000000"),
    "a negative shape": claiming((-1,)),
    "fewer than there are": claiming((2,), body=bytes(80)),
    "zeros packed to nothing": claiming((200_000_000,), method=zipfile.ZIP_DEFLATED, body=bytes(10**7)),
    "objects": claiming((5,), "|O", body=pickle.dumps([1] * 5)),
    "a text as header": npz()[:30] + b"junk" + npz()[34:],
    "a column missing": io.BytesIO().getvalue(),
    "cut": npz()[:400],
    "two dimensions": npz(scores=np.zeros((5, 1))),
    "no example": npz(**{name: values[:0] for name, values in FIVE.items()}),
    "another length": npz(scores=np.zeros(4)),
    "negative scores": npz(scores=-np.ones(5)),
    "scores not a number": npz(scores=np.full(5, np.nan)),
    "learned of 7.48": npz(learned=np.full(5, 7.48)),
    "learned not a number": npz(learned=np.full(5, np.nan)),
    "negative counts": npz(counts=-np.ones(5)),
    "errors not a number": npz(errors=np.full(5, np.nan)),
    "negative indices": npz(indices=-np.arange(5)),
    "an index twice": npz(indices=np.zeros(5)),
    "indices are text": npz(indices=np.array(list("abcde"))),
    "complex scores": npz(scores=np.full(5, "x")),
    "a pickle of lists": pickle.dumps({"indices": nested_lists(), "forgetting counts": [1]}),
    "a pickle of texts": pickle.dumps({"indices": ["a" * 10**6], "forgetting counts": [1]}),
    "a pickle of an array of 10^11": pickle.dumps({"indices": Calls(np.ndarray, (10**11,))}),
    "a pickle of a call": pickle.dumps({"indices": Calls(os.getcwd), "forgetting counts": [1]}),
    "a pickle that claims memory": b"\x80\x04K\x00r\xff\xff\xff\x7f.",
    "a pickle of a buffer of 10^12": b"\x80\x05\x96" + struct.pack("<Q", 10**12) + b"abc.",
    "a pickle of a number": pickle.dumps(3),
    "a pickle of itself": b"\x80\x04}q\x00h\x00h\x00s.",
    "empty": b"",
    "text": b"indices, scores",
}


def test_forgetting_scores_of_strangers(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"

    def cases() -> Iterator[Case]:
        for kind, data in SCORES.items():
            path.write_bytes(data)
            tracemalloc.reset_peak()
            yield kind, lambda: ForgettingScores.load(path), ("scores.npz",)
            assert tracemalloc.get_traced_memory()[1] < 10**8, f"{kind}: memory was taken for what the file claims"

    tracemalloc.start()
    all_refused(cases())
    tracemalloc.stop()


# ---- sets of other code --------------------------------------------------------------------------------------------

GOOD, LABELS = torch.full((3, 3, 8, 8), 0.5), torch.arange(3)


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def repacked(data: bytes, method: int, change: Callable[[str, bytes], bytes] = lambda _, part: part) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w", method) as target:
        for part in source.infolist():
            target.writestr(part.filename, change(part.filename, source.read(part)))
    return buffer.getvalue()


IMPORTED: dict[str, bytes] = {
    "10^13 numbers by stride 0": saved([torch.zeros(1).expand(10**5, 10**4, 10**2, 10**2), LABELS]),
    "10^13 labels by stride 0": saved([GOOD, torch.zeros(1, dtype=torch.int64).expand(10**13)]),
    "overlapping strides": saved([GOOD.as_strided((1000, 3, 8, 8), (0, 64, 8, 1)), LABELS]),
    "a bomb": repacked(saved([torch.zeros(10**6, 3, 1, 1), LABELS]), zipfile.ZIP_DEFLATED),
    "a pickle of nothing": repacked(saved([GOOD, LABELS]), zipfile.ZIP_STORED, lambda name, part: b"" * len(name)),
    "not a number": saved([GOOD * NAN, LABELS]),
    "infinite": saved([GOOD * INF, LABELS]),
    "another shape": saved([GOOD[..., 1:], LABELS]),
    "labels out of range": saved([GOOD, LABELS + 1]),
    "labels negative": saved([GOOD, LABELS - 1]),
    "soft labels of sum 2": saved([GOOD, torch.eye(3) * 2]),
    "labels of another number": saved([GOOD, LABELS[:2]]),
    "no numbers at all": saved([GOOD.to("meta"), LABELS]),
    "a list nested 1,000 deep": b"PK" + b"\0" * 300,
    "lists of lists": saved([GOOD, [[LABELS]]]),
    "a dictionary of itself": b"\x80\x02}q\x00h\x00h\x00s.",
    "empty": b"",
    "cut": saved([GOOD, LABELS])[:-200],
    "zeros": bytes(1000),
}


RATES = [[1e300], [-1.0], [0.0], ["x"], [[0.1]] * 3, torch.zeros(2, 2), [INF]]


def test_sets_of_other_code(blobs: Blobs, tmp_path: Path) -> None:
    path = tmp_path / "set.pt"

    def cases() -> Iterator[Case]:
        for kind, data in IMPORTED.items():
            path.write_bytes(data)
            yield kind, lambda: open_distilled(path, blobs, ImportOptions(decode_factor=1)), ("set.pt",)
        for rates in RATES:
            for name, value in {"images": GOOD, "labels": LABELS, "syn_lr": rates}.items():
                torch.save(value, tmp_path / f"{name}_best.pt")
            yield rates, lambda: open_distilled(tmp_path, blobs), (str(tmp_path),)

    all_refused(cases())


OWN: list[str] = [
    *("[]", "{}", "null", DEEP, "{", '{"learning_rates": [1e300, 1], "decode_factor": 1}'),
    *(
        json.dumps({"learning_rates": [0.1, 0.1], "decode_factor": 1, "about": {}, **change})
        for change in (
            *({"learning_rates": [-1.0]}, {"learning_rates": "x"}, {"learning_rates": [[0.1]]}, {"about": []}),
            *({"decode_factor": 0}, {"decode_factor": 10**6}, {"decode_factor": "2"}, {"about": {"network": None}}),
            *({"about": {"settings": 3}}, {"about": {"dataset": []}}, {"about": {"method": 3}}, {"about": {"x": NAN}}),
        )
    ),
]


def test_what_a_parquet_file_says_of_itself(blobs: Blobs, staged_blobs: SyntheticSet, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "set.parquet"
    target_format(path).save(path, DistilledDataset.of(staged_blobs, blobs.pixels, blobs.class_names, {}))
    table = parquet.read_table(path)

    def write(**metadata: str) -> None:
        added = {name.encode(): value.encode() for name, value in metadata.items()}
        parquet.write_table(table.replace_schema_metadata({**table.schema.metadata, **added}), path)

    def features(*names: str) -> str:
        return json.dumps({"info": {"features": {"label": {"names": names}}}})

    def cases() -> Iterator[Case]:
        for own in OWN:
            write(pdd_lightning=own)
            yield own[:60], lambda: open_distilled(path, blobs), ("set.parquet",)
        write(huggingface=features("a", "b", "c"))
        yield "features", lambda: open_distilled(path, blobs), ("set.parquet",)

    all_refused(cases())
    write(huggingface=features("a", "b", "c\0"))  # other files say other things there
    assert open_distilled(path, blobs).class_names == blobs.class_names


def test_parquet_files_of_something_else(blobs: Blobs, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path, image = tmp_path / "set.parquet", [{"bytes": b"x", "path": "x"}] * 3
    labels = arrow.table({"image": image, "label": [0, 1, 2]})
    tables = {
        "2 * 10^6 rows": arrow.table({"image": arrow.nulls(2_000_000, arrow.int8()), "label": arrow.nulls(2_000_000)}),
        "lists of lists": arrow.table({"image": image, "label": [[[1]]] * 3}),
        "a column twice": labels.append_column("label", labels["label"]),
        "null": arrow.table({"image": image, "label": [None] * 3}),
        "text": arrow.table({"image": image, "label": list("abc")}),
        "cut": labels,
    }

    def cases() -> Iterator[Case]:
        for kind, table in tables.items():
            parquet.write_table(table, path)
            if kind == "cut":
                path.write_bytes(path.read_bytes()[:-40])
            yield kind, lambda: open_distilled(path, blobs), ("set.parquet",)

    all_refused(cases())


# ---- YAML ----------------------------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
)
MERGED = "a0: &a0 {x0: 1}\n" + "".join(
    f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 10)}], x{level}: 1}}\n" for level in range(1, 10)
)
YAML = {
    "a billion laughs": LAUGHS,
    "a billion merges": MERGED,
    "itself": "a: &a [*a]",
    "itself in a mapping": "&a {b: *a}",
    "an alias of nothing": "a: *b",
    "1,000 deep": "[" * 1000 + "]" * 1000,
    "100,000 deep": "[" * 100_000,
    "10,000 mappings deep": "".join(f"{' ' * level}a:\n" for level in range(1000)),
    "200,000 values": "[" + "1," * 200_000 + "]",
    "2 MB": "a: " + "x" * 2_000_000,
    "an integer of 5,000 digits": "a: " + "9" * 5000,
    "a date that is none": "a: 2020-13-45",
    "a call": "a: !!python/object/apply:os.system ['true']",
    "an unknown tag": "a: !unknown b",
    "not YAML": "a: [1, }",
    "control characters": "a: \x00",
    "a key that is a list": "? [1]\n: 2",
}


def test_yaml_of_strangers(prepared: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"

    def cases() -> Iterator[Case]:
        for kind, text in YAML.items():
            path.write_text(text)
            yield kind, lambda: read_study(path), ("file.yaml",)

    all_refused(cases())
    for kind in ("a billion laughs", "itself", "2 MB"):
        path.write_text(YAML[kind])
        with pytest.raises(SystemExit) as stop:
            main(["fit", "--config", str(prepared.recipe), "--config", str(path)])
        assert stop.value.code not in (None, 0)


def test_yaml_that_uses_aliases_is_read() -> None:
    assert load_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


METHOD = {"recipe": "recipe.yaml"}
SOUND = {"title": "t", "num_classes": 3, "methods": [METHOD]}
STUDY_FILES: dict[str, list[Any]] = {
    "title": [None, 3, [], DELETE],
    "num_classes": [1, -1, 10**9, "x", None, DELETE],
    "methods": [None, [], {}, [3], [None], DELETE],
    "methods.0.recipe": [None, 3, [], "missing.yaml", DELETE],
    "methods.0.name": ["../../x", "a/b", "..", ".", "", "a\0", "x" * 300, 3],
    "methods.0.fit": [
        *(None, [], 3),
        *({"stages.num_stages": value} for value in ("many", 0, -1, 1.5, None, [], True, 10**30)),
        *({"stages.iterations": value} for value in ("many", 0, None)),
        *({"model.ipc": value} for value in ("x", 0, -3)),
    ],
    "seeds": [[], [-1], [1.5], ["x"], [2**64], None, [1, 1]],
    "arms": [
        *({}, [], None, {"../x": {}}, {"a/b": {}}, {"a": 3}, {"a": {"stages": 0}}, {"a": {"ipc": 0}}),
        *({"a": {"stages": 10**9}}, {"a": {"budget": "x"}}, {"a": {"new": 1}}),
    ],
    "stages": [[0], [10**9], ["x"], 3],
    "command": ["rm", 3, [], None],
    "unknown": [1],
}


def test_studies_that_are_none(prepared: Prepared, tmp_path: Path) -> None:
    shutil.copy(prepared.recipe, tmp_path / "recipe.yaml")
    path = tmp_path / "study.yaml"
    for entry, values in STUDY_FILES.items():
        for value in values:
            path.write_text(yaml.safe_dump(changed(SOUND, entry, value)))
            with pytest.raises((ConfigError, DataError)) as caught:
                read_study(path).steps(tmp_path)
                pytest.fail(f"{entry} {value} was taken")
            assert len(str(caught.value)) < 900


STEP = {
    "row": "distilled", "protocol": "progressive", "part": "val", "images": 6, "stage": 2, "num_stages": 2, "steps": 9,
    "accuracies": [0.5, 0.6], "seconds": 1.0,
}  # fmt: skip
STEPS: dict[str, list[Any]] = {
    "rows": [None, {}, "x", [None], [3], [[]], [{}], DELETE],
    "rows.0.accuracies": [None, [], [7.48], [-1.0], [NAN], ["x"], 0.5, DELETE],
    "rows.0.seconds": [None, -1.0, NAN, INF, "x", DELETE],
    "rows.0.images": [None, -1, 1.5, 10**30, "x", DELETE],
    "rows.0.row": [None, 3, "a\0", "x" * 300, DELETE],
    "rows.0.protocol": [None, 3, DELETE],
    "rows.0.part": [None, [], DELETE],
    "rows.0.stage": [-1, "x", 1.5],
    "rows.0.steps": [-1, "x", NAN],
}


@pytest.mark.parametrize("verb", ["evaluate", "continual"])
def test_outputs_that_no_step_writes(verb: str, prepared: Prepared, tmp_path: Path) -> None:
    shutil.copy(prepared.recipe, tmp_path / "recipe.yaml")
    own = {"num_classes": 3} if verb == "evaluate" else {"tasks": 2, "command": verb}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"title": "t", "methods": [METHOD], "seeds": [0], **own}))
    study = read_study(tmp_path / "study.yaml")
    (run,) = study.runs
    output = tmp_path / "runs" / run.name / "seed_0" / "evaluation.json"
    output.parent.mkdir(parents=True)
    shutil.copy(prepared.run / "summary.json", output.parent)
    continual = {} if verb == "evaluate" else {"forgetting": 0.1, "average_accuracy": [0.5, 0.5]}
    all_refused(altered_json(output, {"rows": [{**STEP, **continual}]}, STEPS, lambda: study.rows(tmp_path)))


# ---- by chance -----------------------------------------------------------------------------------------------------

HOSTILE = [
    *(None, True, -1, 2**70, 1e300, NAN, INF, "", "x" * 400, "\0", "\ud800", [], {}, [[]], {"a": {"b": []}}, DELETE),
]


@pytest.mark.slow
def test_json_altered_at_random(prepared: Prepared, experts: Path, results: Any, tmp_path: Path) -> None:
    """Whatever an entry is replaced by, the file is read or refused in one line."""
    run, line = results
    manifest = json.loads((experts / "manifest.json").read_text())
    summary = json.loads((prepared.run / "summary.json").read_text())
    readers: list[tuple[Any, Path, Callable[[], Any]]] = [
        (summary, tmp_path / "summary.json", lambda: read_stored(RunSummary, tmp_path / "summary.json")),
        (STUDY, tmp_path / "study.json", lambda: read_stored(StudyResult, tmp_path / "study.json")),
        (manifest, experts / "manifest.json", lambda: TrajectoryStore.existing(experts).damaged()),
        (line, tmp_path / "line.json", lambda: run((tmp_path / "line.json").read_bytes() + b"\n")),
    ]
    generator = random.Random(0)
    for content, path, read in readers:
        found = places(content)
        for _ in range(250):
            altered = changed(content, generator.choice(found), generator.choice(HOSTILE))
            path.write_text(json.dumps(altered))
            try:
                read()
            except PDDError as error:
                assert "\n" not in str(error)


@pytest.mark.slow
def test_bytes_altered_at_random(plain: Path, whitened: Path, blobs: Blobs, tmp_path: Path) -> None:
    """No file that was damaged anywhere ends in anything but a sentence; a set never changes without a word."""
    generator = random.Random(0)
    files: list[tuple[bytes, Callable[[Path], Any]]] = [
        (plain.read_bytes(), lambda path: DistilledDataset(path).images),
        (whitened.read_bytes(), lambda path: DistilledDataset(path).images),
        (npz(), ForgettingScores.load),
        (saved([GOOD, LABELS]), lambda path: open_distilled(path, blobs, ImportOptions(decode_factor=1))),
        (pickle.dumps({"indices": np.arange(5), "forgetting counts": np.arange(5)}), ForgettingScores.load),
    ]
    for number, (data, read) in enumerate(files):
        path = tmp_path / f"file.{'safetensors' if number < 2 else 'pt'}"
        path.write_bytes(data)
        whole = read(path)
        for _ in range(300):
            damaged = bytearray(data)
            for _ in range(generator.choice((1, 1, 1, 20))):
                damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
            path.write_bytes(damaged[: generator.choice((len(data), len(data), generator.randrange(len(data))))])
            try:
                found = read(path)
            except PDDError as error:
                assert "\n" not in str(error)
            else:
                assert number >= 2 or torch.equal(found, whole)
