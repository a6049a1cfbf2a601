"""A picture of learning tasks one after another: accuracy as they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pdd_lightning.studies.plots import COLOURS, MARKERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"gdumb": "Fresh network on the memory alone (GDumb)", "replay": "One network, replay of the memory"}


def draw_continual(figure: Figure, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Average accuracy on the classes seen so far after each task: a panel per protocol, a line per memory.

    Args:
        figure: An empty figure.
        rows: Rows with `protocol`, `average_accuracy`, `std` and `row`, the name of the memory.
        title: Above everything.
    """
    protocols = list(dict.fromkeys(row["protocol"] for row in rows))
    memories = list(dict.fromkeys(row["row"] for row in rows))
    figure.set_size_inches(5.2 * len(protocols), 4.2)
    figure.suptitle(title)
    for axes, protocol in zip(figure.subplots(1, len(protocols), squeeze=False).flat, protocols, strict=True):
        for row in rows:
            if row["protocol"] == protocol:
                number = memories.index(row["row"])
                colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
                values = [100 * value for value in row["average_accuracy"]]
                ticks = range(1, len(values) + 1)
                axes.plot(ticks, values, color=colour, marker=marker, label=row["row"])
                axes.errorbar(ticks[-1], values[-1], 100 * (row["std"] or 0), color=colour, capsize=3)
                axes.set_xticks(ticks)
        axes.set_title(TITLES[protocol], fontsize=10)
        axes.set_xlabel("tasks learned")
        axes.set_ylabel("accuracy on the classes so far, %")
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(title="memory", fontsize="small")
