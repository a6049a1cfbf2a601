"""A picture of learning tasks one after another: accuracy as they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = {
    "distilled": ("#0072B2", "o"),
    "random": ("#D55E00", "s"),
    "herding": ("#009E73", "^"),
    "none": ("#666666", "x"),
}
"""Colour and marker of each memory; told apart by colour-blind readers, too (Okabe and Ito)."""
TITLES = {"gdumb": "Fresh network on the memory alone (GDumb)", "replay": "One network, replay of the memory"}


def continual_figure(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """Average accuracy on the classes seen so far after each task: a panel per protocol, a line per memory.

    Args:
        rows: What `learn_tasks` gave.
        title: Above everything.
    """
    from matplotlib.figure import Figure

    protocols = list(dict.fromkeys(row["protocol"] for row in rows))
    figure = Figure(figsize=(5.2 * len(protocols), 4.2), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, len(protocols), squeeze=False).flat
    for axes, protocol in zip(panels, protocols, strict=True):
        for row in rows:
            if row["protocol"] == protocol:
                colour, marker = STYLES[row["row"]]
                values = [100 * value for value in row["average_accuracy"]]
                ticks = range(1, len(values) + 1)
                axes.plot(ticks, values, color=colour, marker=marker, label=row["row"])
                axes.errorbar(ticks[-1], values[-1], 100 * row["std"], color=colour, capsize=3)
                axes.set_xticks(ticks)
        axes.set_title(TITLES[protocol], fontsize=10)
        axes.set_xlabel("tasks learned")
        axes.set_ylabel("accuracy on the classes so far, %")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(title="memory")
    return figure
