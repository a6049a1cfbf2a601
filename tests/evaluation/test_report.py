import json

import pytest

from pdd_lightning.evaluation import TaskResult, format_table, row_title, rows_from_results, rows_table, stages_table
from pdd_lightning.training import Score


def result(row, number, accuracy, per_class=(0.5, 0.5), part="test", seconds=1.0, protocol="progressive", early=0.1):
    about = {
        "row": row,
        "protocol": protocol,
        "part": part,
        "scored": 100,
        "seed": 4,
        "network": {"class_path": "pdd_lightning.networks.ConvNet", "init_args": {}},
        "augment": "crop",
        "images": [6, 12],
        "phases": [
            {"stages": [1, 1], "steps": 10, "epochs": 10, "lr": 0.02},
            {"stages": [1, 2], "steps": 20, "epochs": 10, "lr": 0.01},
        ],
    }
    return TaskResult(about, number, [Score(early, [0, 0]), Score(accuracy, list(per_class))], [seconds / 2, seconds])


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
    assert lines[0] == "Accuracy on 100 test images, networks (ConvNet), 10 epochs a stage, augmentation crop, seed 4."
    assert lines[2].split("  ")[0].strip() == "training images" and set(lines[3]) == {"-"}
    assert lines[4].split() == ["distilled", "progressive", "12", "30", "3", "60.0", "+-20.0", "9"]
    assert lines[5].split()[-4:] == ["30", "1", "25.0", "1"]
    few = rows_from_results([result("distilled", 0, 0.5, part="val")], ["cat", "dog"])
    assert "validation images, 1 network (" in rows_table(few)


def test_earlier_stages_come_before_the_last_where_asked_for():
    results = [result("distilled", 0, 0.8, protocol=protocol, early=0.3) for protocol in ("progressive", "union")]
    rows = rows_from_results(results, ["cat", "dog"], every_stage=True)
    assert [row_title(row) for row in rows] == ["distilled, stage 1", "distilled", "distilled, union"]
    figures = [(row["images"], row["steps"], row["learning_rates"], row["mean"], row["seconds"]) for row in rows]
    assert figures[0] == (6, 10, [0.02], 0.3, 0.5)
    assert figures[1] == (12, 30, [0.02, 0.01], 0.8, 1.0)
    lines = rows_table(rows).splitlines()
    assert lines[2].split()[3] == "stage" and lines[4].split()[2:5] == ["1", "6", "10"]


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
        "val_networks": 8,
        "seconds": {"distil": 12.4, "transition": 3.0, "experts": 4.0},
        "peak_memory_mb": 512.3,
    }
    later = {**stage, "stage": 2, "learned_lr": None, "real_images": None, "val_networks": 1}
    first, second = stages_table([stage, later]).splitlines()[2:]
    assert first.split() == ["1", "20", "690", "0.01234", "1.250", "->", "0.500", "41.1", "+-2.0", "12", "7", "512"]
    assert second.split()[:4] == ["2", "20", "-", "-"]
    assert second.split()[7:9] == ["41.1", "12"]
