"""Pictures of synthetic and real images: grids in true colours, with labels."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pdd_lightning.data import ForgettingScores
from pdd_lightning.data.splits import ImageSplit, to_unit

SMALLEST_CELL = 56
"""Images with a shorter side (in pixels) are enlarged by a whole factor, without smoothing."""
EXAMPLES = 10
"""Real examples of each class in a picture."""
GAP = 4
FONT_SIZE = 14
LINE = FONT_SIZE + GAP
INK = (30, 30, 30)
PAPER = (255, 255, 255)


def tiled(pixels: Tensor, columns: int, gap: int) -> Tensor:
    """Images side by side on white.

    Args:
        pixels: Images `[N, C, H, W]` in [0, 1] with 1 or 3 channels; values outside are clipped.
        columns: Images in a row.
        gap: Pixels around and between them.

    Returns:
        One picture `[3, height, width]`, uint8.
    """
    from torchvision.utils import make_grid  # importing it takes long, and not every command draws

    grid = make_grid(pixels.detach().cpu().float().clamp(0, 1), columns, gap, pad_value=1.0)
    picture: Tensor = (255 * grid).round().to(torch.uint8)
    return picture


def labelled_grid(
    pixels: Tensor,
    labels: Tensor,
    stages: Tensor,
    class_names: Sequence[str],
    title: str,
    captions: Sequence[str] | None = None,
) -> Tensor:
    """One row per class, one column per image, columns grouped by stage.

    Args:
        pixels: Images `[N, C, H, W]` in [0, 1] with 1 or 3 channels; values outside are clipped.
        labels: Classes `[N]`, or class probabilities `[N, classes]` (the likeliest class counts).
        stages: Stage of each image `[N]`; 0 where it has none, and no stage is named.
        class_names: Names of the rows.
        title: Text above the grid.
        captions: Text under each image.

    Returns:
        The picture `[3, height, width]`, uint8.
    """
    cells = F.interpolate(pixels.detach().cpu().float(), scale_factor=max(1, -(-SMALLEST_CELL // pixels.shape[-1])))
    cells = F.pad(cells, (0, 0, 0, LINE if captions else 0), value=1.0)
    rows = (labels if labels.ndim == 1 else labels.argmax(1)).tolist()
    first, columns, total = _columns(stages.tolist(), rows)
    sheet = torch.ones(len(class_names) * total, *cells.shape[1:])
    sheet[[row * total + column for row, column in zip(rows, columns, strict=True)]] = cells
    grid = _as_image(tiled(sheet, total, GAP))

    font = ImageFont.load_default(FONT_SIZE)
    title, *class_names = (" ".join(text.split()) for text in (title, *class_names))  # lines cannot be measured
    left, top = GAP + max(int(font.getlength(name)) for name in class_names), 2 * LINE
    height, width = cells.shape[2] + GAP, cells.shape[3] + GAP
    texts = [((GAP, GAP), title)]
    texts += [((left + GAP + column * width, LINE), f"stage {stage}") for stage, column in first.items() if stage]
    texts += [((GAP, top + row * height + height // 2 - FONT_SIZE), name) for row, name in enumerate(class_names)]
    for row, column, caption in zip(rows, columns, captions or (), strict=captions is not None):
        texts.append(((left + GAP + column * width, top + (row + 1) * height - LINE), caption))
    wide = max(left + grid.width, *(x + int(font.getlength(text)) + GAP for (x, _), text in texts))
    picture = Image.new("RGB", (wide, top + grid.height), PAPER)
    picture.paste(grid, (left, top))
    draw = ImageDraw.Draw(picture)
    for place, text in texts:
        draw.text(place, text, fill=INK, font=font)
    for column in list(first.values())[1:]:
        draw.line([(left + column * width + 1, LINE), (left + column * width + 1, picture.height)], fill=INK)
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, 3).permute(2, 0, 1)


def example_grid(
    examples: ImageSplit, scores: ForgettingScores, class_names: Sequence[str], name: str, hardest: bool
) -> Tensor:
    """The easiest or hardest real examples of each class, each with its forgetting score underneath.

    Args:
        examples: Real examples.
        scores: Their scores, in their order.
        class_names: Names of the rows.
        name: Name of the dataset, for the title.
        hardest: Show the hardest, hardest first; else the easiest, easiest first.

    Returns:
        The picture `[3, height, width]`, uint8.
    """
    ranking = scores.ranking() if hardest else scores.ranking().flip(0)
    labels = examples.labels[ranking]
    chosen = torch.cat([ranking[labels == label][:EXAMPLES] for label in range(len(class_names))])
    captions = [f"{score:.1f}" for score in scores.scores[chosen].tolist()]
    which = "hardest" if hardest else "easiest"
    title = f"{name}, {which} examples; how often they were forgotten (mean; inf: never learned)"
    pixels, labels = to_unit(examples.images[chosen]), examples.labels[chosen]
    return labelled_grid(pixels, labels, torch.zeros_like(labels), class_names, title, captions)


def png_of(picture: Tensor) -> bytes:
    """A picture `[3, height, width]`, uint8, as a PNG file."""
    buffer = io.BytesIO()
    _as_image(picture).save(buffer, "PNG")
    return buffer.getvalue()


def ranks(keys: Iterable[Hashable]) -> list[int]:
    """How many equal keys stand before each."""
    seen: Counter[Hashable] = Counter()
    found = []
    for key in keys:
        found.append(seen[key])
        seen[key] += 1
    return found


def _columns(stages: list[int], rows: list[int]) -> tuple[dict[int, int], list[int], int]:
    """First column of each stage, which is as wide as its fullest row; column of each image; number of columns."""
    offsets = ranks(zip(stages, rows, strict=True))
    first, total = {}, 0
    for stage in sorted(set(stages)):
        first[stage] = total
        total += 1 + max(offset for each, offset in zip(stages, offsets, strict=True) if each == stage)
    return first, [first[stage] + offset for stage, offset in zip(stages, offsets, strict=True)], total


def _as_image(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
