"""The page: what it compares, what stands on it, that nothing breaks it, and that it needs nothing else."""

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from pdd_lightning import DistilledDataset
from pdd_lightning.data.distilled import save_distilled
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.results import page as page_module
from pdd_lightning.results.folders import Run, read_folders
from pdd_lightning.results.page import compare_settings, comparison, over_seeds, render_page, start_point_plots
from pdd_lightning.results.tables import Table
from tests.results.conftest import NAMES, PLAIN, row, stage, write_summary

MakeRun = Callable[..., Path]
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags with their attributes, the visible text, and whether every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.text = " ".join(f"{self.text} {data}".split())


def read(*folders: Path) -> list[Run]:
    return read_folders(folders).runs


def show(*folders: Path) -> Page:
    page = Page(render_page(read_folders(folders)))
    assert page.open == []
    return page


def images(page: Page) -> dict[str, str]:
    """Sources by what the pictures show."""
    return {attributes["alt"] or "": attributes["src"] or "" for tag, attributes in page.tags if tag == "img"}


def entries(table: Table, *headings: str) -> list[tuple[str, ...]]:
    """Columns of a table, line by line."""
    places = [table.headings.index(heading) for heading in headings]
    return [tuple(line[place] for place in places) for line in table.lines]


def test_a_line_per_part_and_protocol_with_the_full_set_beside_each(make_run: MakeRun) -> None:
    folder = make_run("a")
    more = [row("distilled", 0.7, protocol="union"), row("random real", 0.4, protocol="union")]
    full = row("full real", 0.95, protocol="all images")
    write_summary(folder, evaluation=[row("distilled", 0.8, "val"), row("distilled", 0.81), *more, full])
    names = ("scored on", "protocol", "distilled %", "random real %", "full real %")
    assert entries(comparison(read(folder)), *names) == [
        ("validation part", "progressive", "80.0 ± 2.0", "", ""),
        ("test part", "progressive", "81.0 ± 2.0", "", "95.0 ± 2.0"),
        ("test part", "union", "70.0 ± 2.0", "40.0 ± 2.0", "95.0 ± 2.0"),
    ]


def test_of_a_set_scored_at_every_stage_the_whole_set_counts(make_run: MakeRun) -> None:
    folder = make_run("a")
    write_summary(folder, evaluation=[row("distilled", 0.8, images=6), row("distilled", 0.6, images=3)])
    assert entries(comparison(read(folder)), "distilled %") == [("80.0 ± 2.0",)]


def test_what_a_run_is_and_costs(make_run: MakeRun) -> None:
    costs = ("iterations per stage", "iterations in total", "distil seconds", "memory MB", "stages", "seed", "method")
    expected = ("1500", "3000", "48", "802", "2", "0", "DistributionMatching")
    assert entries(comparison(read(make_run("a"))), *costs)[0] == expected
    folder = make_run("b")
    write_summary(folder, evaluation=[], stages=[stage(1, 0.5)])
    names = ("protocol", "stages", "iterations in total", "notes")
    assert entries(comparison(read(folder)), *names) == [
        ("not evaluated", "1 of 2", "1500", "1 of 2 stages are finished")
    ]


def test_seeds_are_summarised_by_mean_and_sample_deviation_of_their_means(make_run: MakeRun) -> None:
    table = over_seeds(read(*(make_run(f"s{seed}", seed, mean) for seed, mean in enumerate((0.70, 0.76, 0.79)))))
    names = ("scored on", "distillation seeds", "distilled %", "full real %")
    assert entries(table, *names) == [
        ("validation part", "0, 1, 2", "74.0 ± 4.6", ""),
        ("test part", "0, 1, 2", "75.0 ± 4.6", "95.0 ± 0.0"),
    ]


def test_a_seed_counts_once_however_often_it_was_run(make_run: MakeRun) -> None:
    runs = read(make_run("a", 0, 0.6), make_run("again", 0, 0.6), make_run("b", 1, 0.8))
    assert entries(over_seeds(runs), "runs", "distilled %")[1] == ("a, b", "70.0 ± 14.1")
    assert over_seeds(runs[:2]).lines == []


def test_what_only_some_seeds_have_is_not_averaged(make_run: MakeRun) -> None:
    first, second = make_run("a", 0), make_run("b", 1)
    write_summary(second, evaluation=[row("distilled", 0.9)])
    table = over_seeds(read(first, second))
    assert len(table.lines) == 1 and "full real %" not in table.headings


def test_runs_with_other_settings_or_other_training_are_not_averaged(make_run: MakeRun) -> None:
    first, second = make_run("a", 0), make_run("b", 1, lr_img=3.0)
    assert over_seeds(read(first, second)).lines == []
    third = make_run("c", 1)
    write_summary(third, evaluation=[row("distilled", 0.9, epochs=[500, 500])])
    assert over_seeds(read(first, third)).lines == []
    unfinished = make_run("d", 1)
    write_summary(unfinished, stages=[stage(1, 0.5)])
    assert over_seeds(read(first, unfinished)).lines == []


def test_settings_differ_but_for_where_a_run_was_recorded(make_run: MakeRun) -> None:
    table, shared = compare_settings(read(make_run("a", 0), make_run("b_c", 1, lr_img=3.0)))
    assert table.headings == ["setting", "a", "b_c"]
    assert table.lines == [["model.lr_img", "1.0", "3.0"], ["seed_everything", "0", "1"]]
    assert shared["model"] == "DistributionMatching" and "trainer.default_root_dir" not in shared


def test_growth_is_drawn_dataset_by_dataset_with_seeds_as_one(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(page_module, "draw_rows", lambda figure, rows, x, series: drawn.append((x, rows)))
    folders = [make_run("a", 0, 0.6), make_run("b", 1, 0.8), make_run("c", 0, 0.5, lr_img=3.0), make_run("d")]
    write_summary(folders[3], dataset={"name": "Shapes"})
    pictures = start_point_plots(read(*folders), [])
    captions = [f"{name}, start-point accuracy by images" for name in ("Blobs", "Shapes")]
    assert [picture.caption for picture in pictures] == captions
    assert [x for x, _ in drawn] == ["images"] * 2
    seeds, alone = ([one for one in drawn[0][1] if one["row"] == name] for name in ("a, b", "c"))
    assert [(one["stage"], one["images"]) for one in seeds] == [(1, 3), (2, 6)]
    assert [one["mean"] for one in seeds] == pytest.approx([0.5, 0.6])
    assert seeds[0]["std"] == pytest.approx(0.02**0.5), "between runs"
    assert alone[0]["std"] == 0.01, "over the networks of the run"
    stages = json.loads((folders[2] / "summary.json").read_text())["stages"]
    write_summary(folders[2], stages=[{**stage, "images": 5 * stage["images"]} for stage in stages])
    drawn.clear()
    start_point_plots(read(*folders[:3]), [])
    assert [x for x, _ in drawn] == ["stage", "images"], "where runs differ in images, stages are another axis"
    write_summary(folders[3], stages=[])
    assert start_point_plots(read(folders[3]), []) == []


def test_figures_and_what_they_mean(make_run: MakeRun) -> None:
    page = show(make_run("first", 0, 0.81), make_run("second", 1, 0.62, lr_img=3.0))
    for part in (
        "81.0 ± 2.0",
        "80.0 ± 2.0",
        "62.0 ± 2.0",
        "50.0 ± 2.0",
        "95.0 ± 2.0",
        "0.0123",
        "start-point accuracy",
    ):
        assert part in page.text
    for part in ("validation", "test", "progressive", "Selection", "standard deviation over the networks"):
        assert part in page.text
    assert "Settings that differ setting first second model.lr_img 1.0 3.0 seed_everything 0 1" in page.text
    assert "Blobs, start-point accuracy by images" in images(page)
    levels = [attributes["style"] for tag, attributes in page.tags if attributes.get("class") == "level"]
    assert levels[0] == "--level: 71%", "accuracy of the first class"


def test_text_from_files_cannot_break_the_page(make_run: MakeRun, make_study: Callable[[str], Path]) -> None:
    evil = "<b>\"'&</script><script>alert(1)</script>"
    folder = make_run("a<i>b", names=["<b>", evil, "red"], augment=evil)
    rows = [row(evil, 0.5, part=evil, protocol=evil, per_class={evil: 0.5, "<b>": 0.1})]
    write_summary(folder, dataset={"name": evil}, evaluation=rows)
    damaged = make_run("damaged<i>")
    (damaged / "summary.json").write_text('{"evaluation": [{"row": "</section>"}]}')
    page = show(folder, damaged, make_study("<i>"))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert {"b", "i"}.isdisjoint(tag for tag, _ in page.tags)
    for part in (evil, "<b>", "a<i>b", "Three seeds <each>."):
        assert part in page.text


@pytest.mark.parametrize("name", ["a$b_{$", "_hidden", "caf\udce9", "two\nlines"])
def test_any_name_of_a_folder_can_be_shown(name: str, make_run: MakeRun) -> None:
    assert len(images(show(make_run(name)))) == 3


def test_the_page_needs_nothing_else(make_run: MakeRun, make_study: Callable[[str], Path]) -> None:
    html = render_page(read_folders([make_run("a"), make_study("s")]))
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "base")
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("data:image/png;base64,", "#"))
    assert not re.search(r"url\(|@import|fetch\(|import\(|https?://", html)
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {a["href"][1:] for tag, a in page.tags if tag == "a" and a["href"]} <= targets


def test_distilled_images_are_shown_in_their_colours(make_run: MakeRun) -> None:
    folder = make_run("a")
    sources = images(show(folder))
    assert {"distilled images", "easiest"} <= set(sources), "and not the union's and the stages' pictures again"
    assert not {"union", "stage 1"} & set(sources)
    with Image.open(io.BytesIO(base64.b64decode(sources["distilled images"].partition(",")[2]))) as picture:
        shown = {picture.tobytes()[place : place + 3] for place in range(0, 3 * picture.width * picture.height, 3)}
    pixels = (255 * DistilledDataset(folder / "distilled.safetensors").to_pixels()).round().to(torch.uint8)
    assert {bytes(pixel) for pixel in pixels.permute(0, 2, 3, 1).reshape(-1, 3).tolist()} <= shown


@pytest.mark.parametrize("soft", [False, True])
def test_of_large_sets_a_part_is_shown(soft: bool, make_run: MakeRun) -> None:
    folder, classes, each = make_run("a"), 30, 12
    labels = torch.arange(classes).repeat_interleave(each)
    large = SyntheticSet(
        torch.rand(len(labels), 1, 32, 32),
        torch.nn.functional.one_hot(labels).float() if soft else labels,
        torch.ones(len(labels), dtype=torch.int64),
        (None,),
    )
    names = [f"class {n}" for n in range(classes)]
    save_distilled(folder / "distilled.safetensors", large, PLAIN.__class__([0.0], [1.0]), names, {})
    shown = images(show(folder))["distilled images, the first 5 of each stage and class, of 20 classes"]
    with Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2]))) as picture:
        assert 5 * 64 < picture.width < 7 * 64 and 20 * 64 < picture.height < 22 * 68


def test_images_that_are_no_pictures_are_told(make_run: MakeRun) -> None:
    folder = make_run("a")
    two = SyntheticSet.empty((2, 8, 8)).append(torch.zeros(3, 2, 8, 8), torch.arange(3))
    save_distilled(folder / "distilled.safetensors", two, PLAIN.__class__([0.0] * 2, [1.0] * 2), NAMES, {})
    assert "images of 2 channels are not shown" in show(folder).text


def test_study_is_shown(make_study: Callable[[str], Path]) -> None:
    page = show(make_study("stages"))
    for part in ("Stages at equal IPC", "81.2 ± 1.0", "Three seeds <each>.", "pdd fit --config a.yaml"):
        assert part in page.text
    assert "In all rows: scored on: validation part." in page.text
    assert list(images(page)) == ["plot"]
