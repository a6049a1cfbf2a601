import json

import pytest

from pdd_lightning.evaluation import TaskResult, format_table, rows_from_results, rows_table, stages_table
from pdd_lightning.training import Score


def result(row, seed, accuracy, per_class=(0.5, 0.5), part="test", seconds=1.0):
    return TaskResult(row, "progressive", part, 12, seed, Score(accuracy, list(per_class)), seconds)


RESULTS = [
    result("distilled", 1, 0.6, (0.4, 0.8), seconds=2.0),
    result("random real", 0, 0.25),
    result("distilled", 0, 0.4, (0.2, 0.6), seconds=3.0),
    result("distilled", 2, 0.8, (0.9, 0.7), seconds=4.0),
]


@pytest.fixture
def rows():
    return rows_from_results(RESULTS, ["cat", "dog"])


def test_mean_and_spread_are_those_computed_by_hand(rows):
    distilled, random_real = rows
    assert distilled["mean"] == pytest.approx(0.6)
    assert distilled["std"] == pytest.approx(0.2)  # sqrt((0.2^2 + 0 + 0.2^2) / 2)
    assert (distilled["n"], distilled["seconds"]) == (3, 9.0)
    assert distilled["per_class"] == pytest.approx({"cat": 0.5, "dog": 0.7})
    assert (random_real["mean"], random_real["std"], random_real["n"]) == (0.25, 0.0, 1)


def test_rows_come_in_order_and_networks_by_number(rows):
    assert [row["row"] for row in rows] == ["distilled", "random real"]
    assert rows[0]["accuracies"] == [0.4, 0.6, 0.8]
    assert (rows[0]["protocol"], rows[0]["part"], rows[0]["images"]) == ("progressive", "test", 12)
    assert rows_from_results([], ["cat", "dog"]) == []


def test_rows_are_json(rows):
    assert json.loads(json.dumps(rows)) == rows


def test_the_table_of_rows_gives_percent(rows):
    lines = rows_table(rows).splitlines()
    assert lines[0].split("  ")[0].strip() == "training images" and set(lines[1]) == {"-"}
    assert lines[2].split() == ["distilled", "progressive", "12", "test", "60.0", "+-20.0", "3", "9"]
    assert lines[3].split()[-3:] == ["+-0.0", "1", "1"]
    assert "validation" in rows_table(rows_from_results([result("distilled", 0, 0.5, part="val")], ["cat", "dog"]))


def test_columns_are_aligned():
    assert format_table(["name", "n"], [["a", "10"], ["longer", "5"]]).splitlines() == [
        "name     n",
        "----------",
        "a       10",
        "longer   5",
    ]


def test_the_table_of_stages():
    stage = {
        "stage": 1,
        "images": 20,
        "real_images": 690,
        "learned_lr": 0.012344,
        "first_loss": 1.25,
        "last_loss": 0.5,
        "val_accuracy": 0.411,
        "val_std": 0.02,
        "seconds": {"distil": 12.4, "transition": 3.0, "experts": 4.0},
        "peak_memory_mb": 512.3,
    }
    later = {**stage, "stage": 2, "learned_lr": None, "real_images": None}
    first, second = stages_table([stage, later]).splitlines()[2:]
    assert first.split() == ["1", "20", "690", "0.01234", "1.250", "->", "0.500", "41.1", "+-2.0", "12", "7", "512"]
    assert second.split()[:4] == ["2", "20", "-", "-"]
