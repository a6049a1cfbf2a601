"""What plots of rows show."""

from typing import Any

import pytest
from matplotlib.figure import Figure

from pdd_lightning.results.plots import draw_continual, draw_rows, render_figure


def row(name: str, mean: float, protocol: str = "progressive", **more: Any) -> dict[str, Any]:
    return {"row": name, "protocol": protocol, "part": "val", "images": 6, "mean": mean, "std": 0.02, **more}


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def points(container: Any) -> list[tuple[float, float]]:
    return list(zip(*(map(float, values) for values in container.lines[0].get_data()), strict=True))


def test_a_line_per_series_over_numbers_in_their_order() -> None:
    rows = [row(name, mean, stages=stages) for name, mean, stages in (("a", 0.5, 5), ("a", 0.4, 1), ("b", 0.6, 1))]
    axes = draw_rows(Figure(), rows, "stages", ["row"])
    assert legend(axes) == ["a", "b"]
    first, second = axes.containers
    assert [y for _, y in points(first)] == pytest.approx([40, 50])
    assert [x for x, _ in points(first)] == pytest.approx([1, 5], abs=0.05)
    assert [y for _, y in points(second)] == pytest.approx([60])
    low, high = axes.get_ylim()
    assert low < 38 and high > 62, "all of it is to be seen"
    assert sorted(tick.get_text() for tick in axes.get_xticklabels()) == ["1", "5"]
    assert "validation part" in axes.get_ylabel()
    low, high = first.lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((38, 42)), "bars are the spread over networks"


def test_marks_side_by_side_over_names() -> None:
    rows = [row(name, 0.5, network=network) for name in ("distilled", "random") for network in ("own", "VGG")]
    axes = draw_rows(Figure(), rows, "network")
    assert legend(axes) == ["distilled, progressive", "random, progressive"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["own", "VGG"]
    (left, _), (left_2, _) = map(points, axes.containers)
    assert -0.5 < left[0] < 0 < left_2[0] < 0.5
    assert axes.containers[0].lines[0].get_linestyle() == "None", "names have no order"


def test_references_and_rows_without_a_place_are_horizontal_lines() -> None:
    rows = [row("a", 0.5, stages=1), row("a", 0.6, stages=4), row("full", 0.9), row("random", 0.3, stages=1)]
    axes = draw_rows(Figure(), rows, "stages", ["row"], references=["random"], log=True)
    assert sorted(legend(axes)) == ["a", "full", "random"]
    across = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert across == pytest.approx([90, 30])
    assert axes.get_xscale() == "log"


def test_a_picture_of_memories_has_a_panel_per_protocol() -> None:
    rows = [
        row(memory, 0.6, protocol, average_accuracy=[0.9, 0.6])
        for protocol in ("gdumb", "replay")
        for memory in ("distilled", "random")
    ]
    figure = Figure()
    draw_continual(figure, rows, "two tasks")
    assert len(figure.axes) == 2
    for axes in figure.axes:
        assert [y for line in axes.containers for _, y in points(line)] == pytest.approx([90, 60] * 2)
        assert legend(axes) == ["distilled", "random"]
    first, last = figure.axes[0].containers[0].lines[2][0].get_segments()
    assert (last[1] - first[1])[1] != 0 and first[0][1] == first[1][1], "the spread is that after the last task"


def test_a_figure_is_a_png() -> None:
    assert render_figure(lambda figure: draw_rows(figure, [row("a", 0.5, x=1)], "x")).startswith(b"\x89PNG")
