"""Line charts: where things stand; the page's template draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pdd_lightning.report.figures import StageFigures
from pdd_lightning.report.runs import Run

WIDTH, HEIGHT = 520, 320
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 46
MOST_TICKS = 6
COLOURS, MARKS, DASHES = 6, 4, ("", "7 4", "2 3")
"""Colours and marks repeat at different distances, so that a dozen series look different without colour, too."""


@dataclass(frozen=True)
class Point:
    """A mark with its error bar, in pixels, and what pointing at it tells."""

    x: float
    y: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Look:
    """How the runs of a group are drawn, by the position of the group."""

    position: int

    @property
    def colour(self) -> int:
        """Number of the colour."""
        return self.position % COLOURS

    @property
    def mark(self) -> int:
        """Number of the mark's shape."""
        return self.position % MARKS

    @property
    def dash(self) -> str:
        """Dash pattern of the line."""
        return DASHES[self.position // COLOURS % len(DASHES)]


@dataclass(frozen=True)
class Curve:
    """One run."""

    look: Look
    points: list[Point]


@dataclass(frozen=True)
class Legend:
    """What a look stands for."""

    look: Look
    text: str


@dataclass(frozen=True)
class Chart:
    """A chart of `WIDTH` x `HEIGHT`; ticks are pairs of a place in pixels and a text."""

    title: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    curves: list[Curve]


@dataclass(frozen=True)
class Growth:
    """How accuracy grows with the sets of one dataset: over stages and over images."""

    dataset: str
    charts: list[Chart]
    legend: list[Legend]


def growths(groups: Sequence[Sequence[Run]]) -> list[Growth]:
    """Validation accuracy of theta_i, dataset by dataset; runs without such figures are left out.

    Args:
        groups: Runs that look the same, since they differ only by seed.
    """
    scored = [drawn for group in groups if (drawn := [run for run in group if _scored(run)])]
    found = []
    for dataset in dict.fromkeys(group[0].dataset for group in scored):
        own = [group for group in scored if group[0].dataset == dataset]
        charts = [_chart(own, "stage", _stage), _chart(own, "images in the union", _images)]
        names = [", ".join(run.name for run in group) for group in own]
        found.append(Growth(dataset, charts, [Legend(Look(n), name) for n, name in enumerate(names)]))
    return found


def ticks(low: float, high: float, most: int = MOST_TICKS) -> list[float]:
    """At most `most` round numbers that lie in [low, high]."""
    span = max(high - low, 1e-9)
    size = 10.0 ** math.floor(math.log10(span / most))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10, 20) if span / (size * factor) <= most - 1)
    first = math.ceil(low / step - 1e-9)
    return [step * n for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _stage(stage: StageFigures) -> float:
    return stage.stage


def _images(stage: StageFigures) -> float:
    return stage.images


def _scored(run: Run) -> list[tuple[StageFigures, float, float]]:
    """Stages with accuracy and spread in per cent."""
    return [(stage, 100 * stage.mean, 100 * (stage.std or 0.0)) for stage in run.stages if stage.mean is not None]


def _chart(groups: Sequence[Sequence[Run]], label: str, place: Callable[[StageFigures], float]) -> Chart:
    scored = [one for group in groups for run in group for one in _scored(run)]
    xs = [place(stage) for stage, _, _ in scored]
    pad = 0.06 * (max(xs) - min(xs)) or 1.0
    y_low = max(0.0, min(mean - std for _, mean, std in scored) - 2)
    y_high = min(100.0, max(mean + std for _, mean, std in scored) + 2)
    x_of = _scale(min(xs) - pad, max(xs) + pad, LEFT, WIDTH - RIGHT)
    y_of = _scale(y_low, y_high, HEIGHT - BOTTOM, TOP)
    x_values = sorted(set(xs)) if len(set(xs)) <= MOST_TICKS else ticks(min(xs), max(xs))
    curves = [
        Curve(Look(position), [_point(run, *one, place, x_of, y_of) for one in _scored(run)])
        for position, group in enumerate(groups)
        for run in group
    ]
    return Chart(
        f"Validation accuracy by {label}",
        label,
        "validation accuracy, %",
        [(x_of(value), f"{value:,.0f}") for value in x_values],
        [(y_of(value), f"{value:g}") for value in ticks(y_low, y_high)],
        curves,
    )


def _point(
    run: Run,
    stage: StageFigures,
    mean: float,
    std: float,
    place: Callable[[StageFigures], float],
    x_of: Callable[[float], float],
    y_of: Callable[[float], float],
) -> Point:
    spread = f" ± {std:.1f}" if std else ""
    text = f"{run.name}, stage {stage.stage}, {stage.images} images: {mean:.1f}{spread} %"
    ends = (y_of(max(0.0, mean - std)), y_of(min(100.0, mean + std)))
    return Point(x_of(place(stage)), y_of(mean), *ends, text)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The straight line that takes [low, high] to [start, end]."""
    return lambda value: start + (value - low) / (high - low) * (end - start)
