"""Tables of rows as text, Markdown and CSV."""

import csv
import io
import re
from typing import Any

import pytest

from pdd_lightning.results.schema import StageReport
from pdd_lightning.results.tables import (
    continual_table,
    csv_table,
    evaluation_table,
    flatten,
    markdown_table,
    over_seeds,
    stages_table,
    table_of,
    text_table,
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
    table = markdown_table(rows)
    head, _, first = map(cells, table.splitlines()[:3])
    assert (head, first) == (["method", "accuracy %"], ["A", "50.0 ± 1.0"])
    assert table.endswith("In all rows: scored on: validation part.")
    assert text_table(rows).startswith("In all rows: scored on: validation part.\n\n")


def test_numbers_keep_three_digits_and_their_spread() -> None:
    rows = [
        {"row": "a", "low": 0.5184, "low_std": 0.0123, "seconds": 1234.5},
        {"row": "b", "low": 0.25, "seconds": 2.5},
    ]
    lines = [cells(line) for line in markdown_table(rows).splitlines()]
    assert lines[0] == ["training images", "low", "evaluation s"]
    assert lines[2:] == [["a", "0.518 ± 0.0123", "1234"], ["b", "0.25", "2.5"]]


def test_what_a_row_does_not_say_stays_empty() -> None:
    table = table_of([{"row": "a", "low": float("nan"), "high": None}, {"row": "b", "low": 1.0}])
    assert (table.headings, table.lines) == (["training images", "low"], [["a", ""], ["b", "1"]])
    assert table.numeric() == [False, True]


def test_bars_in_cells_do_not_end_them() -> None:
    assert "a\\|b" in markdown_table([{"row": "a|b", "mean": 0.5}])


def test_csv_has_all_columns_and_digits() -> None:
    rows = [{"row": "a, b", "mean": 1 / 3}, {"row": "c", "std": None, "seeds": 2}]
    read = list(csv.DictReader(io.StringIO(csv_table(rows))))
    assert read[0] == {"row": "a, b", "mean": str(1 / 3), "std": "", "seeds": ""}
    assert read[1]["seeds"] == "2"


def test_evaluated_rows_say_what_they_are() -> None:
    table = evaluation_table([row(), row("full real", images=90, steps=10, mean=0.9, n=1, std=0.0, epochs=[4])])
    facts, _, head, _, first, second = table.splitlines()
    for fact in ("scored on: test part", "scored images: 9", "network: ConvNet, depth 2", "seed: 3"):
        assert fact in facts
    assert dict(zip(cells(head), cells(first), strict=False))["accuracy %"] == "50.0 ± 12.5"
    assert cells(first)[:2] == ["distilled", "progressive"]
    assert cells(second)[2:5] == ["90", "10", "90.0"], "a single network has no spread"
    assert evaluation_table([]) == "nothing evaluated"


def test_the_stage_is_a_column_where_there_are_several() -> None:
    head = evaluation_table([row(stage=1), row()]).splitlines()[2]
    assert "stage" in cells(head)
    assert "stage" not in cells(evaluation_table([row(), row("random real")]).splitlines()[2])


def test_stages_are_described_by_start_points_not_by_symbols() -> None:
    seconds = {"experts": 1.0, "distil": 250.0, "transition": 3.0}
    report = StageReport(
        stage=1,
        images=3,
        lr_img=1.0,
        first_loss=1.5,
        last_loss=0.875,
        val_accuracy=0.75,
        val_std=0.0,
        val_networks=1,
        seconds=seconds,
        peak_memory_mb=800.4,
    )
    head, _, line = map(cells, stages_table([report]).splitlines())
    found = dict(zip(head, line, strict=True))
    assert (found["start-point accuracy %"], found["distillation s"], found["memory MB"]) == ("75.0", "250", "800")
    assert "real images" not in found and "learned lr" not in found, "nobody says"


def test_memories_are_compared_in_percent() -> None:
    facts = {"protocol": "gdumb", "images": 5, "part": "val", "n": 2, "seconds": 3.0}
    figures = {"mean": 0.5, "std": 0.1, "forgetting": 0.25, "forgetting_std": 0.0}
    head, _, line = map(cells, continual_table([{"row": "none", **figures, **facts}]).splitlines())
    found = dict(zip(head, line, strict=True))
    assert (found["accuracy %"], found["forgetting %"], found["scored on"]) == (
        "50.0 ± 10.0",
        "25.0 ± 0.0",
        "validation part",
    )


def test_networks_and_seeds_are_summarised_apart() -> None:
    summary = over_seeds([[0.5, 0.7], [0.7, 0.9]])
    assert (summary["seeds"], summary["networks"]) == (2, 2)
    assert (summary["mean"], summary["std"]) == pytest.approx((0.7, (0.08 / 3) ** 0.5))
    assert summary["seed_std"] == pytest.approx(0.02**0.5)
    assert over_seeds([[0.5]])["std"] is None, "a single number has no spread"


def test_settings_are_flat() -> None:
    nested = {"model": {"class_path": "package.DM", "init_args": {"net": {"class_path": "Net"}, "rates": [1, 2]}}}
    assert flatten(nested) == {"model": "DM", "model.net": "Net", "model.rates": "[1, 2]"}
