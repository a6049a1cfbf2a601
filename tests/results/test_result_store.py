import json

import pytest

from pdd_lightning.results.result_store import ResultStore, StoredScore, TaskResult, row_title, rows_from_results
from pdd_lightning.results.tables import evaluation_table


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
    scores = [StoredScore(accuracy=early, per_class=[0, 0]), StoredScore(accuracy=accuracy, per_class=list(per_class))]
    return TaskResult(about=about, number=number, scores=scores, seconds=[seconds / 2, seconds])


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
    assert json.loads(json.dumps(rows)) == rows


def test_earlier_stages_come_before_the_last_where_asked_for():
    results = [result("distilled", 0, 0.8, protocol=protocol, early=0.3) for protocol in ("progressive", "union")]
    rows = rows_from_results(results, ["cat", "dog"], every_stage=True)
    assert [row_title(row) for row in rows] == ["distilled, stage 1", "distilled", "distilled, union"]
    figures = [(row["images"], row["steps"], row["learning_rates"], row["mean"], row["seconds"]) for row in rows]
    assert figures[0] == (6, 10, [0.02], 0.3, 0.5)
    assert figures[1] == (12, 30, [0.02, 0.01], 0.8, 1.0)
    assert "stage" in evaluation_table(rows).headings and "stage" not in evaluation_table(rows[1:]).headings


def test_a_result_comes_back_from_the_store(tmp_path):
    store = ResultStore(tmp_path / "new" / "results.jsonl")
    assert store.get({"a": 1, "b": [2]}) is None
    store.put({"a": 1, "b": [2]}, RESULTS[0].model_dump())
    store.put({"a": 2}, [3, None])
    with (tmp_path / "new" / "results.jsonl").open("a") as file:
        file.write('{"key": "cut o')
    again = ResultStore(tmp_path / "new" / "results.jsonl")
    assert TaskResult.model_validate(again.get({"b": [2], "a": 1})) == RESULTS[0]
    again.put({"a": 3}, 4)
    values = [ResultStore(again.path).get({"a": number}) for number in (2, 3, 4)]
    assert values == [[3, None], 4, None]


def test_a_store_without_a_file_keeps_values_while_it_lives():
    store = ResultStore()
    store.put({"a": 1}, 2)
    assert (store.get({"a": 1}), ResultStore().get({"a": 1})) == (2, None)
