"""Tables of rows as text, Markdown and CSV."""

import csv
import io
import re
from typing import Any

import pytest

from pdd_lightning.results.schema import StageReport
from pdd_lightning.results.tables import (
    Table,
    continual_table,
    csv_table,
    evaluation_table,
    make_table,
    settings_as_text,
    stage_line,
    stages_table,
    summarize_seeds,
)


def cells(line: str) -> list[str]:
    """Cells of a line of a text or Markdown table."""
    return re.split(r"\s*\|\s*|\s{2,}", line.strip("| "))


def row(name: str = "distilled", **more: Any) -> dict[str, Any]:
    facts = {"row": name, "protocol": "progressive", "part": "test", "stage": 2, "num_stages": 2, "images": 6}
    training = {"scored": 9, "network": {"class_path": "pdd.ConvNet", "init_args": {"depth": 2}}, "seed": 3}
    return {**facts, "steps": 90, **training, "mean": 0.5, "std": 0.125, "n": 3, "seconds": 7.25, **more}


def test_columns_without_a_difference_are_said_once() -> None:
    rows = [{"method": name, "mean": 0.5, "std": 0.01, "part": "val"} for name in "AB"]
    table = make_table(rows).markdown()
    head, _, first = map(cells, table.splitlines()[:3])
    assert (head, first) == (["method", "accuracy %"], ["A", "50.0 ± 1.0"])
    assert table.endswith("In all rows: scored on: validation part.")
    assert make_table(rows).text().startswith("In all rows: scored on: validation part.\n\n")


def test_numbers_keep_three_digits_and_their_spread() -> None:
    rows = [
        {"row": "a", "low": 0.5184, "low_std": 0.0123, "seconds": 1234.5},
        {"row": "b", "low": 0.25, "seconds": 2.5},
    ]
    lines = [cells(line) for line in make_table(rows).markdown().splitlines()]
    assert lines[0] == ["training images", "low", "evaluation seconds"]
    assert lines[2:] == [["a", "0.518 ± 0.0123", "1234"], ["b", "0.25", "2.5"]]


def test_what_a_row_does_not_say_stays_empty() -> None:
    table = make_table([{"row": "a", "low": float("nan"), "high": None}, {"row": "b", "low": 1.0}])
    assert (table.headings, table.lines) == (["training images", "low"], [["a", ""], ["b", "1"]])
    assert table.numeric() == [False, True]


def test_bars_in_cells_do_not_end_them() -> None:
    assert "a\\|b" in make_table([{"row": "a|b", "mean": 0.5}]).markdown()


def test_csv_has_all_columns_and_digits() -> None:
    rows = [{"row": "a, b", "mean": 1 / 3}, {"row": "c", "std": None, "seeds": 2}]
    read = list(csv.DictReader(io.StringIO(csv_table(rows))))
    assert read[0] == {"row": "a, b", "mean": str(1 / 3), "std": "", "seeds": ""}
    assert read[1]["seeds"] == "2"


def entry(table: Table, line: int = 0) -> dict[str, str]:
    """A line by heading."""
    return dict(zip(table.headings, table.lines[line], strict=True))


def test_evaluated_rows_say_what_they_are() -> None:
    table = evaluation_table([row(), row("full real", protocol="all images", images=90, steps=10, mean=0.9, n=1)])
    for fact in ("scored on: test part", "scored images: 9", "network: ConvNet, depth 2", "seed: 3"):
        assert fact in table.facts()
    assert entry(table)["accuracy %"] == "50.0 ± 12.5"
    assert entry(table, 1)["accuracy %"] == "90.0", "a single network has no spread"
    assert (entry(table, 1)["images"], entry(table, 1)["steps of each network"]) == ("90", "10")
    assert table.text().splitlines()[-1].split() == ["full", "real", "all", "images", "90", "10", "90.0", "1", "7.25"]
    assert evaluation_table([]).text() == "nothing to show"


def test_what_phases_share_is_said_once() -> None:
    table = evaluation_table([row(epochs=[5, 5], learning_rates=[0.02, 0.01]), row(epochs=[10], learning_rates=[0.02])])
    assert [(entry(table, n)["epochs"], entry(table, n)["learning rates"]) for n in (0, 1)] == [
        ("2 x 5", "0.02, 0.01"),
        ("10", "0.02"),
    ]


def test_the_stage_is_a_column_where_there_are_several() -> None:
    full = row("full real", protocol="all images", stage=1, num_stages=1)
    table = evaluation_table([row(stage=1), row(), full])
    assert [entry(table, line)["stage"] for line in range(3)] == ["1", "2", ""]
    assert "stage" not in evaluation_table([row(), row("random real"), full]).headings


def report(**more: Any) -> StageReport:
    seconds = {"experts": 1.0, "distil": 250.0, "transition": 3.0}
    losses = {"first_loss": 1.5, "last_loss": 0.875, "lr_img": 1.0}
    accuracy = {"val_accuracy": 0.75, "val_std": 0.02, "val_networks": 4}
    return StageReport(
        **{"stage": 1, "images": 3, **losses, **accuracy, "seconds": seconds, "peak_memory_mb": 800.4, **more}
    )


def test_stages_are_described_by_start_points_not_by_symbols() -> None:
    table = stages_table([report(), report(stage=2, val_networks=1, val_std=0.0)])
    found = entry(table)
    assert (found["start-point accuracy %"], found["distil seconds"], found["memory MB"]) == (
        "75.0 ± 2.0",
        "250",
        "800",
    )
    assert entry(table, 1)["start-point accuracy %"] == "75.0"
    assert "real images" not in table.headings and "learned lr" not in table.headings, "nobody says"
    assert "learned lr" in stages_table([report(learned_lr=0.0123)]).headings


def test_a_finished_stage_is_a_line() -> None:
    assert stage_line(report(learned_lr=0.0123), 5) == (
        "Stage 1/5 done: 3 images, matching loss 1.500 -> 0.875, learned lr 0.0123, start-point accuracy 75.0 ± 2.0 %"
        " (4 networks)"
    )


def test_memories_are_compared_in_percent() -> None:
    facts = {"protocol": "gdumb", "images": 5, "part": "val", "n": 2, "seconds": 3.0}
    figures = {"mean": 0.5, "std": 0.1, "forgetting": 0.25, "forgetting_std": 0.0}
    found = entry(continual_table([{"row": "none", **figures, **facts}]))
    assert (found["accuracy %"], found["forgetting %"], found["scored on"]) == (
        "50.0 ± 10.0",
        "25.0 ± 0.0",
        "validation part",
    )


def test_networks_and_seeds_are_summarised_apart() -> None:
    summary = summarize_seeds([[0.5, 0.7], [0.7, 0.9]])
    assert (summary["seeds"], summary["networks"]) == (2, 2)
    assert (summary["mean"], summary["std"]) == pytest.approx((0.7, (0.08 / 3) ** 0.5))
    assert summary["seed_std"] == pytest.approx(0.02**0.5)
    assert summarize_seeds([[0.5]])["std"] is None, "a single number has no spread"


def test_settings_are_flat() -> None:
    nested = {"model": {"class_path": "package.DM", "init_args": {"net": {"class_path": "Net"}, "rates": [1, 2]}}}
    assert settings_as_text(nested) == {"model": "DM", "model.net": "Net", "model.rates": "[1, 2]"}
