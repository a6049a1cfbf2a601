"""Plots of rows, all of one look."""

from __future__ import annotations

import io
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pdd_lightning.results.grids import tiled
from pdd_lightning.results.schema import FULL
from pdd_lightning.results.tables import PARTS, STATISTICS, Row, cell_of, heading_of, spread_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vPX*"
MOST_TICKS = 12
"""More values than these are not all named on an axis."""
CONTINUAL = {"gdumb": "Fresh network on the memory alone (GDumb)", "replay": "One network, replay of the memory"}


def figure_png(draw: Callable[[Figure], object]) -> bytes:
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


def draw_rows(
    figure: Figure | SubFigure,
    rows: Sequence[Row],
    x: str,
    series: Sequence[str] | Callable[[Row], str] = ("row", "protocol"),
    references: Sequence[str] = (),
    log: bool = False,
) -> Axes:
    """Accuracies with their standard deviations over networks, against a column.

    A line per series over a column of numbers, marks side by side over any other one. Rows without a value in the
    column, and those that are named as references, are dashed horizontal lines.

    Args:
        figure: An empty figure.
        rows: Rows with `row`, `part`, `images`, `mean` and `std`.
        x: The column.
        series: Columns in which rows of a line are equal, or what the legend calls a row.
        references: Names of rows (what networks were trained on) to draw as horizontal lines.
        log: Whether numbers stand on a logarithmic axis.

    Returns:
        The axes, with a legend beside them.
    """
    axes = _accuracy_axes(figure, rows)
    name = series if callable(series) else lambda row: ", ".join(filter(None, (cell_of(row, each) for each in series)))
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(name(row), []).append({**row, x: None} if row["row"] in references else row)
    values = list(dict.fromkeys(row[x] for line in lines.values() for row in line if row.get(x) is not None))
    numeric = all(isinstance(value, (int, float)) for value in values)
    count = sum(any(row.get(x) is not None for row in line) for line in lines.values())
    for number, (label, line) in enumerate(lines.items()):
        place = _placing(values, numeric, log, number - (count - 1) / 2, count)
        _draw_line(axes, line, x, "mean", label, number, 100, place, joined=numeric)
    if log:
        axes.set_xscale("log")
        axes.minorticks_off()
    if numeric:
        axes.set_xlabel(heading_of(x))
        if len(values) <= MOST_TICKS and all(isinstance(value, int) for value in values):
            axes.set_xticks(values, list(map(str, values)))
    else:
        axes.set_xticks(range(len(values)), [_as_it_is(str(value)) for value in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
    add_legend(axes)
    return axes


def add_legend(axes: Axes) -> None:
    """A legend beside the axes, where it hides nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")


def draw_stages(figure: Figure, rows: Sequence[Row], examples: Mapping[str, Tensor], title: str) -> None:
    """Example images of each row on the left; on the right each number against the stage.

    Args:
        figure: An empty figure.
        rows: What `pdd_lightning.evaluation.describe.describe_stages` gave.
        examples: Images of each row `[N, C, H, W]` in [0, 1], by its name.
        title: Above everything.
    """
    figure.set_size_inches(14, max(7.0, 0.8 * len(rows) + 0.6))
    figure.suptitle(_as_it_is(title))
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.6)).flat
    for axes, (name, images) in zip(left.subplots(len(examples), 1, squeeze=False).flat, examples.items(), strict=True):
        axes.imshow(tiled(images, len(images), 1).permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_ylabel(name.replace(", ", ",\n"), rotation=0, ha="right", va="center")
    # Right or wrong: of single images the spread would say nothing more.
    _draw_statistics(right, [{**row, "accuracy_std": None} for row in rows], "images")


def draw_methods(figure: Figure, rows: Sequence[Row]) -> None:
    """Each number against the stage: a panel per number, a line per method.

    Args:
        figure: An empty figure.
        rows: Rows of `pdd_lightning.evaluation.describe.describe_stages`, over seeds, with a column `method`.
    """
    figure.set_size_inches(12, 8)
    _draw_statistics(figure, rows, "distillation seeds")


def _accuracy_axes(figure: Figure | SubFigure, rows: Sequence[Row]) -> Axes:
    """Axes for accuracies in %, whose label says what the numbers are."""
    axes = figure.subplots()
    axes.set_ylabel(f"accuracy on the {PARTS.get(rows[0]['part'], rows[0]['part'])}, %")
    sizes = {row["images"] for row in rows if row["row"] != FULL}
    if len(sizes) == 1:
        axes.set_title(f"{sizes.pop()} images; bars: standard deviation over networks", loc="left", fontsize="medium")
    _lighten(axes)
    return axes


def _draw_line(
    axes: Axes,
    rows: Sequence[Row],
    x: str,
    y: str,
    label: str,
    number: int,
    scale: float = 1.0,
    place: Callable[[Any], float] = float,
    joined: bool = True,
) -> None:
    """A column against another one, with its standard deviation; rows without a place are dashed horizontal lines.

    `number` chooses colour and mark, `scale` multiplies heights, and `place` says where values of `x` stand.
    """
    colour, label = COLOURS[number % len(COLOURS)], _as_it_is(label)
    placed = sorted((row for row in rows if row.get(x) is not None), key=lambda row: place(row[x]))
    for row in rows:
        if row.get(x) is None:
            axes.axhline(scale * row[y], linestyle="--", linewidth=1, color=colour, label=None if placed else label)
    if placed:
        axes.errorbar(
            [place(row[x]) for row in placed],
            [scale * row[y] for row in placed],
            [scale * (row.get(spread_of(y)) or 0) for row in placed],
            label=label,
            color=colour,
            marker=MARKERS[number % len(MARKERS)],
            linestyle="-" if joined else "none",
            capsize=3,
        )


def _draw_statistics(figure: Figure | SubFigure, rows: Sequence[Row], spread: str) -> None:
    """A panel for each number, but for colour where there is none; `spread` is what bars are deviations over."""
    figure.supxlabel(f"bars: standard deviation over {spread}; dashed: mean of held-out real images", fontsize=9)
    names = [name for name in STATISTICS if name != "colourfulness" or any(row[name] > 0.01 for row in rows)]
    methods = list(dict.fromkeys(row.get("method") for row in rows))
    for axes, name in zip(figure.subplots(3, 3).flat, names, strict=False):
        for number, method in enumerate(methods):
            aside = 0.06 * (number - (len(methods) - 1) / 2)
            line = [row for row in rows if row.get("method") == method]
            _draw_line(axes, line, "stage", name, str(method), number, place=partial(operator.add, aside))
        axes.set_title(STATISTICS[name], fontsize=10)
        axes.set_xticks(sorted({row["stage"] for row in rows if row["stage"] is not None}))
        axes.set_xlabel("stage")
        _lighten(axes)
    if len(methods) > 1:
        figure.axes[0].legend(fontsize=7, framealpha=0.6)
    for axes in figure.axes[len(names) :]:
        axes.remove()


def draw_continual(figure: Figure, rows: Sequence[Row], title: str) -> None:
    """Average accuracy on the classes seen so far after each task: a panel per protocol, a line per memory.

    Args:
        figure: An empty figure.
        rows: Rows with `protocol`, `part`, `images`, `average_accuracy`, `std` and `row`, the name of the memory.
        title: Above everything.
    """
    protocols = list(dict.fromkeys(row["protocol"] for row in rows))
    figure.set_size_inches(6.5 * len(protocols), 4.2)
    figure.suptitle(_as_it_is(title))
    for panel, protocol in zip(figure.subfigures(1, len(protocols), squeeze=False).flat, protocols, strict=True):
        own = [row for row in rows if row["protocol"] == protocol]
        axes = draw_rows(panel, [each for row in own for each in _after_tasks(row)], "tasks learned", ["row"])
        axes.set_title(CONTINUAL[protocol], loc="left", fontsize=10)


def _after_tasks(row: Row) -> list[dict[str, Any]]:
    """A row per task, of which the last has the spread."""
    values = row["average_accuracy"]
    points = [{**row, "tasks learned": task, "mean": value, "std": None} for task, value in enumerate(values, 1)]
    return [*points[:-1], {**points[-1], "std": row["std"]}]


def _placing(values: list[Any], numeric: bool, log: bool, aside: float, count: int) -> Callable[[Any], float]:
    """Where values stand, a little aside, so that the bars of one line do not hide those of another."""
    if not numeric:
        return lambda value: values.index(value) + 0.8 * aside / count
    if log:
        return lambda value: value * 1.02**aside
    return lambda value: value + 0.008 * aside * (max(values) - min(values))


def _as_it_is(text: str) -> str:
    """Text that matplotlib takes for no formula, hides from no legend, and can draw."""
    visible = f" {text}" if text.startswith("_") else text
    return visible.encode(errors="replace").decode().replace("$", r"\$")


def _lighten(axes: Axes) -> None:
    """A light grid behind what is drawn, and no frame."""
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
