"""Pictures inside a page: PNG files and distilled images as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.errors import DamagedFileError, DataError

CELL = 40
"""Images with a shorter side (in pixels) are enlarged by a whole factor."""
WIDTH = 960
"""Widest sheet, in pixels."""
MOST_CLASSES = 20
MOST_IMAGES = 10
"""More classes, and more images of a class and stage, are left out: the page shall stay small."""


@dataclass(frozen=True)
class Picture:
    """A picture with its own bytes.

    Attributes:
        caption: What it shows.
        uri: The bytes as a `data:` URI.
        width: Width to show it in, in pixels.
        height: Height to show it in, in pixels.
    """

    caption: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Sheets:
    """The images of a distilled set, a sheet per stage: one column per class.

    Attributes:
        class_names: Names of the columns.
        cell: Width of a column in pixels.
        sheets: One per stage.
        left_out: What is not shown; empty if everything is.
    """

    class_names: list[str]
    cell: int
    sheets: list[Picture]
    left_out: str

    @property
    def narrow(self) -> bool:
        """Whether the names need to stand upright."""
        return max(map(len, self.class_names)) * 8 > self.cell


def read_png(path: Path) -> Picture:
    """A PNG file, checked.

    Raises:
        DamagedFileError: It is missing or no picture.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            picture.load()
            width, height = picture.size
    except (OSError, SyntaxError, ValueError) as error:
        raise DamagedFileError(f"the picture {path.name} cannot be read") from error
    return Picture(path.stem.replace("_", " "), _uri(data), width, height)


def noting(path: Path, notes: list[str]) -> list[Picture]:
    """The picture, or a note why there is none."""
    try:
        return [read_png(path)]
    except DamagedFileError as error:
        notes.append(str(error))
        return []


def stage_sheets(path: Path) -> Sheets:
    """The stored images of a distilled set, at their own size; the page enlarges them without smoothing.

    Raises:
        PDDError: The file is missing, damaged, or not a distilled set.
    """
    dataset = DistilledDataset(path, stored=True)
    pixels = dataset.to_pixels()
    if pixels.shape[1] not in (1, 3):
        raise DataError(f"{path.name}: images of {pixels.shape[1]} channels are not shown")
    classes = dataset.labels if dataset.labels.ndim == 1 else dataset.labels.argmax(1)
    size = pixels.shape[-1]
    gap = max(1, size // 16)
    shown = min(len(dataset.class_names), MOST_CLASSES, max(1, WIDTH // (size + gap)))
    factor = max(1, min(-(-CELL // size), WIDTH // (shown * (size + gap))))
    sheets, most = [], 0
    for stage in range(1, dataset.num_stages + 1):
        members = [pixels[(dataset.stages == stage) & (classes == label)] for label in range(shown)]
        most = max(most, *map(len, members))
        sheet = _sheet([images[:MOST_IMAGES] for images in members], gap)
        caption = f"stage {stage}"
        sheets.append(Picture(caption, _uri(_png(sheet)), sheet.shape[1] * factor, sheet.shape[0] * factor))
    left_out = _left_out(shown, len(dataset.class_names), most)
    return Sheets(dataset.class_names[:shown], (size + gap) * factor, sheets, left_out)


def _sheet(columns: list[Tensor], gap: int) -> Tensor:
    """Images `[n, C, H, W]` per column as RGBA `[height, width, 4]` uint8, see-through between the images."""
    rows = max(1, *map(len, columns))
    height, width = columns[0].shape[2] + gap, columns[0].shape[3] + gap
    sheet = torch.zeros(rows * height, len(columns) * width, 4, dtype=torch.uint8)
    for column, images in enumerate(columns):
        for row, image in enumerate((images * 255).round().to(torch.uint8)):
            place = sheet[row * height : (row + 1) * height - gap, column * width : (column + 1) * width - gap]
            place[..., :3] = image.expand(3, -1, -1).permute(1, 2, 0)
            place[..., 3] = 255
    return sheet


def _left_out(shown: int, classes: int, most: int) -> str:
    parts = [f"{shown} of {classes} classes"] if shown < classes else []
    parts += [f"{MOST_IMAGES} of up to {most} images per class and stage"] if most > MOST_IMAGES else []
    return f"Shown are the first {' and '.join(parts)}." if parts else ""


def _png(sheet: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGBA", (sheet.shape[1], sheet.shape[0]), sheet.numpy().tobytes()).save(buffer, "PNG")
    return buffer.getvalue()


def _uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
