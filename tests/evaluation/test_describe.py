import copy
import json
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure

from pdd_lightning.augment import DSA
from pdd_lightning.data.distilled import DistilledDataset, save_distilled
from pdd_lightning.data.splits import to_unit
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation.describe import REAL, describe_stages, example_images, groups_of
from pdd_lightning.results.plots import draw_methods, draw_stages
from pdd_lightning.results.tables import NUMBERS, description_table
from pdd_lightning.training import TrainingSettings
from tests.tiny import NAMES

TRAINING = TrainingSettings(epochs=15, lr=0.05, batch_size=16)


@pytest.fixture(scope="module")
def distilled(blobs, tmp_path_factory):
    """Stage 1: two real training images per class; stage 2: plain grey; stage 3: a checkerboard, far from anything."""
    members = torch.cat([blobs.train.images_of_class(label)[:2] for label in range(3)])
    rows = torch.arange(8)
    board = ((rows[:, None] + rows) % 2).float().expand(3, 3, 8, 8)
    grey = torch.full((3, 3, 8, 8), 0.5)
    staged = SyntheticSet.empty(blobs.image_shape)
    staged = staged.append(blobs.pixels.encode(to_unit(blobs.train.images[members])), blobs.train.labels[members])
    for images in (grey, board):
        staged = staged.append(blobs.pixels.encode(images), torch.arange(3))
    path = tmp_path_factory.mktemp("set") / "set.safetensors"
    return DistilledDataset(save_distilled(path, staged, blobs.pixels, NAMES, {}))


def describe(distilled, blobs, factory, **options):
    return describe_stages(distilled, blobs, factory, TRAINING, DSA("none"), **{"num_networks": 2, **options})


@pytest.fixture(scope="module")
def rows(distilled, blobs, factory):
    return describe(distilled, blobs, factory)


def test_there_is_a_row_per_stage_and_one_of_held_out_images(rows, blobs):
    assert [(row["row"], row["stage"], row["images"]) for row in rows] == [
        ("stage 1", 1, 6),
        ("stage 2", 2, 3),
        ("stage 3", 3, 3),
        (REAL, None, len(blobs.val)),
    ]


def test_the_numbers_say_what_the_images_are(rows):
    real_train, grey, board, held_out = rows
    assert real_train["nearest_real"] == 0 < held_out["nearest_real"] < board["nearest_real"]
    assert real_train["accuracy"] > 0.9 and held_out["accuracy"] > 0.9
    assert grey["accuracy"] == board["accuracy"] == pytest.approx(1 / 3)  # the same image under three labels
    assert grey["confidence"] == pytest.approx(1 / 3)
    assert grey["silhouette"] < held_out["silhouette"] > 0.1
    assert (grey["colourfulness"], grey["variation"], grey["low"]) == pytest.approx((0, 0, 0), abs=1e-2)
    assert (board["high"], board["variation"]) == pytest.approx((1, 1), abs=1e-3)
    assert held_out["low"] > held_out["middle"] > 0


def test_the_spread_is_over_images(distilled, blobs, factory):
    grey = describe(distilled, blobs, factory, num_networks=1)[1]
    assert grey["variation_std"] == pytest.approx(0, abs=1e-5)
    assert grey["accuracy_std"] == pytest.approx((1 / 3) ** 0.5)  # of one image right and two wrong


def test_the_seed_decides(distilled, blobs, factory, rows):
    assert describe(distilled, blobs, factory) == rows
    assert describe(distilled, blobs, factory, seed=1)[0]["confidence"] != rows[0]["confidence"]


def test_rows_are_json_and_make_a_table(rows):
    assert json.loads(json.dumps(rows)) == rows
    table = description_table(rows)
    assert [line[0] for line in table.lines] == ["stage 1", "stage 2", "stage 3", REAL]
    assert table.headings[2:] == [name.replace("_", " ") for name in NUMBERS]


def test_soft_labels_count_by_their_likeliest_class(distilled, blobs):
    soft = copy.copy(distilled)
    labels = torch.nn.functional.one_hot(distilled.labels, 3).float() * 0.8 + 0.2 / 3
    soft.synthetic = replace(distilled.synthetic, labels=labels)
    pairs = zip(groups_of(soft, blobs), groups_of(distilled, blobs), strict=True)
    assert all(torch.equal(group.labels, expected.labels) for group, expected in pairs)


def test_no_network_is_refused(distilled, blobs, factory):
    with pytest.raises(ConfigError, match="num_networks must be >= 1, got 0"):
        describe(distilled, blobs, factory, num_networks=0)


@pytest.mark.parametrize("colourful", [False, True])
def test_the_figure_shows_each_row_and_each_number_but_colour_where_there_is_none(rows, distilled, blobs, colourful):
    examples = example_images(distilled, blobs)
    assert [len(images) for images in examples.values()] == [6, 3, 3, 10]
    figure = Figure()
    draw_stages(figure, rows if colourful else [{**row, "colourfulness": 0.0} for row in rows], examples, "blobs")
    labels = [axes.get_ylabel().replace("\n", " ") for axes in figure.subfigs[0].axes]
    assert labels == ["stage 1", "stage 2", "stage 3", REAL]
    titles = [axes.get_title() for axes in figure.subfigs[1].axes]
    assert titles == list(NUMBERS.values())[not colourful :]


def test_examples_take_the_classes_in_turn(distilled, blobs):
    """The set holds both images of a class one after the other."""
    images = example_images(distilled, blobs)["stage 1"]
    assert torch.equal(images, groups_of(distilled, blobs)[0].pixels[[0, 2, 4, 1, 3, 5]])


def test_methods_are_compared_number_by_number(rows):
    figure = Figure()
    draw_methods(figure, [{**row, "method": method, "seeds": 2} for method in ("A", "B") for row in rows])
    assert [axes.get_title() for axes in figure.axes] == list(NUMBERS.values())
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["A", "B"]
    drawn = figure.axes[4].containers[1].lines[0].get_ydata()
    assert list(drawn) == [row["variation"] for row in rows if row["stage"]]
