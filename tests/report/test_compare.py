"""Lines of the comparison, and what runs with several seeds have in common."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pdd_lightning.report import Run, read_folders
from pdd_lightning.report.charts import growths, ticks
from pdd_lightning.report.compare import iterations, lines_of, memory, same_but_for_seed, seconds, seed_lines
from pdd_lightning.report.values import differing, flatten
from tests.report.conftest import row, stage, write_summary

MakeRun = Callable[..., Path]


def read(*folders: Path) -> list[Run]:
    return read_folders(folders).runs


def test_a_line_per_part_and_protocol_with_the_full_set_beside_each(make_run: MakeRun) -> None:
    folder = make_run("a")
    more = [row("distilled", 0.7, protocol="union"), row("random real", 0.4, protocol="union")]
    full = row("full real", 0.95, protocol="all images")
    write_summary(folder, evaluation=[row("distilled", 0.8, "val"), row("distilled", 0.81), *more, full])
    (run,) = read(folder)
    found = [(line.part, line.protocol, {name: one.mean for name, one in line.rows.items()}) for line in lines_of(run)]
    assert found == [
        ("val", "progressive", {"distilled": 0.8}),
        ("test", "progressive", {"distilled": 0.81, "full real": 0.95}),
        ("test", "union", {"distilled": 0.7, "random real": 0.4, "full real": 0.95}),
    ]


def test_of_a_set_scored_at_every_stage_the_whole_set_counts(make_run: MakeRun) -> None:
    folder = make_run("a")
    write_summary(folder, evaluation=[row("distilled", 0.8, images=6), row("distilled", 0.6, images=3)])
    (line,) = lines_of(read(folder)[0])
    assert line.rows["distilled"].mean == 0.8


def test_a_run_that_was_not_evaluated_has_a_line(make_run: MakeRun) -> None:
    folder = make_run("a")
    write_summary(folder, evaluation=[])
    (line,) = lines_of(read(folder)[0])
    assert (line.part, line.protocol, line.rows) == ("", "", {})


def test_cost_of_a_run(make_run: MakeRun) -> None:
    (run,) = read(make_run("a"))
    assert iterations(run) == (1500, 3000)
    assert seconds(run) == pytest.approx(48)
    assert memory(run) == 802


def test_seeds_are_summarised_by_mean_and_sample_deviation_of_their_means(make_run: MakeRun) -> None:
    runs = read(*(make_run(f"s{seed}", seed, mean) for seed, mean in enumerate((0.70, 0.76, 0.79))))
    validation, test = seed_lines(runs)
    assert (validation.lines[0].part, test.lines[0].part) == ("val", "test")
    assert test.seeds == ["0", "1", "2"]
    assert test.rows["distilled"].mean == pytest.approx(0.75)
    assert test.rows["distilled"].std == pytest.approx(((0.05**2 + 0.01**2 + 0.04**2) / 2) ** 0.5)
    assert validation.rows["distilled"].mean == pytest.approx(0.74)
    assert test.rows["full real"].std == 0


def test_a_seed_counts_once_however_often_it_was_run(make_run: MakeRun) -> None:
    runs = read(make_run("a", 0, 0.6), make_run("again", 0, 0.6), make_run("b", 1, 0.8))
    test = seed_lines(runs)[1]
    assert [line.run.name for line in test.lines] == ["a", "b"] and test.rows["distilled"].mean == pytest.approx(0.7)
    assert seed_lines(runs[:2]) == []


def test_what_only_some_seeds_have_is_not_averaged(make_run: MakeRun) -> None:
    first, second = make_run("a", 0), make_run("b", 1)
    write_summary(second, evaluation=[row("distilled", 0.9)])
    (line,) = seed_lines(read(first, second))
    assert list(line.rows) == ["distilled"]


def test_runs_with_other_settings_or_other_training_are_not_averaged(make_run: MakeRun) -> None:
    first, second = make_run("a", 0), make_run("b", 1, lr_img=3.0)
    assert seed_lines(read(first, second)) == []
    third = make_run("c", 1)
    write_summary(third, evaluation=[row("distilled", 0.9, epochs=[500, 500])])
    assert seed_lines(read(first, third)) == []
    unfinished = make_run("d", 1)
    write_summary(unfinished, stages=[stage(1, 0.5)])
    assert seed_lines(read(first, unfinished)) == []


def test_settings_are_flat_and_leave_out_where_a_run_was_recorded(make_run: MakeRun) -> None:
    nested = {"model": {"class_path": "package.DM", "init_args": {"net": {"class_path": "Net"}, "rates": [1, 2]}}}
    assert flatten(nested) == {"model": "DM", "model.net": "Net", "model.rates": "[1, 2]"}
    runs = read(make_run("a", 0), make_run("b", 1, lr_img=3.0))
    assert "trainer.default_root_dir" not in runs[0].settings
    assert differing([run.settings for run in runs]) == ["model.lr_img", "seed_everything"]


def test_curves_rise_with_the_accuracy_and_seeds_share_a_look(make_run: MakeRun) -> None:
    runs = read(make_run("a", 0, 0.6), make_run("b", 1, 0.9), make_run("c", 0, 0.5, lr_img=3.0))
    (growth,) = growths(same_but_for_seed(runs))
    by_stage, by_images = growth.charts
    assert [curve.look.colour for curve in by_stage.curves] == [0, 0, 1]
    assert [entry.text for entry in growth.legend] == ["a, b", "c"]
    for curve in by_images.curves:
        assert curve.points[0].x < curve.points[1].x
        assert curve.points[0].y > curve.points[1].y, "pixels count downwards"
        assert all(point.low > point.y > point.high for point in curve.points)
    assert [text for _, text in by_images.x_ticks] == ["3", "6"]
    assert by_stage.curves[1].points[1].text == "b, stage 2, 6 images: 80.0 ± 1.0 %"


def test_stages_without_accuracy_are_not_drawn(make_run: MakeRun) -> None:
    folder = make_run("a")
    write_summary(folder, stages=[stage(1, 0.5), stage(2, float("nan"))])
    (growth,) = growths([read(folder)])
    assert [len(curve.points) for chart in growth.charts for curve in chart.curves] == [1, 1]
    write_summary(folder, stages=[])
    assert growths([read(folder)]) == []


def test_datasets_are_drawn_apart(make_run: MakeRun) -> None:
    first, second = make_run("a"), make_run("b")
    write_summary(second, dataset={"name": "Shapes"})
    found = growths(same_but_for_seed(read(first, second)))
    assert [(growth.dataset, len(growth.charts[0].curves)) for growth in found] == [("Blobs", 1), ("Shapes", 1)]


@pytest.mark.parametrize(("low", "high"), [(0, 100), (57.3, 91.2), (88.8, 89.1), (1, 50_000), (3, 3)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert len(found) <= 6
    assert all(low - 1e-6 <= tick <= high + 1e-6 for tick in found)
    assert len(found) >= 3 or low == high
