"""The page: what stands on it, that nothing breaks it, and that it needs nothing else."""

import base64
import io
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
from pdd_lightning.report import pictures, read_folders, render_page
from tests.report.conftest import PLAIN, row, write_summary

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

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.text = " ".join(f"{self.text} {data}".split())


def show(*folders: Path) -> Page:
    page = Page(render_page(read_folders(folders)))
    assert page.open == []
    return page


def images(page: Page) -> list[str]:
    return [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]


def test_figures_and_what_they_mean(make_run: MakeRun) -> None:
    text = show(make_run("first", 0, 0.81), make_run("second", 1, 0.62, lr_img=3.0)).text
    for part in ("81.0 ± 2.0", "80.0 ± 2.0", "62.0 ± 2.0", "50.0 ± 2.0", "95.0 ± 2.0", "3,000", "802", "0.01230"):
        assert part in text
    for part in ("validation", "test", "progressive", "Selection", "standard deviation over the networks"):
        assert part in text
    assert (
        "Settings that differ from other runs model.lr_img 3.0 seed_everything 1 Settings that all runs share" in text
    )


def test_steps_and_conditions_are_shown_where_rows_state_them(make_run: MakeRun) -> None:
    folder = make_run("a")
    stated = {"steps": 4321, "epochs": [500, 500], "training": {"batch_size": 256}, "scored": 297}
    write_summary(folder, evaluation=[row("distilled", 0.8, **stated, init="fresh"), row("x", 0.7, **stated, init="y")])
    text = show(folder).text
    assert "4,321" in text
    assert "All rows: epochs 500, 500; training batch_size 256; scored images 297." in text
    assert "fresh" in text


def test_text_from_files_cannot_break_the_page(make_run: MakeRun, make_study: Callable[[str], Path]) -> None:
    evil = "<b>\"'&</script><script>alert(1)</script>"
    folder = make_run("a<i>b", names=["<b>", evil, "red"], augment=evil)
    rows = [row(evil, 0.5, part=evil, protocol=evil, seed=evil, per_class={evil: 0.5, "<b>": 0.1})]
    write_summary(folder, dataset={"name": evil}, evaluation=rows)
    damaged = make_run("damaged<i>")
    (damaged / "summary.json").write_text('{"evaluation": [{"row": "</section>"}]}')
    page = show(folder, damaged, make_study("<i>"))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert {"b", "i"}.isdisjoint(tag for tag, _ in page.tags)
    for part in (evil, "<b>", "a<i>b", "Three seeds <each>."):
        assert part in page.text


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


def test_grids_hold_the_distilled_images(make_run: MakeRun) -> None:
    folder = make_run("a")
    dataset = DistilledDataset(folder / "distilled.safetensors")
    sources = images(show(folder))
    assert len(sources) == 3, "two stages, and the picture that shows something else"
    with Image.open(io.BytesIO(base64.b64decode(sources[1].partition(",")[2]))) as sheet:
        pixels = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8).view(sheet.height, sheet.width, 4)
    third = pixels[:8, 18:26, :3].permute(2, 0, 1)
    assert torch.equal(third, (dataset.to_pixels()[5] * 255).round().to(torch.uint8))


@pytest.mark.parametrize("soft", [False, True])
def test_large_sets_are_shown_in_part(soft: bool, tmp_path: Path) -> None:
    classes, each = 30, 12
    labels = torch.arange(classes).repeat_interleave(each)
    large = SyntheticSet(
        torch.rand(len(labels), 1, 32, 32),
        torch.nn.functional.one_hot(labels).float() if soft else labels,
        torch.ones(len(labels), dtype=torch.int64),
        (None,),
    )
    path = tmp_path / "distilled.safetensors"
    save_distilled(path, large, PLAIN.__class__([0.0], [1.0]), [f"class {n}" for n in range(classes)], {})
    shown = pictures.stage_sheets(path)
    assert shown.left_out == "Shown are the first 20 of 30 classes and 10 of up to 12 images per class and stage."
    assert (shown.sheets[0].width, shown.sheets[0].height) == (20 * 34, 10 * 34)
    assert shown.narrow


def test_images_that_are_no_pictures_are_told(make_run: MakeRun) -> None:
    folder = make_run("a")
    two = SyntheticSet.empty((2, 8, 8)).append(torch.zeros(3, 2, 8, 8), torch.arange(3))
    space = PLAIN.__class__([0.0] * 2, [1.0] * 2)
    save_distilled(folder / "distilled.safetensors", two, space, ["blue", "green", "red"], {})
    assert "images of 2 channels are not shown" in show(folder).text


def test_damage_is_told(make_run: MakeRun) -> None:
    stopped, damaged = make_run("stopped"), make_run("damaged")
    (damaged / "summary.json").write_text("{")
    (stopped / "distilled.safetensors").unlink()
    text = show(stopped, damaged).text
    assert "Folders that cannot be shown damaged : summary.json is damaged" in text
    assert "cannot read distilled set" in text
    assert "see notes" in text


def test_study_is_shown(make_study: Callable[[str], Path]) -> None:
    page = show(make_study("stages"))
    for part in ("Stages at equal IPC", "81.25", "Three seeds <each>.", "pdd fit --config a.yaml"):
        assert part in page.text
    assert len(images(page)) == 1
