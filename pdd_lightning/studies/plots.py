"""Plots of studies, all of one look."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vPX*"

DISTILLED = "distilled"
"""The row of fresh networks trained on the distilled set."""

FULL = "full real"
"""The row of networks trained on all real images."""


def figure_png(draw: Callable[[Figure], None]) -> bytes:
    """A figure as PNG, drawn without a display."""
    # Imported here: importing it takes long, and few commands draw.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def accuracy_axes(figure: Figure, rows: Sequence[dict[str, Any]]) -> Axes:
    """Axes for accuracies in %, whose label says what the numbers are."""
    axes = figure.subplots()
    part = {"val": "validation"}.get(rows[0]["part"], rows[0]["part"])
    axes.set_ylabel(f"{part} accuracy, %")
    sizes = {row["images"] for row in rows if row["row"] != FULL}
    if len(sizes) == 1:
        axes.set_title(f"{sizes.pop()} images; bars: standard deviation over networks", loc="left", fontsize="medium")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def draw_line(
    axes: Axes,
    positions: Sequence[float],
    rows: Sequence[dict[str, Any]],
    label: str,
    number: int,
    linestyle: str = "-",
) -> None:
    """Means with their standard deviations over networks, joined by a line."""
    axes.errorbar(
        positions,
        [100 * row["mean"] for row in rows],
        [100 * (row["std"] or 0) for row in rows],
        label=label,
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        capsize=3,
        linestyle=linestyle,
    )


def draw_groups(
    figure: Figure, rows: Sequence[dict[str, Any]], group: str, series: Callable[[dict[str, Any]], str]
) -> None:
    """A mark with its standard deviation over networks for each row, side by side in groups.

    Args:
        figure: An empty figure.
        rows: Rows of a study.
        group: Column whose values are named under the marks.
        series: What the legend calls a row.
    """
    axes = accuracy_axes(figure, rows)
    groups = list(dict.fromkeys(row[group] for row in rows))
    names = list(dict.fromkeys(series(row) for row in rows))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        members = [row for row in rows if series(row) == name]
        places = [groups.index(row[group]) + (number - (len(names) - 1) / 2) * width for row in members]
        draw_line(axes, places, members, name, number, linestyle="none")
    axes.set_xticks(range(len(groups)), [str(name) for name in groups])
    axes.set_xlim(-0.5, len(groups) - 0.5)
    add_legend(axes)


def add_legend(axes: Axes) -> None:
    """A legend beside the axes, where it hides nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")
