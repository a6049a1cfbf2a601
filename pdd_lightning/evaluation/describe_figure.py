"""A picture of how stages differ: example images beside the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdd_lightning.evaluation.describe import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {
    "Power by frequency": {"low": "low", "middle": "middle", "high": "high"},
    "Total variation": {"variation": ""},
    "Colourfulness": {"colourfulness": ""},
    "Real-data networks": {"accuracy": "classified as labelled", "confidence": "confidence"},
    "Silhouette of features": {"silhouette": ""},
    "Distance to nearest real image": {"nearest_real": ""},
}
"""Small plots by title: the numbers in each, and their names in its legend."""
COLOURS = ("#0072B2", "#D55E00", "#009E73")
"""Told apart by colour-blind readers, too (Okabe and Ito)."""
MARKERS = ("o", "s", "^")
EXAMPLES = 10
"""Images shown of each row."""
_GAP = 1


def describe_figure(rows: Sequence[dict[str, Any]], groups: Sequence[Group], title: str) -> Figure:
    """Example images of each row on the left; on the right each number against the stage.

    Bars are standard deviations over images; a dashed line is the mean of held-out real images. Colour is left out
    where there is none.

    Args:
        rows: What `describe_stages` gave.
        groups: The images of these rows.
        title: Above everything.
    """
    from matplotlib.figure import Figure

    panels = dict(PANELS)
    if groups[0].pixels.shape[1] == 1:
        del panels["Colourfulness"]
    figure = Figure(figsize=(13, max(5.0, 0.8 * len(rows) + 0.6)), layout="constrained")
    figure.suptitle(title)
    figure.supxlabel("bars: standard deviation over images; dashed: mean of held-out real images", fontsize=9)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.35)).flat
    for axes, group in zip(left.subplots(len(groups), 1, squeeze=False).flat, groups, strict=True):
        _show_examples(axes, group)
    places = list(right.subplots(2, 3).flat)
    for axes, (name, numbers) in zip(places, panels.items(), strict=False):
        _plot_numbers(axes, name, numbers, rows)
    for axes in places[len(panels) :]:
        axes.axis("off")
    return figure


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


def _plot_numbers(axes: Axes, title: str, numbers: dict[str, str], rows: Sequence[dict[str, Any]]) -> None:
    stages = [row for row in rows if row["stage"] is not None]
    (real,) = (row for row in rows if row["stage"] is None)
    ticks = [row["stage"] for row in stages]
    for index, (name, label) in enumerate(numbers.items()):
        colour, shift = COLOURS[index], 0.06 * (index - (len(numbers) - 1) / 2)
        means = [row[name] for row in stages]
        # Right or wrong: the spread would say nothing more.
        spreads = None if name == "accuracy" else [row[f"{name}_std"] for row in stages]
        places = [tick + shift for tick in ticks]  # beside each other, or their bars would hide one another
        axes.errorbar(
            places, means, spreads, marker=MARKERS[index], color=colour, label=label or None, capsize=2, elinewidth=0.8
        )
        axes.axhline(real[name], linestyle="--", linewidth=1, color=colour if len(numbers) > 1 else "grey")
    axes.set_title(title, fontsize=10)
    axes.set_xticks(ticks)
    axes.set_xlabel("stage")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(numbers) > 1:
        axes.legend(fontsize=7, framealpha=0.6)
