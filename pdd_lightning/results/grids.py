"""Grids of synthetic and real images with labels."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import count

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pdd_lightning.data import ForgettingScores
from pdd_lightning.data.splits import ImageSplit, to_unit
from pdd_lightning.data.synthetic import hard_labels

MIN_CELL_SIZE = 56
"""Images with a shorter side (in pixels) are enlarged by an integer factor."""
EXAMPLES_PER_CLASS = 10
GAP = 4
FONT_SIZE = 14
LINE_HEIGHT = FONT_SIZE + GAP
TEXT_COLOR = (30, 30, 30)


def tile_images(pixels: Tensor, columns: int, gap: int) -> Tensor:
    """Place images `[N, C, H, W]` in [0, 1] on white, with gaps in pixels, as a picture `[3, height, width]`, uint8."""
    from torchvision.utils import make_grid  # here because it takes long, and few commands draw

    grid = make_grid(pixels.detach().cpu().float().clamp(0, 1), columns, gap, pad_value=1.0)
    picture: Tensor = (255 * grid).round().to(torch.uint8)
    return picture


def labeled_grid(
    pixels: Tensor,
    labels: Tensor,
    stages: Tensor,
    class_names: Sequence[str],
    title: str,
    captions: Sequence[str] | None = None,
) -> Tensor:
    """Draw a row per class and a column per image, with columns grouped by stage.

    Args:
        pixels: Images `[N, C, H, W]` with 1 or 3 channels; values outside [0, 1] are clipped.
        labels: Classes `[N]` or class probabilities `[N, classes]`.
        stages: Stage of each image `[N]`; 0 if it has none.
        class_names: Name of each class.
        title: Text above the grid.
        captions: Text under each image.

    Returns:
        The picture `[3, height, width]`, uint8.
    """
    cells = F.interpolate(pixels.detach().cpu().float(), scale_factor=max(1, -(-MIN_CELL_SIZE // pixels.shape[-1])))
    cells = F.pad(cells, (0, 0, 0, LINE_HEIGHT if captions else 0), value=1.0)
    rows = hard_labels(labels).tolist()
    first, columns, total = _columns(stages.tolist(), rows)
    sheet = torch.ones(len(class_names) * total, *cells.shape[1:])
    sheet[[row * total + column for row, column in zip(rows, columns, strict=True)]] = cells
    grid = _to_image(tile_images(sheet, total, GAP))

    font = ImageFont.load_default(FONT_SIZE)
    title, *class_names = (" ".join(text.split()) for text in (title, *class_names))  # one line each
    left, top = GAP + max(int(font.getlength(name)) for name in class_names), 2 * LINE_HEIGHT
    height, width = cells.shape[2] + GAP, cells.shape[3] + GAP
    texts = [((GAP, GAP), title)]
    texts += [
        ((left + GAP + column * width, LINE_HEIGHT), f"stage {stage}") for stage, column in first.items() if stage
    ]
    texts += [((GAP, top + row * height + height // 2 - FONT_SIZE), name) for row, name in enumerate(class_names)]
    for row, column, caption in zip(rows, columns, captions or (), strict=captions is not None):
        texts.append(((left + GAP + column * width, top + (row + 1) * height - LINE_HEIGHT), caption))
    wide = max(left + grid.width, *(x + int(font.getlength(text)) + GAP for (x, _), text in texts))
    picture = Image.new("RGB", (wide, top + grid.height), "white")
    picture.paste(grid, (left, top))
    draw = ImageDraw.Draw(picture)
    for position, text in texts:
        draw.text(position, text, fill=TEXT_COLOR, font=font)
    for x in (left + column * width + 1 for column in list(first.values())[1:]):
        draw.line([(x, LINE_HEIGHT), (x, picture.height)], fill=TEXT_COLOR)
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, 3).permute(2, 0, 1)


def example_grid(
    examples: ImageSplit, scores: ForgettingScores, class_names: Sequence[str], name: str, hardest: bool
) -> Tensor:
    """Draw the easiest or hardest real examples of each class with their forgetting scores, most extreme first.

    Args:
        examples: Real examples.
        scores: Their scores, in the same order.
        class_names: Name of each class.
        name: Name of the dataset.
        hardest: Whether to draw the hardest examples.

    Returns:
        The picture `[3, height, width]`, uint8.
    """
    ranking = scores.ranking() if hardest else scores.ranking().flip(0)
    labels = examples.labels[ranking]
    chosen = torch.cat([ranking[labels == label][:EXAMPLES_PER_CLASS] for label in range(len(class_names))])
    captions = [f"{score:.1f}" for score in scores.scores[chosen].tolist()]
    which = "hardest" if hardest else "easiest"
    title = f"{name}, {which} examples; how often they were forgotten (mean; inf: never learned)"
    pixels, labels = to_unit(examples.images[chosen]), examples.labels[chosen]
    return labeled_grid(pixels, labels, torch.zeros_like(labels), class_names, title, captions)


def encode_png(picture: Tensor) -> bytes:
    """Encode a picture `[3, height, width]`, uint8, as PNG."""
    buffer = io.BytesIO()
    _to_image(picture).save(buffer, "PNG")
    return buffer.getvalue()


def count_previous(keys: Iterable[Hashable]) -> list[int]:
    """Return for each key how many equal ones come before it."""
    counters = defaultdict[Hashable, "count[int]"](count)
    return [next(counters[key]) for key in keys]


def _columns(stages: list[int], rows: list[int]) -> tuple[dict[int, int], list[int], int]:
    """Return the first column of each stage, the column of each image, and the number of columns."""
    offsets = count_previous(zip(stages, rows, strict=True))
    first, total = {}, 0
    for stage in sorted(set(stages)):
        first[stage] = total
        total += 1 + max(offset for other, offset in zip(stages, offsets, strict=True) if other == stage)
    return first, [first[stage] + offset for stage, offset in zip(stages, offsets, strict=True)], total


def _to_image(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
