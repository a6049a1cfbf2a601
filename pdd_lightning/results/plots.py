"""Plots of rows."""

from __future__ import annotations

import io
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pdd_lightning.results.grids import tile_images
from pdd_lightning.results.schema import FULL
from pdd_lightning.results.tables import PARTS, STATISTICS, Row, format_cell, heading_of, std_column

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Okabe and Ito's colors, which color-blind readers can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vPX*"
MAX_TICKS = 12
PROTOCOL_TITLES = {"gdumb": "Fresh network on the memory alone (GDumb)", "replay": "One network, replay of the memory"}


def render_figure(draw: Callable[[Figure], object]) -> bytes:
    """Draw a figure without a display, and return it as PNG."""
    # Imported here because it takes long, and few commands draw.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def draw_rows(
    figure: Figure | SubFigure,
    rows: Sequence[Row],
    x: str,
    series: Sequence[str] | Callable[[Row], str] = ("row", "protocol"),
    references: Sequence[str] = (),
    log: bool = False,
) -> Axes:
    """Plot accuracies with their standard deviations over networks against a column.

    Each series is a line if the column holds numbers, else a series of markers. Rows without a value in the column
    and references are dashed horizontal lines.

    Args:
        figure: An empty figure.
        rows: Rows with `row`, `part`, `images`, `mean` and `std`.
        x: The column.
        series: Columns that identify a series, or a function that returns a row's series.
        references: Names of rows (what networks were trained on) to draw as horizontal lines.
        log: Whether the x axis is logarithmic.
    """
    axes = figure.subplots()
    axes.set_ylabel(f"accuracy on the {PARTS.get(rows[0]['part'], rows[0]['part'])}, %")
    sizes = {row["images"] for row in rows if row["row"] != FULL}
    if len(sizes) == 1:
        axes.set_title(f"{sizes.pop()} images; bars: standard deviation over networks", loc="left", fontsize="medium")
    label = series if callable(series) else lambda row: ", ".join(filter(None, (format_cell(row, c) for c in series)))
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(label(row), []).append({**row, x: None} if row["row"] in references else row)
    values = list(dict.fromkeys(row[x] for line in lines.values() for row in line if row.get(x) is not None))
    numeric = all(isinstance(value, int | float) for value in values)
    count = sum(any(row.get(x) is not None for row in line) for line in lines.values())
    for number, (name, line) in enumerate(lines.items()):
        position = _positions(values, numeric, log, number - (count - 1) / 2, count)
        _draw_line(axes, line, x, "mean", name, number, 100, position, joined=numeric)
    _style(axes)
    if log:
        axes.set_xscale("log")
        axes.minorticks_off()
    if numeric:
        axes.set_xlabel(heading_of(x))
        if len(values) <= MAX_TICKS and all(isinstance(value, int) for value in values):
            axes.set_xticks(values, list(map(str, values)))
    else:
        axes.set_xticks(range(len(values)), [_escape(str(value)) for value in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
    add_legend(axes)
    return axes


def add_legend(axes: Axes) -> None:
    """Add a legend beside the axes."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")


def draw_stages(figure: Figure, rows: Sequence[Row], examples: Mapping[str, Tensor], title: str) -> None:
    """Draw examples `[N, C, H, W]` in [0, 1] of the images of each row, by its name, beside plots of its statistics."""
    figure.set_size_inches(14, max(7.0, 0.8 * len(rows) + 0.6))
    figure.suptitle(_escape(title))
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.6)).flat
    for axes, (name, images) in zip(left.subplots(len(examples), 1, squeeze=False).flat, examples.items(), strict=True):
        axes.imshow(tile_images(images, len(images), 1).permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_ylabel(name.replace(", ", ",\n"), rotation=0, ha="right", va="center")
    # The standard deviation of values that are 0 or 1 adds nothing to their mean.
    _draw_statistics(right, [{**row, "accuracy_std": None} for row in rows], "images")


def draw_methods(figure: Figure, rows: Sequence[Row]) -> None:
    """Plot each statistic against the stage with a line per value of the column `method`."""
    figure.set_size_inches(12, 8)
    _draw_statistics(figure, rows, "distillation seeds")


def _draw_line(
    axes: Axes,
    rows: Sequence[Row],
    x: str,
    y: str,
    label: str,
    number: int,
    scale: float = 1.0,
    position: Callable[[Any], float] = float,
    joined: bool = True,
) -> None:
    """Draw a column against another one, with its standard deviation; rows without x are dashed horizontal lines.

    `number` selects color and marker, `scale` multiplies y, and `position` maps values of x to the axis.
    """
    color, label = COLORS[number % len(COLORS)], _escape(label)
    points = sorted((row for row in rows if row.get(x) is not None), key=lambda row: position(row[x]))
    for row in rows:
        if row.get(x) is None:
            axes.axhline(scale * row[y], linestyle="--", linewidth=1, color=color, label=None if points else label)
    if points:
        axes.errorbar(
            [position(row[x]) for row in points],
            [scale * row[y] for row in points],
            [scale * (row.get(std_column(y)) or 0) for row in points],
            label=label,
            color=color,
            marker=MARKERS[number % len(MARKERS)],
            linestyle="-" if joined else "none",
            capsize=3,
        )


def _draw_statistics(figure: Figure | SubFigure, rows: Sequence[Row], over: str) -> None:
    """Draw a panel for each statistic, but for color if the images have none."""
    figure.supxlabel(f"bars: standard deviation over {over}; dashed: mean of held-out real images", fontsize=9)
    names = [name for name in STATISTICS if name != "colourfulness" or any(row[name] > 0.01 for row in rows)]
    methods = list(dict.fromkeys(row.get("method") for row in rows))
    for axes, name in zip(figure.subplots(3, 3).flat, names, strict=False):
        for number, method in enumerate(methods):
            offset = 0.06 * (number - (len(methods) - 1) / 2)
            line = [row for row in rows if row.get("method") == method]
            _draw_line(axes, line, "stage", name, str(method), number, position=partial(operator.add, offset))
        axes.set_title(STATISTICS[name], fontsize=10)
        axes.set_xticks(sorted({row["stage"] for row in rows if row["stage"] is not None}))
        axes.set_xlabel("stage")
        _style(axes)
    if len(methods) > 1:
        figure.axes[0].legend(fontsize=7, framealpha=0.6)
    for axes in figure.axes[len(names) :]:
        axes.remove()


def draw_continual(figure: Figure, rows: Sequence[Row], title: str) -> None:
    """Plot the average accuracy on the classes seen so far after each task: a panel per protocol, a line per row."""
    protocols = list(dict.fromkeys(row["protocol"] for row in rows))
    figure.set_size_inches(6.5 * len(protocols), 4.2)
    figure.suptitle(_escape(title))
    for panel, protocol in zip(figure.subfigures(1, len(protocols), squeeze=False).flat, protocols, strict=True):
        points: list[dict[str, Any]] = []
        for row in (row for row in rows if row["protocol"] == protocol):
            means = enumerate(row["average_accuracy"], 1)
            points += [{**row, "tasks learned": task, "mean": mean, "std": None} for task, mean in means]
            points[-1]["std"] = row["std"]
        axes = draw_rows(panel, points, "tasks learned", ["row"])
        axes.set_title(PROTOCOL_TITLES[protocol], loc="left", fontsize=10)


def _positions(values: list[Any], numeric: bool, log: bool, offset: float, count: int) -> Callable[[Any], float]:
    """Return positions on the x axis, shifted so that the bars of a line do not hide those of another."""
    if not numeric:
        return lambda value: values.index(value) + 0.8 * offset / count
    if log:
        return lambda value: value * 1.02**offset
    return lambda value: value + 0.008 * offset * (max(values) - min(values))


def _escape(text: str) -> str:
    """Return text that matplotlib neither parses as a formula nor hides from a legend, and can draw."""
    visible = f" {text}" if text.startswith("_") else text
    return visible.encode(errors="replace").decode().replace("$", r"\$")


def _style(axes: Axes) -> None:
    """Add a light grid, and remove the frame."""
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
