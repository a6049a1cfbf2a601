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


def accuracy_axes(figure: Figure, rows: Sequence[dict[str, Any]], title: str) -> Axes:
    """Axes for accuracies in %, whose label says what the numbers are."""
    axes = figure.subplots()
    part = {"val": "validation"}.get(rows[0]["part"], rows[0]["part"])
    axes.set_ylabel(f"{part} accuracy, %")
    axes.set_title(title, loc="left", fontsize="medium")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def draw_line(axes: Axes, positions: Sequence[float], rows: Sequence[dict[str, Any]], label: str, number: int) -> None:
    """Means with their standard deviations over networks, joined by a line."""
    axes.errorbar(
        positions,
        [100 * row["mean"] for row in rows],
        [100 * (row["std"] or 0) for row in rows],
        label=label,
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        capsize=3,
    )


def draw_marks(axes: Axes, groups: Sequence[str], series: dict[str, dict[str, dict[str, Any]]]) -> None:
    """One mark per group and series, with standard deviations over networks.

    Args:
        axes: Where to draw.
        groups: Names under the marks.
        series: Row of each group, by name of the series.
    """
    width = 0.8 / len(series)
    for number, (name, rows) in enumerate(series.items()):
        places = [place for place, group in enumerate(groups) if group in rows]
        found = [rows[groups[place]] for place in places]
        axes.errorbar(
            [place + (number - (len(series) - 1) / 2) * width for place in places],
            [100 * row["mean"] for row in found],
            [100 * (row["std"] or 0) for row in found],
            label=name,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle="none",
            capsize=4,
            markersize=8,
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.set_xlim(-0.5, len(groups) - 0.5)


def add_legend(axes: Axes) -> None:
    """A legend beside the axes, where it hides nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")
