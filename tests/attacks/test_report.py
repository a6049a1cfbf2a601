"""`pdd report`: sound runs are shown, on a page of bounded size, whatever their neighbours are."""

# ruff: noqa: F811  (fixtures of another folder)

import io
import json
import os
import re
import socket
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pdd_lightning.cli import main
from pdd_lightning.data.distilled import save_distilled
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.results import folders as folders_module
from pdd_lightning.results import page as page_module
from tests.attacks.test_images import BOMBS, FOREIGN, as_nobody, limited, with_png
from tests.results.conftest import PLAIN, make_run, make_study, row, stage, write_summary  # noqa: F401  (fixtures)

MakeRun = Callable[..., Path]
MOST = 10 * 2**20
"""Bytes of a page of two folders, one of them hostile."""


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Nothing may wait for ever, and no folder may take long."""
    with limited(60):
        yield


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "with plots"], autouse=True)
def plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing plots takes most of the time."""
    if not request.param:
        monkeypatch.setattr(page_module, "render_figure", lambda draw: with_png(1, 1))


def config(text: str | bytes) -> Callable[[Path], object]:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / "config.yaml").write_bytes(data)


def summary(**entries: Any) -> Callable[[Path], object]:
    return lambda folder: write_summary(folder, **entries)


def raw(text: str | bytes, name: str = "summary.json") -> Callable[[Path], object]:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / name).write_bytes(data)


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / name
        path.unlink(missing_ok=True)
        make(path)

    return change


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        former = os.getcwd()  # noqa: PTH109
        os.chdir(path.parent)  # a socket's path must be short
        one.bind(path.name)
        os.chdir(former)


def pictures(count: int, content: bytes | None = None, name: str = "p{}.png") -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        data = with_noise() if content is None else content
        first = folder / "images" / name.format(0)
        first.write_bytes(data)
        for number in range(1, count):
            (folder / "images" / name.format(number)).hardlink_to(first)

    return change


def with_noise() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (110, 110, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def distilled(
    count: int = 6, side: int = 8, stages: int = 2, names: list[str] | None = None
) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        labels = torch.arange(3).repeat(count // 3)
        images = torch.rand(len(labels), 3, side, side)
        numbers = torch.arange(len(labels)) * stages // len(labels) + 1
        made = SyntheticSet(images, labels, numbers, (None,) * stages)
        save_distilled(folder / "distilled.safetensors", made, PLAIN, names or ["a", "b", "c"], {})

    return change


def nested(depth: int, opening: str = '{"a":', closing: str = "}", inner: str = "1") -> str:
    return opening * depth + inner + closing * depth


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))
MANY_ROWS = [row(f"row {n}", 0.5, protocol=f"protocol {n}") for n in range(3_000)]
ROWS = [row("distilled", 0.5)]
CONFIGS: dict[str, str | bytes] = {
    "empty": "",
    "nothing but null": "null",
    "a number": "7",
    "billion laughs": LAUGHS,
    "billion laughs by merging": "a: &a {x: 1}\n" + "".join(f"b{n}: &b{n} {{<<: [*a, *a]}}\n" for n in range(9)),
    "quadratic": f"a: &a {'x' * 20_000}\nb: [{', '.join(['*a'] * 20_000)}]\n",
    "refers to itself": "a: &a {b: *a}\n",
    "refers to itself in a list": "a: &a [*a]\n",
    "refers to each other": "a: &a {b: &b {c: *a, d: *b}}\n",
    "an alias of nothing": "a: *nothing\n",
    "nested mappings": nested(5_000, "{a: "),
    "nested lists": nested(50_000, "[", "]"),
    "nested by indentation": "".join(f"{' ' * n}a:\n" for n in range(500)),
    "3 MB of entries": "".join(f"entry_{n}: {n}\n" for n in range(180_000)),
    "3 MB in a line": f"a: {'x' * 3_000_000}\n",
    "3,000 entries": "".join(f"entry_{n}: {n}\n" for n in range(3_000)),
    "a long name": f"{'x' * 100_000}: 1\n",
    "a long text": f"model: {'x' * 100_000}\n",
    "keys of other types": "1: a\n1.5: b\nnull: c\ntrue: d\n2020-01-01: e\n",
    "a list as a key": "? [a, b]\n: c\n",
    "a mapping as a key": "? {a: b}\n: c\n",
    "a tag that calls": "a: !!python/object/apply:os.system ['touch /tmp/called']\n",
    "an unknown tag": "a: !unknown {b: c}\n",
    "binary": "a: !!binary AAAA\nb: !!set {c, d}\nc: !!omap [a: 1]\n",
    "a date that is none": "a: 2020-99-99\n",
    "a large number": f"stages: {{num_stages: 0x{'f' * 20_000}}}\n",
    "a number of 10^5 digits": f"stages: {{num_stages: {'9' * 100_000}}}\n",
    "numbers of 4,000 digits": f"stages: {{num_stages: {'9' * 4_000}, iterations: {'9' * 4_000}}}\n",
    "no numbers": "stages: {num_stages: .nan, iterations: -.inf}\nseed_everything: .inf\n",
    "digits of other scripts": "stages: {num_stages: ٣, iterations: ²}\n",
    "negative stages": "stages: {num_stages: -5, iterations: -1}\n",
    "no model": "model: null\nstages: 7\n",
    "a class that is a number": "model: {class_path: 7, init_args: 9}\n",
    "a class that is a list": "model: {class_path: [a, b], init_args: [c]}\n",
    "HTML": "model: <script>alert(1)</script>\n'<b>': '</dl></main>'\n",
    "half characters": 'model: "\\ud800"\n',
    "no UTF-8": b"a: \xff\xfe\n",
    "UTF-16": "a: 1".encode("utf-16"),
    "NUL": b"a: \0\n",
    "control characters": b'a: "\\0\\x1b[31m\\r\\n"\n',
    "two documents": "a: 1\n---\nb: 2\n",
    "broken": "model: [",
    "tabs": "a:\n\t- b\n",
    "JSON": '{"model": {"class_path": "x.Y"}}',
}  # fmt: skip
SUMMARIES: dict[str, Callable[[Path], object]] = {
    "10^5 stages": summary(stages=[stage(n, 0.5) for n in range(1, 100_001)]),
    "10^4 stages": summary(stages=[stage(n, 0.5) for n in range(1, 10_001)]),
    "10^4 rows": summary(evaluation=MANY_ROWS * 3),
    "rows of many names": summary(evaluation=MANY_ROWS[:900]),
    "10^5 classes": summary(evaluation=[row("distilled", 0.5, per_class={f"c{n}": 0.5 for n in range(90_000)})]),
    "many rows of 1,000 classes": summary(
        evaluation=[row(f"r{n}", 0.5, per_class={f"c{k}": 0.5 for k in range(1_000)}) for n in range(70)]
    ),
    "10^5 networks": summary(evaluation=[row("distilled", 0.5, accuracies=[0.5] * 10**5, n=10**5)]),
    "10^5 settings": summary(settings={f"s{n}": n for n in range(10**5)}),
    "10^4 times": summary(stages=[stage(1, 0.5, seconds={f"part {n}": 1.0 for n in range(10**4)})]),
    "rows with many entries": summary(evaluation=[row("distilled", 0.5, **{f"e{n}": n for n in range(10**4)})]),
    "rows with deep entries": raw(
        json.dumps({"evaluation": [row("distilled", 0.5, labels="@"), row("x", 0.5)]}).replace('"@"', nested(400))
    ),
    "deep settings": raw(json.dumps({"settings": {"a": "@"}}).replace('"@"', nested(400))),
    "very deep": raw(nested(100_000)),
    "very deep lists": raw(nested(100_000, "[", "]")),
    "a name of a megabyte": summary(dataset={"name": "x" * 10**6}),
    "a method of a megabyte": summary(settings={"method": "x" * 10**6}),
    "a row of a megabyte": summary(evaluation=[row("x" * 10**6, 0.5, protocol="y" * 10**6)]),
    "100 MB": lambda folder: os.truncate(folder / "summary.json", 10**8),
    "HTML": summary(dataset={"name": "</script><script>alert(1)</script>"}, evaluation=[row("<b>", 0.5)]),
    "half characters": summary(dataset={"name": "half \ud800"}),
    "lines and controls": summary(dataset={"name": "a\nb\0c\x1b[31m"}),
    "formulas": summary(dataset={"name": r"$\frac{$ _^ \undefined"}, evaluation=[row("$x$", 0.5)]),
    "no numbers": summary(stages=[stage(1, float("nan")), stage(2, float("inf"))]),
    "no numbers among rows": summary(evaluation=[row("distilled", float("nan"), std=float("inf"))]),
    "large numbers": summary(stages=[stage(1, 1e308, images=10**30)], seed=10**30),
    "4,000 digits": raw(json.dumps({"stages": [stage(1, 0.5, images="@")]}).replace('"@"', "9" * 4_000)),
    "5,000 digits": raw(json.dumps({"stages": [stage(1, 0.5, images="@")]}).replace('"@"', "9" * 5_000)),
    "negative numbers": summary(stages=[stage(-1, -0.5, images=-3)]),
    "748 %": summary(evaluation=[row("distilled", 7.48)]),
    "stages twice": summary(stages=[stage(1, 0.5), stage(1, 0.6)]),
    "texts for numbers": summary(stages=[{**stage(1, 0.5), "images": "many"}]),
    "numbers for texts": summary(dataset={"name": 7}),
    "lists for mappings": summary(settings=[], dataset=[]),
    "null everywhere": summary(**dict.fromkeys(("dataset", "seed", "settings", "stages", "evaluation"))),
    "no entries": raw("{}"),
    "a list": raw("[]"),
    "empty": raw(""),
    "cut off": lambda folder: raw((folder / "summary.json").read_text()[:-200])(folder),
    "zeros": raw(bytes(4096)),
    "no UTF-8": raw(b"\xff\xfe{}"),
    "a byte order mark": raw(b"\xef\xbb\xbf{}"),
    "entries twice": raw('{"seed": 1, "seed": 2, "stages": [], "stages": null}'),
}  # fmt: skip
PICTURES: dict[str, Callable[[Path], object]] = {
    **{name: pictures(1, content) for name, content in BOMBS.items() if name.startswith("PNG")},
    **{f"{name} inside": pictures(1, FOREIGN[name]) for name in ("PostScript", "SVG", "HTML", "text", "nothing")},
    "2,000 pictures": pictures(2_000),
    "20 pictures of a megabyte": pictures(20, with_png(8, 8, (b"prVt", bytes(2**20)))),
    "a picture of 100 MB": lambda folder: (pictures(1)(folder), os.truncate(folder / "images/p0.png", 10**8)),
    "a picture of 5,000 x 5,000": pictures(1, with_png(5_000, 5_000)),
    "a picture that was cut off": pictures(1, with_noise()[:-100]),
    "a picture and a script": pictures(1, with_noise() + b"<script>alert(1)</script>"),
    "an animation": lambda folder: Image.new("L", (9, 9)).save(
        folder / "images/x.png", save_all=True, append_images=[Image.new("L", (9, 9), n) for n in range(200)]
    ),
    "a name that is HTML": pictures(1, name="<script>{}.png"),
    "a name that is not UTF-8": pictures(1, name=os.fsdecode(b"\xff{}.png")),
    "a name of 240 characters": pictures(1, name="x" * 240 + "{}.png"),
    "a folder": lambda folder: (folder / "images/x.png").mkdir(),
    "a pipe": replaced("images/x.png", os.mkfifo),
    "a socket": replaced("images/x.png", listening),
    "a device": replaced("images/x.png", lambda path: path.symlink_to("/dev/zero")),
    "a link to nothing": replaced("images/x.png", lambda path: path.symlink_to("nowhere")),
    "a link to itself": replaced("images/x.png", lambda path: path.symlink_to("x.png")),
}  # fmt: skip
LONG = ["x" * 250, "y" * 250, "\U0001f600 \u202e <b>"]
SETS: dict[str, Callable[[Path], object]] = {
    "1,000 images of a class": distilled(3_000, 4),
    "200 stages": distilled(600, 4, 200),
    "images of 600 pixels": distilled(6, 600),
    "images of one pixel": distilled(6, 1),
    "long names": distilled(6, 8, 2, LONG),
    "many classes": distilled(6, 8, 2, [f"c{n}" for n in range(5_000)]),
    "cut off": lambda folder: os.truncate(folder / "distilled.safetensors", 500),
    "empty": raw("", "distilled.safetensors"),
    "zeros": raw(bytes(4096), "distilled.safetensors"),
    "a header of 2^60 bytes": raw(struct.pack("<Q", 2**60) + b"{}", "distilled.safetensors"),
    "a header of 10^8 bytes": raw(struct.pack("<Q", 10**8) + b"{" * 100, "distilled.safetensors"),
    "2 GB": lambda folder: os.truncate(folder / "distilled.safetensors", 2**31),
    "a pickle": lambda folder: torch.save({"images": torch.zeros(3)}, folder / "distilled.safetensors"),
    "a zip bomb": raw(zlib.compress(bytes(10**7)), "distilled.safetensors"),
}
FILES = ("summary.json", "config.yaml", "distilled.safetensors", "images/easiest.png")
KINDS: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a socket": listening,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a folder": lambda path: path.symlink_to("/"),
}
CASES: dict[str, Callable[[Path], object]] = {
    **{f"config: {name}": config(text) for name, text in CONFIGS.items()},
    **{f"summary: {name}": change for name, change in SUMMARIES.items()},
    **{f"picture: {name}": change for name, change in PICTURES.items()},
    **{f"set: {name}": change for name, change in SETS.items()},
    **{f"{file}: {name}": replaced(file, make) for file in FILES for name, make in KINDS.items()},
    **{
        f"{name} in place of images": lambda folder, make=make: (  # type: ignore[misc]
            (folder / "images").rename(folder / "other"),
            make(folder / "images"),
        )
        for name, make in KINDS.items()
    },
}


def page_of(*folders: Path, output: Path) -> str:
    main(["report", *map(str, folders), "--output", str(output)])
    assert output.stat().st_size < MOST
    return output.read_text()


def shown(page: str, name: str) -> bool:
    """Whether a run has a section with its figures and pictures."""
    section = re.search(rf'<section id="run-\d+" class="run">\n<h2>(?:{name})</h2>.*?</section>', page, re.DOTALL)
    return bool(section and "80.0" in section[0] and "data:image/png;base64," in section[0])


GROUPS = [list(CASES)[first : first + 4] for first in range(0, len(CASES), 4)]


LONG = ("10^5", "10^8")


def marked(cases: list[str]) -> Any:
    """Groups with cases of much data take seconds each."""
    slow = any(size in case for case in cases for size in LONG)
    return pytest.param(cases, marks=[pytest.mark.slow] if slow else [], id=cases[0])


@pytest.mark.parametrize("cases", [marked(cases) for cases in GROUPS])
def test_a_sound_run_is_shown_beside_any_other(cases: list[str], make_run: MakeRun, tmp_path: Path) -> None:
    """Four hostile folders at a time."""
    sound, others = make_run("sound"), [make_run(f"hostile {number}", seed=1) for number, _ in enumerate(cases)]
    for case, other in zip(cases, others, strict=True):
        CASES[case](other)
    page = page_of(*others, sound, output=tmp_path / "report.html")
    assert shown(page, "sound"), cases
    missing = [case for case, other in zip(cases, others, strict=True) if other.name not in page]
    assert not missing, "what is not shown is named"
    assert not re.search(r"<script>alert|<b>", page), cases


STUDIES: dict[str, Callable[[Path], object]] = {
    "10^5 rows": raw(json.dumps({"rows": [{"row": f"r{n}", "mean": 0.5} for n in range(10**5)]}), "study.json"),
    "10^4 columns": raw(json.dumps({"rows": [{f"c{n}": n for n in range(10**4)}] * 20}), "study.json"),
    "rows of other columns": raw(json.dumps({"rows": [{f"c{n}": n} for n in range(3_000)]}), "study.json"),
    "10^5 steps": raw(json.dumps({"steps": [{"command": "pdd fit"}] * 10**5}), "study.json"),
    "10^5 notes": raw(json.dumps({"notes": ["note"] * 10**5}), "study.json"),
    "a note of 10 MB": raw(json.dumps({"notes": ["x" * 10**7], "title": "x" * 10**6}), "study.json"),
    "a command of 10 MB": raw(json.dumps({"steps": [{"command": "x" * 10**7}]}), "study.json"),
    "deep rows": raw('{"rows": [{"row": ' + nested(400) + "}]}", "study.json"),
    "rows of lists": raw(json.dumps({"rows": [{"row": [[1, [2, {"a": []}]]], "mean": [0.5]}] * 2}), "study.json"),
    "rows of null": raw(json.dumps({"rows": [{"row": None, "mean": None}, {}]}), "study.json"),
    "texts for accuracies": raw(json.dumps({"rows": [{"row": "x", "mean": "much", "std": True}] * 2}), "study.json"),
    "HTML": raw(json.dumps({"title": "<b>", "rows": [{"<b>": "<b>"}], "notes": ["<script>alert(1)"]}), "study.json"),
    "100 MB": lambda folder: os.truncate(folder / "study.json", 10**8),
    "very deep": raw(nested(100_000), "study.json"),
    "cut off": raw('{"rows": [', "study.json"),
    "empty": raw("", "study.json"),
    **{f"{file}: {name}": replaced(file, make) for file in ("study.json", "plot.png") for name, make in KINDS.items()},
    **{f"plot: {name}": raw(content, "plot.png") for name, content in BOMBS.items() if name.startswith("PNG")},
}  # fmt: skip


@pytest.mark.parametrize("case", STUDIES)
def test_a_sound_run_is_shown_beside_any_study(
    case: str,
    make_run: MakeRun,
    make_study: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    sound, other = make_run("sound"), make_study("hostile")
    STUDIES[case](other)
    page = page_of(other, sound, output=tmp_path / "report.html")
    assert shown(page, "sound") and "hostile" in page
    assert not re.search(r"<script>alert|<b>", page)


NEIGHBOURS: dict[str, Callable[[Path], object]] = {
    "a pipe": lambda runs: os.mkfifo(runs / "x"),
    "a file": lambda runs: (runs / "x").touch(),
    "a socket": lambda runs: listening(runs / "x"),
    "a link to nothing": lambda runs: (runs / "x").symlink_to("nowhere"),
    "a link to itself": lambda runs: (runs / "x").symlink_to("x"),
    "a link to the folder": lambda runs: (runs / "x").symlink_to("."),
    "a link to a run": lambda runs: (runs / "x").symlink_to("sound"),
    "a link to all": lambda runs: (runs / "x").symlink_to("/"),
    "an empty folder": lambda runs: (runs / "x").mkdir(),
    "a name that is not UTF-8": lambda runs: (runs / os.fsdecode(b"\xff")).mkdir(),
    "a run that is not UTF-8": lambda runs: raw("{}", "summary.json")(made(runs / os.fsdecode(b"\xff"))),
    "a broken run that is not UTF-8": lambda runs: raw("", "summary.json")(made(runs / os.fsdecode(b"\xff"))),
    "a run of two lines": lambda runs: raw("{}", "summary.json")(made(runs / "a\nb")),
    "a run that is HTML": lambda runs: raw("{}", "summary.json")(made(runs / "<b>")),
    "a run of 250 characters": lambda runs: raw("{}", "summary.json")(made(runs / ("x" * 250))),
    "1,100 broken runs": lambda runs: [raw("", "summary.json")(made(runs / f"x{n}")) for n in range(1_100)],
    "a run and a study in one": lambda runs: raw("{}", "study.json")(made(runs / "x")),
}


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("case", NEIGHBOURS)
def test_a_sound_run_is_found_beside_anything(case: str, make_run: MakeRun, tmp_path: Path) -> None:
    runs = make_run("sound").parent
    NEIGHBOURS[case](runs)
    assert shown(page_of(runs, output=tmp_path / "report.html"), "sound|x")
    every = sorted(runs.iterdir()) if case not in ("a link to nothing", "a link to itself") else [runs / "sound"]
    assert shown(page_of(*every, output=tmp_path / "report.html"), "sound|x|[^<]*/sound")


@pytest.mark.parametrize("place", [".", "images", *FILES])
@pytest.mark.parametrize("mode", [0, 0o444])
def test_a_sound_run_is_shown_beside_one_that_may_not_be_read(place: str, mode: int, make_run: MakeRun) -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs, output = Path(folder) / "runs", Path(folder) / "out" / "report.html"
        make_run("sound")
        make_run("hostile").parent.rename(runs)
        for path in (Path(folder), runs):
            path.chmod(0o755)
        made(output.parent).chmod(0o777)
        (runs / "hostile" / place).chmod(mode)
        with as_nobody():
            pages = [page_of(*paths, output=output) for paths in ([runs], [runs / "hostile", runs / "sound"])]
        (runs / "hostile" / place).chmod(0o755)
    assert all(shown(page, "sound") and "hostile" in page for page in pages)


@pytest.mark.parametrize("what", ["summary.json", "config.yaml", "distilled.safetensors", "images", "all"])
def test_a_run_that_is_removed_meanwhile_costs_the_others_nothing(
    what: str,
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sound, other = make_run("sound"), make_run("hostile")
    read = folders_module._read

    def remove_and_read(path: Path, *rest: Any) -> Any:
        if path == other:
            (other if what == "all" else other / what).rename(tmp_path / "gone")
        return read(path, *rest)

    monkeypatch.setattr(folders_module, "_read", remove_and_read)
    page = page_of(other, sound, output=tmp_path / "report.html")
    assert shown(page, "sound") and "hostile" in page


def test_the_page_says_what_was_left_out(make_run: MakeRun, tmp_path: Path) -> None:
    one, two = make_run("one"), make_run("two")
    write_summary(one, stages=[stage(n, 0.5) for n in range(1, 2_001)], evaluation=MANY_ROWS)
    pictures(200)(two)
    (two / "config.yaml").write_text(yaml.safe_dump({f"entry {n}": n for n in range(2_000)}))
    page = page_of(one, two, output=tmp_path / "report.html")
    for words in (
        "lines 1 to 1000 of 2000",
        "the first 300 of 3000 evaluated rows are shown",
        "the first 23 of 201 pictures in images/ are shown",
        "the first 500 of 2000 settings are shown",
    ):
        assert words in page
