"""Images of strangers: formats that start programs, bombs, damage, and folders that lead in circles or nowhere."""

import io
import os
import random
import shutil
import signal
import socket
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import EpsImagePlugin, Image

from pdd_lightning.data.folder import FORMATS, ImageFolder, decode_image, read_images
from pdd_lightning.data.formats import open_distilled
from pdd_lightning.data.standard_sets import TinyImageNet
from pdd_lightning.errors import DataError, PDDError
from tests.tiny import NAMES, Blobs

PICTURE = Image.frombytes("RGB", (8, 8), bytes(range(192)))
Image.init()


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Fails what takes longer."""
    former = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it took too long"))
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Nothing may wait for ever, such as for a named pipe."""
    with limited(20):
        yield


@pytest.fixture(autouse=True)
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No image may start a program."""

    def start(*args: Any, **kwargs: Any) -> None:
        pytest.fail("a program was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", start)
    monkeypatch.setattr("subprocess.Popen", start)


def saved(form: str) -> bytes:
    """A file of a format, or nothing where Pillow knows but its name."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), suppress(OSError, ValueError):
        warnings.simplefilter("ignore", DeprecationWarning)
        PICTURE.save(buffer, form)
    return buffer.getvalue()


def refusal(act: Callable[[], object]) -> str:
    """The one sentence by which something is refused."""
    with pytest.raises(PDDError) as refused:
        act()
    assert "\n" not in str(refused.value)
    return str(refused.value)


# Formats that are not opened: what Pillow can write, and beginnings of what it can read.
FOREIGN = {form: data for form in Image.SAVE if form not in (*FORMATS, "MPO") and (data := saved(form))} | {
    "PostScript": b"%!PS-Adobe-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(%pipe%id) (w) file closefile\nshowpage\n",
    "EPS with a preview": b"\xc5\xd0\xd3\xc6"
    + struct.pack("<7I", 30, 90, 0, 0, 0, 0, 0)
    + b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "WMF": b"\xd7\xcd\xc6\x9a\x00\x00" + struct.pack("<4hH", 0, 0, 8, 8, 96) + bytes(60),
    "EMF": b"\x01\x00\x00\x00" + bytes(36) + b" EMF" + bytes(60),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>',
    "XPM": b'/* XPM */\nstatic char *x[] = {"1 1 1 1", "a c #000000", "a"};',
    "FITS": b"SIMPLE  =                    T" + b" " * 2850,
    "GRIB": b"GRIB" + bytes(4) + b"\x01" + bytes(50),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(60),
    "BUFR": b"BUFR" + bytes(60),
    "PSD": b"8BPS\x00\x01" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(12),
    "SUN": struct.pack(">8I", 0x59A66A95, 8, 8, 24, 192, 1, 0, 0) + bytes(192),
    "FTEX": b"FTEX" + bytes(60),
    "MPEG": b"\x00\x00\x01\xb3" + bytes(60),
    "CUR": b"\x00\x00\x02\x00\x01\x00" + bytes(60),
    "DCX": b"\xb1\x68\xde\x3a" + bytes(60),
    "PIXAR": b"\x80\xe8\x00\x00" + bytes(600),
    "FLI": b"\x00\x00\x00\x00\x11\xaf" + bytes(200),
    "OLE": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
    "HTML": b"<html><script>alert(1)</script></html>",
    "a script": b"#!/bin/sh\ntouch /tmp/started\n",
    "a pickle": b"cos\nsystem\n(S'id'\ntR.",
    "zip": b"PK\x03\x04" + bytes(60),
    "text": b"no image",
    "nothing": b"",
}


def through_a_folder(path: Path, content: bytes) -> str:
    for name in ("a", "b"):
        (path / "train" / name).mkdir(parents=True)
        (path / "train" / name / "0.png").write_bytes(saved("PNG"))
    (path / "train" / "a" / "x.png").write_bytes(content)
    return refusal(ImageFolder(str(path)).setup)


def through_parquet(path: Path, content: bytes) -> str:
    columns = {"image": [{"bytes": content, "path": "x.png"}] * 3, "label": [0, 1, 2]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path / "x.parquet")
    return refusal(lambda: open_distilled(path / "x.parquet", Blobs()))


def through_files_of_a_set(path: Path, content: bytes) -> str:
    for name in NAMES:
        (path / "train" / name).mkdir(parents=True)
        (path / "train" / name / "stage01_00000.png").write_bytes(saved("PNG"))
    (path / "train" / NAMES[1] / "x.png").write_bytes(content)
    return refusal(lambda: open_distilled(path, Blobs()))


ROUTES = {"folder": through_a_folder, "parquet": through_parquet, "files of a set": through_files_of_a_set}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("form", FOREIGN)
def test_only_known_formats_are_opened_whatever_the_file_is_called(form: str, route: str, tmp_path: Path) -> None:
    message = ROUTES[route](tmp_path, FOREIGN[form])
    assert "cannot read image" in message and ("0 of" if route == "parquet" else "x.png") in message


@pytest.mark.parametrize("form", [*FORMATS, "MPO"])
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tiff"])
def test_known_formats_are_opened_whatever_the_file_is_called(form: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(saved(form))
    assert decode_image(tmp_path / name).shape == (8, 8, 3)


def with_png(width: int, height: int, *more: tuple[bytes, bytes]) -> bytes:
    """A small PNG file that claims a size, with further chunks."""
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(bytes(25 * 8))), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def patched(form: str, place: int, fields: str, *values: int) -> bytes:
    data = bytearray(saved(form))
    struct.pack_into(fields, data, place, *values)
    return bytes(data)


def with_jpeg(width: int, height: int) -> bytes:
    data = saved("JPEG")
    return patched("JPEG", data.index(b"\xff\xc0") + 5, ">2H", height, width)


def with_tiff(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 8)]
    entries = b"".join(struct.pack("<2H2I", tag, 4, 1, value) for tag, value in tags)
    return b"II*\x00" + struct.pack("<I", 16) + bytes(8) + struct.pack("<H", len(tags)) + entries + bytes(4)


BOMB = zlib.compress(bytes(2**24))
BOMBS = {
    "PNG of 10,000 x 10,000": with_png(10_000, 10_000),
    "PNG of 30,000 x 30,000": with_png(30_000, 30_000),
    "PNG of 10^5 x 10^5": with_png(10**5, 10**5),
    "PNG of 2^31 - 1 x 1": with_png(2**31 - 1, 1),
    "PNG of 2^31 - 1 x 2^31 - 1": with_png(2**31 - 1, 2**31 - 1),
    "PNG with a text that unfolds": with_png(8, 8, (b"zTXt", b"a\0\0" + BOMB)),
    "PNG with an international text that unfolds": with_png(8, 8, (b"iTXt", b"a\0\1\0\0\0" + BOMB)),
    "JPEG of 65,535 x 65,535": with_jpeg(65_535, 65_535),
    "JPEG of 10,000 x 10,000": with_jpeg(10_000, 10_000),
    "GIF of 65,535 x 65,535": patched("GIF", 6, "<2H", 65_535, 65_535),
    "GIF of 10,000 x 10,000": patched("GIF", 6, "<2H", 10_000, 10_000),
    "BMP of 30,000 x 30,000": patched("BMP", 18, "<2i", 30_000, 30_000),
    "BMP of 10^9 x 10^9": patched("BMP", 18, "<2i", 10**9, 10**9),
    "TIFF of 30,000 x 30,000": with_tiff(30_000, 30_000),
    "TIFF of 10^9 x 10^9": with_tiff(10**9, 10**9),
    "WEBP of 16,383 x 16,383": patched("WEBP", 26, "<2H", 16_383, 16_383),
    "PPM of 10^5 x 10^5": b"P6 100000 100000 255\n" + bytes(100),
    "PPM of 10^12 x 1": b"P6 1000000000000 1 255\n" + bytes(100),
    "PGM of 30,000 x 30,000": b"P5 30000 30000 255\n" + bytes(100),
}


@pytest.mark.parametrize("route", ["folder", "parquet"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused(bomb: str, route: str, tmp_path: Path) -> None:
    assert "cannot read image" in ROUTES[route](tmp_path, BOMBS[bomb])


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(share * len(data))]


def bytes_changed(seed: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        draw, changed = random.Random(seed), bytearray(data)
        for _ in range(4):
            changed[draw.randrange(len(data))] = draw.randrange(256)
        return bytes(changed)

    return change


DAMAGE = {f"first {100 * share:.0f} %": cut(share) for share in (0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98)}
DAMAGE |= {"without its last byte": lambda data: data[:-1], "zeros": lambda data: bytes(len(data))}
DAMAGE |= {"zeros at the end": lambda data: data[: len(data) // 2] + bytes(len(data) // 2)}
DAMAGE |= {f"bytes changed, {seed}": bytes_changed(seed) for seed in range(4)}
LARGER = Image.effect_noise((64, 64), 90).convert("RGB")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_image_is_named_or_nothing_of_it_is_missing(form: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    LARGER.save(path, form)
    whole = torch.from_numpy(decode_image(path).copy())
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    try:
        read = read_images([path])[0]
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        # A changed byte need not be noticed by a format without checksums; one that is missing must be.
        assert "changed" in damage or "zeros" in damage or torch.equal(read.permute(1, 2, 0), whole)


def image(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), shade).save(path)


def link(path: Path, target: str | Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        former = os.getcwd()  # noqa: PTH109
        os.chdir(path.parent)  # a socket's path must be short
        one.bind(path.name)
        os.chdir(former)


def moved(path: Path, target: Path) -> None:
    shutil.move(path, target)
    link(path, target)


def deep(path: Path) -> None:
    image(path.joinpath(*"x" * 300) / "9.png")


def loops(root: Path, *links: tuple[str, str]) -> None:
    for place, target in links:
        link(root / place, target)


def outside(root: Path) -> Path:
    for number in range(2):
        image(root.parent / "pool" / f"{number}.png", 200 + number)
    return root.parent / "pool"


# What is done to a set of three images in each of the classes a and b, and how many training images they have then.
LINKS: dict[str, tuple[Callable[[Path], object], tuple[int, int]]] = {
    "none": (lambda root: None, (3, 3)),
    "to itself": (lambda root: loops(root, ("train/a/l", ".")), (3, 3)),
    "to the folder above": (lambda root: loops(root, ("train/a/l", "..")), (3, 3)),
    "to the root": (lambda root: loops(root, ("train/a/l", "../..")), (3, 3)),
    "to all files": (lambda root: loops(root, ("train/a/l", "/")), (3, 3)),
    "by an absolute path": (lambda root: link(root / "train/a/l", root / "train/a"), (3, 3)),
    "two loops": (lambda root: loops(root, ("train/a/l", "."), ("train/a/m", ".")), (3, 3)),
    "loops in both classes": (lambda root: loops(root, ("train/a/l", ".."), ("train/b/l", "..")), (3, 3)),
    "to each other": (lambda root: loops(root, ("train/a/l", "../b"), ("train/b/l", "../a")), (3, 3)),
    "twenty loops": (lambda root: loops(root, *((f"train/a/l{n}", ".") for n in range(20))), (3, 3)),
    "loops in a sub-folder": (
        lambda root: (image(root / "train/a/s/9.png"), loops(root, ("train/a/s/l", ".."))),
        (4, 3),
    ),
    "a link to a link": (lambda root: loops(root, ("train/a/l", "m"), ("train/a/m", ".")), (3, 3)),
    "links to each other": (lambda root: loops(root, ("train/a/l", "m"), ("train/a/m", "l")), (3, 3)),
    "a link to nothing": (lambda root: loops(root, ("train/a/l", "nowhere")), (3, 3)),
    "a hidden link": (lambda root: loops(root, ("train/.l", ".")), (3, 3)),
    "to a class": (lambda root: loops(root, ("train/a/l", "../b")), (3, 3)),
    "to a folder outside": (lambda root: link(root / "train/a/l", outside(root)), (5, 3)),
    "twice to a folder outside": (
        lambda root: (link(root / "train/a/l", outside(root)), link(root / "train/a/m", outside(root))),
        (5, 3),
    ),
    "to a folder outside from both classes": (
        lambda root: (link(root / "train/a/l", outside(root)), link(root / "train/b/l", outside(root))),
        (5, 3),
    ),
    "to a folder outside that leads back": (
        lambda root: (link(root / "train/a/l", outside(root)), link(outside(root) / "back", root / "train/b")),
        (5, 3),
    ),
    "to a folder outside that leads to itself": (
        lambda root: (link(root / "train/a/l", outside(root)), link(outside(root) / "back", ".")),
        (5, 3),
    ),
    "to a folder outside from training and test part": (
        lambda root: (
            link(root / "train/a/l", outside(root)),
            image(root / "test/a/0.png"),
            link(root / "test/a/l", outside(root)),
        ),
        (5, 3),
    ),
    "a class that is a link": (lambda root: moved(root / "train/a", root.parent / "a"), (3, 3)),
    "a training part that is a link": (lambda root: moved(root / "train", root.parent / "t"), (3, 3)),
    "a root that is a link": (lambda root: moved(root, root.parent / "r"), (3, 3)),
    "images that are links": (lambda root: moved(root / "train/a/0.png", root.parent / "z.png"), (3, 3)),
    "300 folders deep": (lambda root: deep(root / "train/a"), (4, 3)),
    "a folder called as an image": (lambda root: image(root / "train/a/x.png/9.png"), (4, 3)),
    "a pipe of another name": (lambda root: pipe(root / "train/a/pipe"), (3, 3)),
    "a file beside the classes": (lambda root: image(root / "train/x.png"), (3, 3)),
    "a pipe beside the classes": (lambda root: pipe(root / "train/x.png"), (3, 3)),
    "images whose names are not UTF-8": (lambda root: image(root / "train/a" / os.fsdecode(b"\xff.png")), (4, 3)),
    "class names of many kinds": (
        lambda root: (root / "train/b").rename(root / "train/ \u202e'\"<b>&;$(id)\\ü😀"),
        (3, 3),
    ),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        for number in range(3):
            image(tmp_path / "set" / "train" / name / f"{number}.png", number + 10 * (name == "b"))
    return tmp_path / "set"


@pytest.mark.parametrize("case", LINKS)
def test_every_image_is_found_once(case: str, root: Path) -> None:
    change, expected = LINKS[case]
    change(root)
    train, test, _ = ImageFolder(str(root)).load()
    assert train.class_counts(2).tolist() == sorted(expected, reverse=case != "class names of many kinds")
    assert test is None or len(test) == 1


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (lambda root: pipe(root / "train/a/x.png"), "x.png"),
    "a pipe in place of an image": (
        lambda root: ((root / "train/a/0.png").unlink(), pipe(root / "train/a/0.png")),
        "0.png",
    ),
    "a pipe in the test part": (
        lambda root: ((root / "test/a").mkdir(parents=True), pipe(root / "test/a/x.png")),
        "x.png",
    ),
    "a pipe in a sub-folder": (lambda root: ((root / "train/a/s").mkdir(), pipe(root / "train/a/s/x.png")), "x.png"),
    "a link to a pipe": (lambda root: (pipe(root / "p"), link(root / "train/a/x.png", root / "p")), "x.png"),
    "a socket": (lambda root: listening(root / "train/a/x.png"), "x.png"),
    "a device": (lambda root: link(root / "train/a/x.png", "/dev/zero"), "x.png"),
    "a terminal": (lambda root: link(root / "train/a/x.png", "/dev/tty"), "x.png"),
    "an image that is a link to nothing": (lambda root: link(root / "train/a/x.png", "nowhere"), "x.png"),
    "an image that is a link to itself": (lambda root: link(root / "train/a/x.png", "x.png"), "x.png"),
    "a pipe called train": (lambda root: (shutil.rmtree(root / "train"), pipe(root / "train")), "no images found"),
    "a file called train": (
        lambda root: (shutil.rmtree(root / "train"), image(root / "x.png"), (root / "x.png").rename(root / "train")),
        "no images found",
    ),
    "a pipe as root": (lambda root: (shutil.rmtree(root), pipe(root)), "is no folder"),
    "a file as root": (lambda root: (shutil.rmtree(root), root.write_text("x")), "is no folder"),
    "no root": (shutil.rmtree, "does not exist"),
    "an empty root": (lambda root: shutil.rmtree(root / "train"), "no images found"),
    "no class": (lambda root: (shutil.rmtree(root / "train"), (root / "train").mkdir()), "no images found"),
    "hidden classes alone": (
        lambda root: [(root / "train" / name).rename(root / "train" / f".{name}") for name in "ab"],
        "no images found",
    ),
    "one class alone": (lambda root: shutil.rmtree(root / "train/b"), "a single class"),
    "one class alone with a test part": (
        lambda root: (shutil.rmtree(root / "train/b"), image(root / "test/a/0.png")),
        "a single class",
    ),
    "an empty class": (lambda root: (root / "train/c").mkdir(), "'c' has 0 images"),
    "a class of other files": (
        lambda root: ((root / "train/c").mkdir(), (root / "train/c/x.txt").touch()),
        "'c' has 0 images",
    ),
    "a class of hidden images": (lambda root: image(root / "train/c/.x.png"), "'c' has 0 images"),
    "empty classes alone": (lambda root: [file.unlink() for file in root.rglob("*.png")], "none holds an image"),
    "a class of one image": (lambda root: image(root / "train/c/0.png"), "'c' has 1 image"),
    "a class that is a link to another": (lambda root: link(root / "train/c", "a"), "train/c is a link"),
    "a class that is a link to all": (lambda root: link(root / "train/c", "."), "train/c is a link"),
    "a class that is a link to the root": (lambda root: link(root / "train/c", ".."), "train/c is a link"),
    "a class that is a link to part of another": (
        lambda root: (image(root / "train/a/s/9.png"), link(root / "train/c", "a/s")),
        "train/c is a link",
    ),
    "two classes that are links to one": (
        lambda root: (link(root / "train/c", outside(root)), link(root / "train/d", outside(root))),
        "train/d is a link",
    ),
    "a test part that is a link": (lambda root: link(root / "test", "train"), "test/a is a link"),
    "a test class that is a link": (lambda root: link(root / "test/a", "../train/a"), "test/a is a link"),
    "a test class that is a link to another": (lambda root: link(root / "test/a", "../train/b"), "test/a is a link"),
    "an unknown test class": (lambda root: image(root / "test/c/0.png"), "lacks: c"),
    "a class that is not UTF-8": (lambda root: image(root / "train" / os.fsdecode(b"\xff") / "0.png"), "UTF-8"),
    "a class in Latin-1": (
        lambda root: image(root / "train" / os.fsdecode("für".encode("latin-1")) / "0.png"),
        "UTF-8",
    ),
    "a test class that is not UTF-8": (lambda root: image(root / "test" / os.fsdecode(b"\xff") / "0.png"), "UTF-8"),
    "an empty class that is not UTF-8": (lambda root: (root / "train" / os.fsdecode(b"\xff")).mkdir(), "UTF-8"),
    "a class of two lines": (lambda root: image(root / "train/c\nd/0.png"), "plain UTF-8"),
    "a class of an escape sequence": (lambda root: image(root / "train/\x1b[31mc/0.png"), "plain UTF-8"),
    "images of two sizes": (lambda root: Image.new("L", (4, 5)).save(root / "train/a/9.png"), "differ in size"),
    "images that are not square": (
        lambda root: [Image.new("L", (4, 5)).save(file) for file in root.rglob("*.png")],
        "square",
    ),
    "16 bits per channel": (lambda root: Image.new("I;16", (4, 4)).save(root / "train/a/9.png"), "pixel format I;16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_cannot_be_used_is_refused_in_a_sentence(case: str, root: Path) -> None:
    change, words = REFUSED[case]
    change(root)
    assert words in refusal(lambda: ImageFolder(str(root)).setup())


@pytest.mark.parametrize("name", [b"\xff", b"a\nb", "für".encode("latin-1")])
def test_a_root_whose_name_reports_cannot_state_is_refused(name: bytes, root: Path) -> None:
    there = root.rename(root.with_name(os.fsdecode(name)))
    assert "rename it" in refusal(lambda: ImageFolder(str(there)))
    link(root, there)
    assert "rename it" in refusal(lambda: ImageFolder(str(root)))


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_a_root_that_no_folder_can_have_is_refused(name: str) -> None:
    refusal(lambda: ImageFolder(name).setup())


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the right of the superuser to read everything."""
    former = os.geteuid()
    if former == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(former)


@pytest.mark.parametrize(
    ("place", "mode", "words"),
    [
        (".", 0, "cannot be listed|cannot list"),
        ("train", 0, "cannot list"),
        ("train", 0o444, "no images found|cannot list"),
        ("train/a", 0, "cannot list"),
        ("train/a/s", 0, "cannot list"),
        ("train/a/0.png", 0, "cannot read image .*0.png"),
        ("train/a/s/0.png", 0, "cannot read image .*0.png"),
        ("test", 0, "cannot list"),
        ("test/a", 0, "cannot list"),
        ("test/a/0.png", 0, "cannot read image .*0.png"),
    ],
)
def test_what_one_may_not_read_is_named(place: str, mode: int, words: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        for name in ("train/a", "train/a/s", "train/b", "test/a"):
            for number in range(2):
                image(root / name / f"{number}.png")
        (root / place).chmod(mode)
        with as_nobody(), pytest.raises(DataError, match=words):
            ImageFolder(str(root)).setup()
        (root / place).chmod(0o755)


def of_tiny_imagenet(root: Path) -> None:
    for number in range(2):
        image(root / "train/n1/images" / f"{number}.JPEG")
        image(root / "train/n2/images" / f"{number}.JPEG")
    image(root / "val/images/0.JPEG")
    (root / "val/val_annotations.txt").write_text("0.JPEG\tn1\t0\t0\t1\t1\n")
    (root / "wnids.txt").write_text("n1\nn2\n")
    (root / "words.txt").write_text("n1\tone\nn2\ttwo\n")


@pytest.mark.parametrize("kind", ["pipe", "not UTF-8", "folder", "EPS"])
@pytest.mark.parametrize("place", ["wnids.txt", "words.txt", "val/val_annotations.txt", "train/n1/images/0.JPEG"])
def test_files_of_tiny_imagenet_are_not_trusted_either(place: str, kind: str, tmp_path: Path) -> None:
    of_tiny_imagenet(tmp_path)
    TinyImageNet(str(tmp_path)).load()
    path = tmp_path / place
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        pipe(path)
    else:
        path.write_bytes(FOREIGN["PostScript"] + b"\xff" if kind == "EPS" else b"n1\xff\n")
    assert path.name in refusal(lambda: TinyImageNet(str(tmp_path)).load())
