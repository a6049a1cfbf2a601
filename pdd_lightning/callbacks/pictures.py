"""Pictures of synthetic images: labelled grids in true colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pdd_lightning.data import ForgettingScores, ImageSplit, to_unit

SMALLEST_CELL = 56
"""Images with a shorter side (in pixels) are enlarged by a whole factor, without smoothing."""
EXAMPLES = 10
"""Real examples of each class in a picture."""
GAP = 4
STAGE_GAP = 16
FONT_SIZE = 14
INK = (30, 30, 30)
PAPER = (255, 255, 255)


class _Place(NamedTuple):
    """Where an image stands: class row, left edge in pixels, and whether it begins a stage's group."""

    row: int
    x: int
    opens_group: bool


def labelled_grid(
    pixels: Tensor,
    labels: Tensor,
    stages: Tensor,
    class_names: Sequence[str],
    title: str,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """One row per class, one column per image, columns grouped by stage.

    Args:
        pixels: Images `[N, C, H, W]` in [0, 1] with 1 or 3 channels; values outside are clipped.
        labels: Classes `[N]`, or class probabilities `[N, classes]` (the likeliest class counts).
        stages: Stage of each image `[N]`; 0 where it has none, and no stage is named.
        class_names: Names of the rows.
        title: Text above the grid.
        captions: Text under each image.
    """
    font = ImageFont.load_default(FONT_SIZE)
    factor = max(1, -(-SMALLEST_CELL // pixels.shape[-1]))
    cell = pixels.shape[-1] * factor
    margin = 3 * GAP + max(int(font.getlength(name)) for name in class_names)
    classes = labels if labels.ndim == 1 else labels.argmax(1)
    places = _places(classes.tolist(), stages.tolist(), margin, cell)
    top = 2 * FONT_SIZE + 4 * GAP
    width = max(max(place.x for place in places) + cell, GAP + int(font.getlength(title))) + GAP
    pitch = cell + GAP + (FONT_SIZE + GAP if captions else 0)
    sheet = Image.new("RGB", (width, top + len(class_names) * pitch), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, fill=INK, font=font)
    for row, name in enumerate(class_names):
        draw.text((GAP, top + row * pitch + cell // 2), name, fill=INK, font=font, anchor="lm")
    for image, stage, place in zip(pixels, stages.tolist(), places, strict=True):
        if place.opens_group and stage:
            draw.text((place.x, FONT_SIZE + 3 * GAP), f"stage {stage}", fill=INK, font=font)
        sheet.paste(_tile(image, factor), (place.x, top + place.row * pitch))
    for caption, place in zip(captions or (), places, strict=captions is not None):
        draw.text((place.x, top + place.row * pitch + cell), caption, fill=INK, font=font)
    return sheet


def example_grid(
    examples: ImageSplit, scores: ForgettingScores, class_names: Sequence[str], name: str, hardest: bool
) -> Image.Image:
    """The easiest or hardest real examples of each class, each with its forgetting score underneath.

    Args:
        examples: Real examples.
        scores: Their scores, in their order.
        class_names: Names of the rows.
        name: Name of the dataset, for the title.
        hardest: Show the hardest, hardest first; else the easiest, easiest first.
    """
    ranking = scores.ranking() if hardest else scores.ranking().flip(0)
    labels = examples.labels[ranking]
    chosen = torch.cat([ranking[labels == label][:EXAMPLES] for label in range(len(class_names))])
    captions = [f"{score:.1f}" for score in scores.scores[chosen].tolist()]
    which = "hardest" if hardest else "easiest"
    title = f"{name}, {which} examples; how often they were forgotten (mean; inf: never learned)"
    pixels, labels = to_unit(examples.images[chosen]), examples.labels[chosen]
    return labelled_grid(pixels, labels, torch.zeros_like(labels), class_names, title, captions)


def as_tensor(picture: Image.Image) -> Tensor:
    """A picture as a uint8 tensor `[3, H, W]`, for loggers."""
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, 3).permute(2, 0, 1)


def _places(classes: list[int], stages: list[int], margin: int, cell: int) -> list[_Place]:
    """Images of one class stand in a row; every stage is as wide as its fullest class."""
    counts: dict[tuple[int, int], int] = {}
    offsets = []
    for key in zip(stages, classes, strict=True):
        offsets.append(counts.get(key, 0))
        counts[key] = offsets[-1] + 1
    left, x = {}, margin
    for stage in sorted(set(stages)):
        left[stage] = x
        x += max(n for (s, _), n in counts.items() if s == stage) * (cell + GAP) + STAGE_GAP
    opened: set[int] = set()
    places = []
    for label, stage, offset in zip(classes, stages, offsets, strict=True):
        places.append(_Place(label, left[stage] + offset * (cell + GAP), stage not in opened))
        opened.add(stage)
    return places


def _tile(image: Tensor, factor: int) -> Image.Image:
    """One image `[C, H, W]` as an enlarged RGB picture."""
    bytes_ = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1)
    height, width = bytes_.shape[1:]
    tile = Image.frombytes("RGB", (width, height), bytes_.permute(1, 2, 0).contiguous().numpy().tobytes())
    return tile.resize((width * factor, height * factor), Image.Resampling.NEAREST)
