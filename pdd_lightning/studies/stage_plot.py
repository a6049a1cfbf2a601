"""Pictures of how stages differ: example images, and numbers against the stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdd_lightning.evaluation.describe import NUMBERS, Group
from pdd_lightning.studies.plots import COLOURS, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {
    "Power by frequency": ("low", "middle", "high"),
    "Total variation": ("variation",),
    "Colourfulness": ("colourfulness",),
    "Real-data networks": ("accuracy", "confidence"),
    "Silhouette of features": ("silhouette",),
    "Distance to nearest real image": ("nearest_real",),
}
"""Panels of a single set by title, and the numbers in each."""
EXAMPLES = 10
"""Images shown of each row."""
_GAP = 1


def draw_stages(figure: Figure, rows: Sequence[dict[str, Any]], groups: Sequence[Group], title: str) -> None:
    """Example images of each row on the left; on the right each number against the stage.

    Bars are standard deviations over images; a dashed line is the mean of held-out real images. Colour is left out
    where there is none.

    Args:
        figure: An empty figure.
        rows: What `describe_stages` gave.
        groups: The images of these rows.
        title: Above everything.
    """
    panels = {name: numbers for name, numbers in PANELS.items() if numbers != _colour(groups[0].pixels.shape[1])}
    figure.set_size_inches(13, max(5.0, 0.8 * len(rows) + 0.6))
    figure.suptitle(title)
    figure.supxlabel("bars: standard deviation over images; dashed: mean of held-out real images", fontsize=9)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.35)).flat
    for axes, group in zip(left.subplots(len(groups), 1, squeeze=False).flat, groups, strict=True):
        _show_examples(axes, group)
    for axes, (name, numbers) in zip(right.subplots(2, 3).flat, panels.items(), strict=False):
        for place, number in enumerate(numbers):
            _draw_number(axes, rows, number, number, place, (place - (len(numbers) - 1) / 2) * 0.06)
        _finish(axes, name, rows, legend=len(numbers) > 1)
    _remove_empty(right.axes)


def draw_methods(figure: Figure, rows: Sequence[dict[str, Any]]) -> None:
    """Each number against the stage: a panel per number, a line per method.

    Bars are standard deviations over distillation seeds.

    Args:
        figure: An empty figure.
        rows: Rows of `describe_stages` with a column `method`.
    """
    names = [name for name in NUMBERS if any(row[name] > 0.01 for row in rows) or name != "colourfulness"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure.set_size_inches(12, 8)
    figure.supxlabel("bars: standard deviation over distillation seeds; dashed: held-out real images", fontsize=9)
    for axes, name in zip(figure.subplots(3, 3).flat, names, strict=False):
        for number, method in enumerate(methods):
            own = [row for row in rows if row["method"] == method]
            _draw_number(axes, own, name, method, number, (number - (len(methods) - 1) / 2) * 0.06)
        _finish(axes, TITLES[name], rows, legend=name == names[0] and len(methods) > 1)
    _remove_empty(figure.axes)


TITLES = {
    "colourfulness": "Colourfulness",
    "low": "Power at low frequencies",
    "middle": "Power at middle frequencies",
    "high": "Power at high frequencies",
    "variation": "Total variation",
    "accuracy": "Accuracy of real-data networks",
    "confidence": "Confidence of real-data networks",
    "silhouette": "Silhouette of features",
    "nearest_real": "Distance to nearest real image",
}
"""Panels of several methods, by number."""


def _colour(channels: int) -> tuple[str, ...]:
    """The panel that says nothing for images of so many channels."""
    return PANELS["Colourfulness"] if channels == 1 else ()


def _draw_number(axes: Axes, rows: Sequence[dict[str, Any]], name: str, label: str, number: int, shift: float) -> None:
    """One number of each stage, and of real images as a dashed line; shifted so that bars do not hide one another."""
    stages = [row for row in rows if row["stage"] is not None]
    # Right or wrong: of single images the spread would say nothing more.
    bars = [row.get(f"{name}_std") or 0 for row in stages] if name != "accuracy" or "seeds" in rows[0] else None
    axes.errorbar(
        [row["stage"] + shift for row in stages],
        [row[name] for row in stages],
        bars,
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        label=label,
        capsize=2,
        elinewidth=0.8,
    )
    for row in rows:
        if row["stage"] is None:
            axes.axhline(row[name], linestyle="--", linewidth=1, color=COLOURS[number % len(COLOURS)])


def _finish(axes: Axes, title: str, rows: Sequence[dict[str, Any]], legend: bool) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xticks(sorted({row["stage"] for row in rows if row["stage"] is not None}))
    axes.set_xlabel("stage")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(fontsize=7, framealpha=0.6)


def _remove_empty(panels: Sequence[Axes]) -> None:
    for axes in panels:
        if not axes.get_title():
            axes.remove()


def _show_examples(axes: Axes, group: Group) -> None:
    images = group.pixels[_examples(group.labels)].cpu()
    padded = torch.nn.functional.pad(images, (0, _GAP, 0, 0), value=1.0)
    strip = torch.cat(list(padded), dim=2)[..., :-_GAP].expand(3, -1, -1)
    axes.imshow(strip.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_ylabel(group.row.replace(", ", ",\n"), rotation=0, ha="right", va="center")


def _examples(labels: Tensor) -> list[int]:
    """Positions of `EXAMPLES` images, one of each class in turn."""
    seen: dict[int, int] = {}
    keys = []
    for position, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, -1) + 1
        keys.append((seen[label], label, position))
    return [position for _, _, position in sorted(keys)[:EXAMPLES]]
