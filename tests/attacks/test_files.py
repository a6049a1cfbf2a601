"""Files that somebody else wrote, or that a power cut left: each is refused in one sentence, and takes no memory."""

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pdd_lightning.cli import main
from pdd_lightning.data import ForgettingScores
from pdd_lightning.data.distilled import DistilledDataset, save_distilled
from pdd_lightning.data.formats import ImportOptions, open_distilled
from pdd_lightning.data.pixels import Whitened
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError, DataError, PDDError
from pdd_lightning.evaluation import EvaluationSettings, Subject, evaluate
from pdd_lightning.experts import TrajectoryStore
from pdd_lightning.results.result_store import ResultStore
from pdd_lightning.results.schema import RunSummary, StudyResult
from pdd_lightning.stored import MAX_NAME_BYTES, load_tensors, load_yaml, read_bytes, read_stored
from pdd_lightning.studies.kinds import read_study
from tests.attacks.conftest import DELETE, Prepared, changed, forged, places, refusal
from tests.tiny import Blobs

NAN, INF = math.nan, math.inf
DEEP = "[" * 100_000 + "]" * 100_000


def sentence(call: Callable[[], Any], *expected: str) -> None:
    """The call is refused in one line of bounded length that says what was expected."""
    with pytest.raises(PDDError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 900 and message.isprintable(), message
    for part in expected:
        assert part in message


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


def entry(name: str, index: Any, value: float) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    """Replaces some numbers of a tensor."""

    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[index] = value
        return tensor

    return put(name, change)


def soft(labels: Tensor) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    return put("labels", labels)


EVEN = torch.full((6, 3), 1 / 3)
SETS: list[tuple[str, Any, str]] = [
    ("a pixel is not a number", entry("images", (0, 0, 0, 0), NAN), "images"),
    ("a pixel is infinite", entry("images", (-1, -1, -1, -1), INF), "images"),
    ("a pixel is minus infinite", entry("images", (1, 1, 1, 1), -INF), "images"),
    ("images in double precision", put("images", Tensor.double), "images: expected [N, C, H, W] float32"),
    ("images in half precision", put("images", Tensor.half), "images: expected"),
    ("images are whole numbers", put("images", Tensor.long), "images: expected"),
    ("images of three dimensions", put("images", lambda one: one[0]), "images: expected"),
    ("images of five dimensions", put("images", lambda one: one[None]), "images: expected"),
    ("images without channels", put("images", lambda one: one[:, :0]), "empty"),
    ("images without pixels", put("images", lambda one: one[..., :0]), "empty"),
    ("one image too few", put("images", lambda one: one[1:]), "do not fit"),
    ("no images", put("images", lambda one: one[:0]), "do not fit"),
    ("images are missing", put("images", DELETE), "images"),
    ("images of other channels", put("images", lambda one: one[:, :2]), "pixel space"),
    ("a label is negative", entry("labels", 0, -1), "labels"),
    ("a label is out of range", entry("labels", 0, 3), "labels are of 4 classes"),
    ("a label is huge", entry("labels", 0, 2**62), "labels"),
    ("labels are fractions", put("labels", Tensor.float), "labels: expected"),
    ("labels in 32 bits", put("labels", Tensor.int), "labels: expected"),
    ("labels are truth values", put("labels", Tensor.bool), "labels: expected"),
    ("labels of two dimensions", put("labels", lambda one: one[None]), "labels: expected"),
    ("labels are missing", put("labels", DELETE), "labels"),
    ("one label too many", put("labels", lambda one: torch.cat([one, one[:1]])), "do not fit"),
    ("soft labels not a number", soft(EVEN * NAN), "labels"),
    ("soft labels infinite", soft(EVEN * INF), "labels"),
    ("soft labels of sum 2", soft(EVEN * 2), "soft labels are not probabilities"),
    ("soft labels of sum 0", soft(EVEN * 0), "soft labels are not probabilities"),
    ("soft labels negative", soft(torch.tensor([[1.5, -0.5, 0.0]] * 6)), "soft labels are not probabilities"),
    ("soft labels of other classes", soft(torch.full((6, 4), 0.25)), "labels are of 4 classes"),
    ("soft labels of fewer classes", soft(torch.full((6, 2), 0.5)), "labels are of 2 classes"),
    ("soft labels of no class", soft(torch.zeros(6, 0)), "labels"),
    ("soft labels in double precision", soft(EVEN.double()), "labels: expected"),
    ("a stage is left out", put("stages", torch.tensor([1, 1, 1, 3, 3, 3])), "stages must be 1 to 2"),
    ("stages begin with 0", put("stages", lambda one: one - 1), "stages must be 1 to 2"),
    ("stages begin with 2", put("stages", lambda one: one + 1), "stages must be 1 to 2"),
    ("a stage too many", entry("stages", -1, 3), "stages must be 1 to 2"),
    ("a stage of 10^18", entry("stages", -1, 10**18), "stages must be 1 to 2"),
    ("stages are fractions", put("stages", Tensor.double), "stages: expected"),
    ("stages of two dimensions", put("stages", lambda one: one[:, None]), "stages: expected"),
    ("stages are missing", put("stages", DELETE), "stages"),
    ("one stage of an image too few", put("stages", lambda one: one[1:]), "do not fit"),
    ("a rate of 1e300", entry("learning_rates", 0, 1e300), "learning_rates"),
    ("a rate of 0", entry("learning_rates", 0, 0), "learning_rates"),
    ("a negative rate", entry("learning_rates", 1, -0.1), "learning_rates"),
    ("an infinite rate", entry("learning_rates", 1, INF), "learning_rates"),
    ("rates of two dimensions", put("learning_rates", lambda one: one[None]), "learning_rates: expected"),
    ("a rate of no dimension", put("learning_rates", lambda one: one[0]), "learning_rates: expected"),
    ("rates in single precision", put("learning_rates", Tensor.float), "learning_rates: expected"),
    ("rates are whole numbers", put("learning_rates", Tensor.long), "learning_rates: expected"),
    ("a rate too many", put("learning_rates", lambda one: one.repeat(2)), "stages must be 1 to 4"),
    ("a million rates", put("learning_rates", lambda one: one[:1].repeat(10**6)), "learning_rates"),
    ("no rates", put("learning_rates", lambda one: one[:0]), "stages must be 1 to 0"),
    ("rates are missing", put("learning_rates", DELETE), "learning_rates"),
    ("a deviation of 0", entry("pixels.std", 0, 0), "std"),
    ("a negative deviation", entry("pixels.std", 0, -1), "std"),
    ("a deviation not a number", entry("pixels.std", 0, NAN), "std"),
    ("an infinite deviation", entry("pixels.std", 0, INF), "std"),
    ("deviations of another number", put("pixels.std", lambda one: one[:2]), "std"),
    ("deviations of two dimensions", put("pixels.std", lambda one: one[None]), "std"),
    ("deviations in double precision", put("pixels.std", Tensor.double), "std"),
    ("deviations are missing", put("pixels.std", DELETE), "std"),
    ("a mean not a number", entry("pixels.mean", 0, NAN), "mean"),
    ("an infinite mean", entry("pixels.mean", 0, INF), "mean"),
    ("means of another number", put("pixels.mean", lambda one: one[:1]), "mean"),
    ("means are missing", put("pixels.mean", DELETE), "mean"),
    ("another pixel space", put("pixel_space", "zca"), "matrix"),
    ("an unknown pixel space", put("pixel_space", "polar"), "unknown pixel space"),
    ("no pixel space", put("pixel_space", DELETE), "pixel space"),
    *[
        (f"decode factor {value!r}", put("decode_factor", value), "decode_factor")
        for value in ("0", "99", "-1", "1000000", "two", "", "1.5", "\u00b2", DELETE)
    ],
    ("class names are null", put("class_names", None), "class_names"),
    ("class names are a number", put("class_names", 3), "class_names"),
    ("class names are a text", put("class_names", '"abc"'), "class_names"),
    ("class names by name", put("class_names", {"a": 1, "b": 2, "c": 3}), "class_names"),
    ("class names are numbers", put("class_names", [0, 1, 2]), "class_names.0"),
    ("a class name is null", put("class_names", ["a", None, "c"]), "class_names.1"),
    ("a class name is a list", put("class_names", ["a", ["b"], "c"]), "class_names.1"),
    ("class names 100,000 deep", put("class_names", DEEP), "class_names"),
    ("class names with NUL", put("class_names", ["a", "b\0", "c"]), "class_names.1"),
    ("class names with a surrogate", put("class_names", '["a", "\\ud800", "c"]'), "class_names.1"),
    ("class names that move the cursor", put("class_names", ["a", "\x1b[2J", "c"]), "class_names.1"),
    ("class names of two lines", put("class_names", ["a", "b\nb", "c"]), "class_names.1"),
    ("class names too long", put("class_names", ["a", "b" * (MAX_NAME_BYTES + 1), "c"]), "class_names.1"),
    ("class names too long in bytes", put("class_names", ["a", "\u00e4" * 128, "c"]), "class_names.1"),
    ("no class names", put("class_names", []), "class_names"),
    ("a class name too few", put("class_names", ["a", "b"]), "labels are of 3 classes"),
    ("half of the class names", put("class_names", '["a", "b"'), "class_names"),
    ("class names are missing", put("class_names", DELETE), "class_names"),
    ("200,000 class names", put("class_names", [str(one) for one in range(200_000)]), "class_names"),
    *[
        (f"network {str(value)[:30]}", put("network", value), "network")
        for value in (
            *(None, [], 3, True, '"ConvNet"', {}, {"class_path": None}, {"class_path": 3}, {"class_path": ["os"]}),
            *({"class_path": "a\0b"}, {"class_path": "a" * 300}, {"class_path": "a.B", "init_args": None}, DEEP),
            *({"class_path": "a.B", "init_args": []}, {"class_path": "a.B", "init_args": "width"}),
            *({"class_path": "a.B", "init_args": {"width": NAN}}, {"init_args": {}}),
            *(
                '{"class_path": "a.B", "init_args": {"width": 1e999}}',
                '{"class_path": "a.B", "init_args": {"x": ' + DEEP,
            ),
            '{"class_path": "a.B", "init_args": {"x": ' + "[" * 400 + "]" * 400 + "}}",
            '{"class_path": "a.B", "init_args": {"x": ' + "9" * 5000 + "}}",
        )
    ],
    *[
        (f"settings {str(value)[:30]}", put("settings", value), "settings")
        for value in (
            *(
                None,
                [],
                3,
                '"text"',
                {"augment": 3},
                {"augment": None},
                {"augment": ["flip"]},
                {"align_corners": "yes"},
            ),
            *(
                {"align_corners": 1},
                {"augment_together": None},
                {"lr": NAN},
                {"lr": -INF},
                {"augment": "x" * 300},
                DEEP,
            ),
        )
    ],
    *[
        (f"dataset {str(value)[:30]}", put("dataset", value), "dataset")
        for value in (
            *(None, [], 3, '"digits"', {"name": 3}, {"fingerprint": []}, {"name": "a\0"}, {"name": "x" * 300}),
            {"fingerprint": 1.5},
        )
    ],
    *[
        (f"joined {str(value)[:30]}", put("joined", value), "joined")
        for value in (None, 3, '"text"', {}, [3], [None], [["x"]], ["x" * 300])
    ],
    ("method of two lines", put("method", "DM\n\x1b[31m"), "method"),
    ("a method without end", put("method", "M" * 10**6), "method"),
    ("an entry that is no JSON", put("more", "{"), "more"),
    ("an entry 100,000 deep", put("more", DEEP), "more"),
    ("an entry not a number", put("more", "NaN"), "more"),
    ("an infinite entry", put("more", "[1e999]"), "more"),
    ("an entry with a surrogate", put("more", '"\\udc00"'), "more"),
    ("another format", put("format_version", "2"), "upgrade"),
    ("a format without end", put("format_version", "2" * 10**5), "upgrade"),
    ("no format", put("format_version", DELETE), "upgrade"),
]
ZCA: list[tuple[str, Any, str]] = [
    ("not square", put("pixels.matrix", lambda one: one[:, 1:]), "matrix"),
    ("of another size", put("pixels.matrix", lambda one: one[1:, 1:]), "matrix"),
    ("of one dimension", put("pixels.matrix", lambda one: one[0]), "matrix"),
    ("not positive", put("pixels.matrix", lambda one: -one), "positive definite"),
    ("singular", put("pixels.matrix", lambda one: one * 0), "positive definite"),
    ("not symmetric", entry("pixels.matrix", (0, 1), 0.9), "symmetric"),
    ("not a number", entry("pixels.matrix", (3, 3), NAN), "matrix"),
    ("infinite", entry("pixels.matrix", (3, 3), INF), "matrix"),
    ("in double precision", put("pixels.matrix", Tensor.double), "matrix"),
    ("missing", put("pixels.matrix", DELETE), "matrix"),
    ("of a mean of another size", put("pixels.mean", lambda one: one[1:]), "matrix"),
    ("of a mean not a number", entry("pixels.mean", 0, NAN), "mean"),
    ("without a mean", put("pixels.mean", DELETE), "mean"),
    ("of a smaller image", put("images", lambda one: one[..., 1:, 1:]), "pixel space"),
]


@pytest.mark.parametrize(("name", "alter", "expected"), SETS, ids=[name for name, *_ in SETS])
def test_a_forged_set(name: str, alter: Any, expected: str, plain: Path, tmp_path: Path) -> None:
    path = forged(plain, tmp_path / "set.safetensors", alter)
    sentence(lambda: DistilledDataset(path), expected, "set.safetensors")


@pytest.mark.parametrize(("name", "alter", "expected"), ZCA, ids=[name for name, *_ in ZCA])
def test_a_forged_whitening(name: str, alter: Any, expected: str, whitened: Path, tmp_path: Path) -> None:
    path = forged(whitened, tmp_path / "set.safetensors", alter)
    sentence(lambda: DistilledDataset(path), expected, "set.safetensors")


def test_forging_alone_is_not_what_is_refused(plain: Path, whitened: Path, tmp_path: Path) -> None:
    for source in (plain, whitened):
        copy = DistilledDataset(forged(source, tmp_path / "set.safetensors", lambda *_: None))
        assert torch.equal(copy.images, DistilledDataset(source).images)


def with_header(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


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
    "a tensor of 10^13 numbers": lambda _: (
        with_header(json.dumps({"images": {"dtype": "F32", "shape": [10**13], "data_offsets": [0, 4]}}).encode())
        + bytes(4)
    ),
    "a tensor that overflows": lambda _: (
        with_header(json.dumps({"images": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 4]}}).encode())
        + bytes(4)
    ),
    "an unknown type of numbers": lambda _: (
        with_header(json.dumps({"images": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}).encode()) + bytes(4)
    ),
    "cut in the header": lambda data: data[:100],
    "cut in the middle": lambda data: data[: len(data) // 2],
    "without the last byte": lambda data: data[:-1],
    "a byte more": lambda data: data + b"\0",
    "twice": lambda data: data * 2,
    "a flipped bit": lambda data: data[:-50] + bytes([data[-50] ^ 1]) + data[-49:],
}


@pytest.mark.parametrize("kind", RAW)
def test_a_file_that_is_no_set(kind: str, plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    path.write_bytes(RAW[kind](plain.read_bytes()))
    sentence(lambda: DistilledDataset(path), "set.safetensors")


def unreadable(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "circle":
        path.symlink_to(path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "circle", "missing"])
@pytest.mark.parametrize(
    "read",
    [
        DistilledDataset,
        lambda path: read_stored(RunSummary, path),
        lambda path: open_distilled(path),
        load_tensors,
        lambda path: ForgettingScores.load(path),
        read_study,
    ],
    ids=["set", "summary", "any set", "tensors", "scores", "study"],
)
def test_what_is_no_file(read: Callable[[Path], Any], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    unreadable(path, kind)
    sentence(lambda: read(path), "file.safetensors")


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(2**33)  # takes no room on the disk
    tracemalloc.start()
    sentence(lambda: read_bytes(tmp_path / "large.json", 10**6), "has more than 1000000 bytes")
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


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("model", [RunSummary, StudyResult])
def test_json_that_is_none_or_of_something_else(kind: str, model: type[RunSummary], tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(BROKEN[kind])
    if model is StudyResult and kind.endswith("deep") and kind.startswith("500"):
        return  # what it does not know it passes over
    if model is StudyResult and kind.startswith("an integer"):
        kind = "read"
    sentence(lambda: read_stored(model, tmp_path / "file.json"), "file.json is damaged")


STAGE, ROW = "stages.0.", "evaluation.0."
SUMMARY: list[tuple[str, Any]] = [
    *[("seed", value) for value in (-1, 2**64, 1.5, "3", True, [], NAN)],
    *[("dataset", value) for value in (None, [], "x", {"name": 3}, {"name": "a\0"}, {"x" * 300: "a"})],
    *[("settings", value) for value in (None, [], "x", {"a": NAN}, {"a": INF}, {"a": "\ud800"})],
    *[("package_version", value) for value in (3, [], "x" * 300, "a\nb")],
    *[("stages", value) for value in (None, {}, 3, [None], [3], ["x"], [[]])],
    *[(f"{STAGE}stage", value) for value in (0, -1, 2, 1.5, True, None, "1", 10**9, DELETE)],
    *[(f"{STAGE}images", value) for value in (-1, None, 1.5, 10**30, DELETE)],
    *[(f"{STAGE}learned_lr", value) for value in (0, -1.0, 1e300, NAN, INF, "x")],
    *[(f"{STAGE}lr_img", value) for value in (0, -1.0, NAN, INF, None, DELETE)],
    *[(f"{STAGE}first_loss", value) for value in (NAN, INF, None, "x", DELETE)],
    *[(f"{STAGE}last_loss", value) for value in (NAN, -INF, [], True)],
    *[(f"{STAGE}val_accuracy", value) for value in (7.48, -0.1, NAN, INF, None, "high", DELETE)],
    *[(f"{STAGE}val_std", value) for value in (-0.1, 748.0, NAN)],
    *[(f"{STAGE}val_networks", value) for value in (-1, 1.5, None)],
    *[
        (f"{STAGE}seconds", value)
        for value in (None, [], {"distil": -1.0}, {"distil": NAN}, {"distil": "x"}, {"a\0": 1.0})
    ],
    *[(f"{STAGE}peak_memory_mb", value) for value in (-1.0, NAN, None)],
    *[(f"{STAGE}real_images", value) for value in (-1, 1.5, "x")],
    *[("evaluation", value) for value in (None, {}, [None], ["x"], [[]])],
    *[(f"{ROW}row", value) for value in (None, 3, "a\0", "x" * 300, DELETE)],
    *[(f"{ROW}part", value) for value in (None, 3, [], DELETE)],
    *[(f"{ROW}protocol", value) for value in (None, 3, {})],
    *[(f"{ROW}mean", value) for value in (7.48, -0.1, NAN, INF, None, "x", True, DELETE)],
    *[(f"{ROW}std", value) for value in (7.48, -0.1, NAN, "x")],
    *[(f"{ROW}n", value) for value in (-1, 1.5, 10**13, 7)],
    *[(f"{ROW}accuracies", value) for value in (None, [7.48], [-1.0], [NAN], ["x"], {}, [0.5] * 9)],
    *[
        (f"{ROW}per_class", value)
        for value in (None, [], {"a": 7.48}, {"a": NAN}, {"a": None}, {"a\0": 0.5}, {"x" * 300: 0.5})
    ],
    *[(f"{ROW}seconds", value) for value in (-1.0, NAN, "x")],
    *[(f"{ROW}images", value) for value in (-1, 1.5, "x")],
    *[(f"{ROW}stage", value) for value in (-1, "x")],
    *[(f"{ROW}seconds_std", value) for value in ("x", [], {})],
    *[(f"{ROW}novelty", value) for value in (NAN, INF, "\ud800", [INF])],
]


@pytest.fixture(scope="module")
def summary(prepared: Prepared) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((prepared.run / "summary.json").read_text())
    return content


@pytest.mark.parametrize(("path", "value"), SUMMARY, ids=lambda value: str(value)[:30])
def test_figures_that_no_run_has(path: str, value: Any, summary: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(changed(summary, path, value)))
    sentence(lambda: read_stored(RunSummary, tmp_path / "summary.json"), "summary.json is damaged", path.split(".")[0])


STUDY = {
    "study": "AccuracyStudy",
    "title": "t",
    "notes": ["n"],
    "rows": [{"row": "distilled", "mean": 0.5, "std": 0.1, "after_1": 0.5, "x": 1.5, "x_std": 0.1, "forgetting": -0.1}],
    "steps": [{"name": "a", "command": "pdd fit", "seconds": 1.0}],
}
STUDIES: list[tuple[str, Any]] = [
    *[("title", value) for value in (None, 3, [])],
    *[("study", value) for value in (3, "x" * 300, "a\0")],
    *[("notes", value) for value in (None, "text", [3], [None])],
    *[("rows", value) for value in (None, {}, "x", [None], [3], [[]])],
    *[("rows.0.mean", value) for value in (7.48, "high", [], True, INF)],
    *[("rows.0.std", value) for value in (7.48, "x", {})],
    *[("rows.0.after_1", value) for value in (748, "x", [0.5])],
    *[("rows.0.forgetting", value) for value in (-7.0, "x")],
    *[("rows.0.x_std", value) for value in ("x", [], {})],
    *[("rows.0.seed_std", value) for value in ("x", 2.0)],
    *[("rows.0.val_accuracy", value) for value in ("x", 99.0)],
    ("rows.0.row", "\ud800"),
    *[("steps", value) for value in (None, {}, [None], [{}], [{"command": 3}])],
    *[("steps.0.seconds", value) for value in (-1.0, "x")],
    *[("steps.0.command", value) for value in (None, 3, DELETE)],
    *[("package_version", value) for value in (3, "a\nb")],
]


@pytest.mark.parametrize(("path", "value"), STUDIES, ids=lambda value: str(value)[:30])
def test_tables_that_no_study_writes(path: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    assert read_stored(StudyResult, tmp_path / "study.json").rows == STUDY["rows"]
    (tmp_path / "study.json").write_text(json.dumps(changed(STUDY, path, value)))
    sentence(lambda: read_stored(StudyResult, tmp_path / "study.json"), "study.json is damaged", path.split(".")[0])


# ---- experts -------------------------------------------------------------------------------------------------------


@pytest.fixture
def experts(prepared: Prepared, tmp_path: Path) -> Path:
    shutil.copytree(prepared.run / "experts" / "theta_0", tmp_path / "experts")
    return tmp_path / "experts"


EXPERT = "experts.0."
MANIFESTS: list[tuple[str, Any]] = [
    *[("settings", value) for value in (None, [], "x", {}, DELETE)],
    *[("settings.number", value) for value in (-1, 0, 1, 10**9, 1.5, "2", True, None, [], DELETE)],
    *[("settings.data", value) for value in (NAN, "\ud800")],
    *[("experts", value) for value in (None, {}, 3, [None], [3], [{}], DELETE)],
    *[(f"{EXPERT}sha256", value) for value in (None, 3, "x", "0" * 63, "../" * 21, DELETE)],
    *[(f"{EXPERT}losses", value) for value in (None, 3, ["x"], [None], DELETE)],
    *[(f"{EXPERT}accuracies", value) for value in (None, [7.48], [NAN], [-1.0], ["x"])],
    *[(f"{EXPERT}start_accuracy", value) for value in (7.48, -1.0, NAN, None, "x", DELETE)],
    *[(f"{EXPERT}end_accuracy", value) for value in (7.48, NAN, True, DELETE)],
    *[(f"{EXPERT}start_seconds", value) for value in (-1.0, NAN, "x")],
    *[(f"{EXPERT}record_seconds", value) for value in (-1.0, INF, None, DELETE)],
]


@pytest.mark.parametrize(("path", "value"), MANIFESTS, ids=lambda value: str(value)[:30])
def test_manifests_and_records_that_no_recorder_writes(path: str, value: Any, experts: Path) -> None:
    manifest = json.loads((experts / "manifest.json").read_text())
    (experts / "manifest.json").write_text(json.dumps(changed(manifest, path, value)))
    sentence(lambda: TrajectoryStore.existing(experts), "manifest.json is damaged", path.split(".")[0])
    if path.startswith(EXPERT):
        (experts / "manifest.json").write_text(json.dumps(manifest))
        record = changed(manifest["experts"][0], path.removeprefix(EXPERT), value)
        (experts / "expert_000.json").write_text(json.dumps(record))
        sentence(lambda: TrajectoryStore.existing(experts), "expert_000.json is damaged", path.split(".")[2])


@pytest.mark.parametrize("kind", ["empty", "cut in the middle", "a header of 2^40 bytes", "text", "a flipped bit"])
def test_damaged_experts_are_not_used(kind: str, experts: Path, prepared: Prepared) -> None:
    file = experts / "expert_000.safetensors"
    file.write_bytes(RAW[kind](file.read_bytes()))
    store = TrajectoryStore.existing(experts)
    assert store.damaged() == [0]
    if kind != "a flipped bit":
        sentence(lambda: store.segment(0, 0, 1), "expert_000.safetensors is damaged")
        sentence(lambda: store.forgetting(0), "expert_000.safetensors is damaged")
    words = ["evaluate", prepared.run / "distilled.safetensors", *prepared.words, "--experts", experts]
    assert "expert_000.safetensors is damaged" in refusal(*words)


@pytest.mark.parametrize(
    "columns",
    [
        {"snapshots": torch.zeros(3)},
        {"snapshots": torch.zeros(2, 3, 4)},
        {"snapshots": torch.zeros(1, 9)},
        {"snapshots": torch.zeros(3, 9, dtype=torch.float64)},
        {"other": torch.zeros(3, 9)},
    ],
    ids=lambda columns: str({name: list(value.shape) for name, value in columns.items()}),
)
def test_experts_of_another_form(columns: dict[str, Tensor], experts: Path) -> None:
    from safetensors.torch import save_file

    save_file(columns, experts / "expert_000.safetensors")
    sentence(lambda: TrajectoryStore.existing(experts).segment(0, 0, 1), "expert_000.safetensors")


# ---- results of networks -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, staged_blobs: SyntheticSet, blobs: Blobs) -> Any:
    """Evaluates with the results in a file, of which one is there."""
    from functools import partial

    from pdd_lightning.augment import DSA
    from pdd_lightning.networks import ConvNet

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


VALUE = "value."
RESULTS: list[tuple[str, Any]] = [
    *[("value", value) for value in (3, [], "x", {}, True)],
    *[(f"{VALUE}scores", value) for value in (None, [], {}, [None], "x")],
    *[(f"{VALUE}scores.0.accuracy", value) for value in (7.48, -0.1, NAN, INF, None, "x", True, DELETE)],
    *[
        (f"{VALUE}scores.0.per_class", value)
        for value in (None, [], [7.48] * 3, [NAN] * 3, [0.5] * 4, ["x"] * 3, DELETE)
    ],
    *[(f"{VALUE}seconds", value) for value in (None, [], [-1.0, 1.0], [NAN, 1.0], [1.0], ["x", "y"], DELETE)],
    *[(f"{VALUE}number", value) for value in (1, -1, 0.5, None, "0", DELETE)],
    *[(f"{VALUE}about", value) for value in (None, {}, [], DELETE)],
    *[(f"{VALUE}about.row", value) for value in ("full real", 3)],
    *[(f"{VALUE}about.phases", value) for value in ([], None)],
    *[(f"{VALUE}about.images", value) for value in ([10**6, 10**6], [])],
    *[(f"{VALUE}about.part", value) for value in ("val", None)],
]


@pytest.mark.parametrize(("path", "value"), RESULTS, ids=lambda value: str(value)[:30])
def test_results_that_no_network_has(path: str, value: Any, results: Any) -> None:
    run, line = results
    sentence(lambda: run(json.dumps(changed(line, path, value)) + "\n"), "evaluation.jsonl", "delete the file")


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


@pytest.mark.parametrize("kind", LINES)
def test_lines_that_are_none_count_for_nothing(kind: str, results: Any) -> None:
    run, line = results
    expected = run(json.dumps(line) + "\n")
    (row,) = run(LINES[kind] + b"\n" + json.dumps(line).encode() + b"\n" + LINES[kind])
    assert [row] == expected
    (again,) = run(LINES[kind])
    assert again["accuracies"] == row["accuracies"]


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


@pytest.mark.parametrize("kind", SCORES)
def test_forgetting_scores_of_strangers(kind: str, tmp_path: Path) -> None:
    (tmp_path / "scores.npz").write_bytes(SCORES[kind])
    tracemalloc.start()
    try:
        sentence(lambda: ForgettingScores.load(tmp_path / "scores.npz"), "scores.npz")
        assert tracemalloc.get_traced_memory()[1] < 10**8, "memory was taken for what the file claims"
    finally:
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


@pytest.mark.parametrize("kind", IMPORTED)
def test_sets_of_other_code(kind: str, blobs: Blobs, tmp_path: Path) -> None:
    (tmp_path / "set.pt").write_bytes(IMPORTED[kind])
    sentence(lambda: open_distilled(tmp_path / "set.pt", blobs, ImportOptions(decode_factor=1)), "set.pt")


@pytest.mark.parametrize("rates", [[1e300], [-1.0], [0.0], ["x"], [[0.1]] * 3, torch.zeros(2, 2), [INF]], ids=str)
def test_rates_of_other_code(rates: Any, blobs: Blobs, tmp_path: Path) -> None:
    content = {"images": GOOD, "labels": LABELS, "syn_lr": rates}
    for name, value in content.items():
        torch.save(value, tmp_path / f"{name}_best.pt")
    sentence(lambda: open_distilled(tmp_path, blobs), str(tmp_path))


@pytest.mark.parametrize(
    ("own", "features"),
    [
        *[(own, None) for own in ("[]", "{}", "null", DEEP, "{", '{"learning_rates": [1e300, 1], "decode_factor": 1}')],
        *[
            (json.dumps({"learning_rates": [0.1, 0.1], "decode_factor": 1, "about": {}, **change}), None)
            for change in (
                *({"learning_rates": [-1.0]}, {"learning_rates": "x"}, {"learning_rates": [[0.1]]}, {"about": []}),
                *({"decode_factor": 0}, {"decode_factor": 10**6}, {"decode_factor": "2"}, {"about": {"network": None}}),
                *(
                    {"about": {"settings": 3}},
                    {"about": {"dataset": []}},
                    {"about": {"method": 3}},
                    {"about": {"x": NAN}},
                ),
            )
        ],
        (None, json.dumps({"info": {"features": {"label": {"names": ["a", "b", "c\0"]}}}})),
        (None, json.dumps({"info": {"features": {"label": {"names": ["a", "b", "c"]}}}})),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_a_parquet_file_says_of_itself(
    own: str | None, features: str | None, blobs: Blobs, staged_blobs: SyntheticSet, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    from pdd_lightning.data.formats import target_format

    path = tmp_path / "set.parquet"
    dataset = DistilledDataset.of(staged_blobs, blobs.pixels, blobs.class_names, {})
    target_format(path).save(path, dataset)
    table = parquet.read_table(path)
    metadata = dict(table.schema.metadata)
    metadata |= {} if own is None else {b"pdd_lightning": own.encode()}
    metadata |= {} if features is None else {b"huggingface": features.encode()}
    parquet.write_table(table.replace_schema_metadata(metadata), path)
    if features is not None and "\\u0000" in features:  # other files say other things there
        assert open_distilled(path, blobs).class_names == blobs.class_names
        return
    sentence(lambda: open_distilled(path, blobs), "set.parquet")


@pytest.mark.parametrize("kind", ["2 * 10^6 rows", "lists of lists", "a column twice", "null", "text", "cut"])
def test_parquet_files_of_something_else(kind: str, blobs: Blobs, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image = {"bytes": b"x", "path": "x"}
    columns: dict[str, Any] = {"image": [image] * 3, "label": [0, 1, 2]}
    if kind == "2 * 10^6 rows":
        columns = {"image": arrow.array([None] * 2_000_000, arrow.int8()), "label": arrow.nulls(2_000_000)}
    elif kind != "a column twice":
        columns["label"] = {"lists of lists": [[[1]]] * 3, "null": [None] * 3, "text": list("abc")}.get(kind, [0, 1, 2])
    table = arrow.table(columns)
    table = table.append_column("label", table["label"]) if kind == "a column twice" else table
    parquet.write_table(table, tmp_path / "set.parquet")
    if kind == "cut":
        (tmp_path / "set.parquet").write_bytes((tmp_path / "set.parquet").read_bytes()[:-40])
    sentence(lambda: open_distilled(tmp_path / "set.parquet", blobs), "set.parquet")


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


@pytest.mark.parametrize("kind", YAML)
def test_yaml_of_strangers(kind: str, prepared: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(YAML[kind])
    sentence(lambda: read_study(path), "file.yaml")
    if kind in ("a billion laughs", "itself", "2 MB"):
        with pytest.raises(SystemExit) as stop:
            main(["fit", "--config", str(prepared.recipe), "--config", str(path)])
        assert stop.value.code not in (None, 0)


def test_yaml_that_uses_aliases_is_read() -> None:
    assert load_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


METHOD = {"recipe": "recipe.yaml"}
SOUND = {"title": "t", "num_classes": 3, "methods": [METHOD]}
STUDY_FILES: list[tuple[str, Any]] = [
    *[("title", value) for value in (None, 3, [], DELETE)],
    *[("num_classes", value) for value in (1, -1, 10**9, "x", None, DELETE)],
    *[("methods", value) for value in (None, [], {}, [3], [None], DELETE)],
    *[("methods.0.recipe", value) for value in (None, 3, [], "missing.yaml", DELETE)],
    *[("methods.0.name", value) for value in ("../../x", "a/b", "..", ".", "", "a\0", "x" * 300, 3)],
    *[("methods.0.fit", value) for value in (None, [], 3)],
    *[("methods.0.fit", {"stages.num_stages": value}) for value in ("many", 0, -1, 1.5, None, [], True, 10**30)],
    *[("methods.0.fit", {"stages.iterations": value}) for value in ("many", 0, None)],
    *[("methods.0.fit", {"model.ipc": value}) for value in ("x", 0, -3)],
    *[("seeds", value) for value in ([], [-1], [1.5], ["x"], [2**64], None, [1, 1])],
    *[("arms", value) for value in ({}, [], None, {"../x": {}}, {"a/b": {}}, {"a": 3}, {"a": {"stages": 0}})],
    *[("arms", {"a": {name: value}}) for name, value in (("ipc", 0), ("stages", 10**9), ("budget", "x"), ("new", 1))],
    *[("stages", value) for value in ([0], [10**9], ["x"], 3)],
    *[("command", value) for value in ("rm", 3, [], None)],
    ("unknown", 1),
]


@pytest.mark.parametrize(("path", "value"), STUDY_FILES, ids=lambda value: str(value)[:40])
def test_studies_that_are_none(path: str, value: Any, prepared: Prepared, tmp_path: Path) -> None:
    import yaml

    shutil.copy(prepared.recipe, tmp_path / "recipe.yaml")
    sound = changed(SOUND, "methods.0.recipe", "recipe.yaml")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(changed(sound, path, value)))
    with pytest.raises((ConfigError, DataError)) as caught:
        read_study(tmp_path / "study.yaml").steps(tmp_path)
    assert len(str(caught.value)) < 900


STEP = {
    "row": "distilled", "protocol": "progressive", "part": "val", "images": 6, "stage": 2, "num_stages": 2, "steps": 9,
    "accuracies": [0.5, 0.6], "seconds": 1.0,
}  # fmt: skip
STEPS: list[tuple[str, Any]] = [
    *[("rows", value) for value in (None, {}, "x", [None], [3], [[]], [{}], DELETE)],
    *[("rows.0.accuracies", value) for value in (None, [], [7.48], [-1.0], [NAN], ["x"], 0.5, DELETE)],
    *[("rows.0.seconds", value) for value in (None, -1.0, NAN, INF, "x", DELETE)],
    *[("rows.0.images", value) for value in (None, -1, 1.5, 10**30, "x", DELETE)],
    *[("rows.0.row", value) for value in (None, 3, "a\0", "x" * 300, DELETE)],
    *[("rows.0.protocol", value) for value in (None, 3, DELETE)],
    *[("rows.0.part", value) for value in (None, [], DELETE)],
    *[("rows.0.stage", value) for value in (-1, "x", 1.5)],
    *[("rows.0.steps", value) for value in (-1, "x", NAN)],
]


@pytest.mark.parametrize(("path", "value"), STEPS, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("verb", ["evaluate", "continual"])
def test_outputs_that_no_step_writes(verb: str, path: str, value: Any, prepared: Prepared, tmp_path: Path) -> None:
    import yaml

    shutil.copy(prepared.recipe, tmp_path / "recipe.yaml")
    own = {"num_classes": 3} if verb == "evaluate" else {"tasks": 2, "command": verb}
    kind = {"title": "t", "methods": [METHOD], "seeds": [0], **own}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(kind))
    study = read_study(tmp_path / "study.yaml")
    (run,) = study.runs
    output = tmp_path / "runs" / run.name / "seed_0" / "evaluation.json"
    output.parent.mkdir(parents=True)
    (output.parent / "summary.json").write_bytes((prepared.run / "summary.json").read_bytes())
    continual = {} if verb == "evaluate" else {"forgetting": 0.1, "average_accuracy": [0.5, 0.5]}
    content = {"rows": [{**STEP, **continual}]}
    output.write_text(json.dumps(content))
    assert study.rows(tmp_path)[0]["mean"] == 0.55
    output.write_text(json.dumps(changed(content, path, value)))
    sentence(lambda: study.rows(tmp_path), "evaluation.json is damaged", path.split(".")[0])


# ---- by chance -----------------------------------------------------------------------------------------------------

HOSTILE = [
    None,
    True,
    -1,
    2**70,
    1e300,
    NAN,
    INF,
    "",
    "x" * 400,
    "\0",
    "\ud800",
    [],
    {},
    [[]],
    {"a": {"b": []}},
    DELETE,
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
