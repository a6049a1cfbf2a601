import json
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure

from pdd_lightning.augment import DSA
from pdd_lightning.data.splits import to_unit
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation import Subject
from pdd_lightning.evaluation import describe as describe_module
from pdd_lightning.evaluation import subject as subject_module
from pdd_lightning.evaluation.describe import REAL, describe_stages, example_images, groups_of
from pdd_lightning.evaluation.subject import outputs_of
from pdd_lightning.results.plots import draw_methods, draw_stages
from pdd_lightning.results.result_store import ResultStore
from pdd_lightning.results.tables import STATISTICS, description_table
from pdd_lightning.training import TrainingSettings

TRAINING = TrainingSettings(epochs=15, lr=0.05, batch_size=16)


@pytest.fixture(scope="module")
def subject(blobs, factory):
    """Stage 1: two real training images per class; stage 2: plain grey; stage 3: a checkerboard, far from anything."""
    members = torch.cat([blobs.train.images_of_class(label)[:2] for label in range(3)])
    rows = torch.arange(8)
    board = ((rows[:, None] + rows) % 2).float().expand(3, 3, 8, 8)
    grey = torch.full((3, 3, 8, 8), 0.5)
    staged = SyntheticSet.empty(blobs.image_shape)
    staged = staged.append(blobs.pixels.encode(to_unit(blobs.train.images[members])), blobs.train.labels[members])
    for images in (grey, board):
        staged = staged.append(blobs.pixels.encode(images), torch.arange(3))
    return Subject(staged, blobs, blobs.pixels, factory, DSA("none"), "val")


def describe(subject, num_networks=2, **changes):
    return describe_stages(replace(subject, **changes), TRAINING, num_networks, progress=False)


@pytest.fixture(scope="module")
def rows(subject):
    return describe(subject)


def test_there_is_a_row_per_stage_and_one_of_held_out_images(rows, blobs):
    assert [(row["row"], row["stage"], row["images"]) for row in rows] == [
        ("stage 1", 1, 6),
        ("stage 2", 2, 3),
        ("stage 3", 3, 3),
        (REAL, None, len(blobs.val)),
    ]


def test_the_statistics_say_what_the_images_are(rows):
    real_train, grey, board, held_out = rows
    assert real_train["nearest_real"] == 0 < held_out["nearest_real"] < board["nearest_real"]
    assert real_train["accuracy"] > 0.9 and held_out["accuracy"] > 0.9
    assert grey["accuracy"] == board["accuracy"] == pytest.approx(1 / 3)  # the same image under three labels
    assert grey["confidence"] == pytest.approx(1 / 3)
    assert grey["silhouette"] < held_out["silhouette"] > 0.1
    assert (grey["colourfulness"], grey["variation"], grey["low"]) == pytest.approx((0, 0, 0), abs=1e-2)
    assert (board["high"], board["variation"]) == pytest.approx((1, 1), abs=1e-3)
    assert held_out["low"] > held_out["middle"] > 0


def test_the_spread_is_over_images(subject):
    grey = describe(subject, num_networks=1)[1]
    assert grey["variation_std"] == pytest.approx(0, abs=1e-5)
    assert grey["accuracy_std"] == pytest.approx((1 / 3) ** 0.5)  # of one image right and two wrong


def test_a_single_image_has_no_spread(subject):
    """And of an image beyond black and white, what can be shown of it is described."""
    single = SyntheticSet.empty((3, 8, 8)).append(3 * subject.synthetic.images[-1:], torch.tensor([2]))
    row = describe_stages(replace(subject, synthetic=single), TrainingSettings(epochs=1), 1, progress=False)[0]
    assert [row[f"{name}_std"] for name in STATISTICS] == [0.0] * len(STATISTICS)
    shown = groups_of(replace(subject, synthetic=single))[0].pixels
    assert shown.unique().tolist() == [0, 1]


def test_images_are_compared_with_the_mean_features_of_real_ones(subject, monkeypatch):
    """In the network that was trained on them."""
    networks, centroids = [], []
    monkeypatch.setattr(describe_module, "outputs_of", lambda *rest: networks.append(rest[0]) or outputs_of(*rest))
    silhouette = describe_module.centroid_silhouette
    monkeypatch.setattr(
        describe_module, "centroid_silhouette", lambda *rest: centroids.append(rest[2]) or silhouette(*rest)
    )
    describe(subject, num_networks=1, store=ResultStore())
    images, labels = subject.real_images("train")
    features = outputs_of(networks[0], images[torch.arange(len(images))]).features
    expected = torch.stack([features[labels == label].mean(0) for label in range(3)])
    torch.testing.assert_close(centroids[0], expected, rtol=1e-4, atol=1e-5)


def test_the_seed_decides(subject, rows):
    assert describe(subject) == rows
    assert describe(subject, seed=1)[0]["confidence"] != rows[0]["confidence"]


def test_a_description_that_was_interrupted_is_continued(subject, rows, tmp_path, monkeypatch):
    path, trained = tmp_path / "rows.networks.jsonl", []
    train = subject_module.train_network

    def interrupted(*rest):
        if trained:
            raise KeyboardInterrupt
        trained.append(train(*rest))

    monkeypatch.setattr(subject_module, "train_network", interrupted)
    with pytest.raises(KeyboardInterrupt):
        describe(subject, store=ResultStore(path))
    monkeypatch.setattr(subject_module, "train_network", lambda *rest: trained.append(train(*rest)))
    assert describe(subject, store=ResultStore(path)) == rows
    assert len(trained) == 2
    for change in ({"seed": 1}, {"augment": DSA("crop")}, {"synthetic": subject.synthetic.union(2)}):
        trained.clear()
        describe(subject, num_networks=1, store=ResultStore(path), **change)
        assert len(trained) == 1


def test_rows_are_json_and_make_a_table(rows):
    assert json.loads(json.dumps(rows)) == rows
    table = description_table(rows)
    assert [line[0] for line in table.lines] == ["stage 1", "stage 2", "stage 3", REAL]
    assert table.headings[2:] == [name.replace("_", " ") for name in STATISTICS]


def test_soft_labels_count_by_their_likeliest_class(subject):
    labels = torch.nn.functional.one_hot(subject.synthetic.labels, 3).float() * 0.8 + 0.2 / 3
    soft = replace(subject, synthetic=replace(subject.synthetic, labels=labels))
    pairs = zip(groups_of(soft), groups_of(subject), strict=True)
    assert all(torch.equal(group.labels, expected.labels) for group, expected in pairs)


def test_images_that_stand_for_several_are_described_decoded(subject):
    decoded = groups_of(replace(subject, synthetic=replace(subject.synthetic, decode_factor=2)))
    assert [len(group.images) for group in decoded[:3]] == [4 * 6, 4 * 3, 4 * 3]
    assert all(group.images.shape == group.pixels.shape for group in decoded)


def test_no_network_is_refused(subject):
    with pytest.raises(ConfigError, match="num_networks must be >= 1, got 0"):
        describe(subject, num_networks=0)


@pytest.mark.parametrize("colourful", [False, True])
def test_the_figure_shows_each_row_and_each_statistic_but_colour_where_there_is_none(rows, subject, colourful):
    examples = example_images(subject)
    assert [len(images) for images in examples.values()] == [6, 3, 3, 10]
    figure = Figure()
    draw_stages(figure, rows if colourful else [{**row, "colourfulness": 0.0} for row in rows], examples, "blobs")
    labels = [axes.get_ylabel().replace("\n", " ") for axes in figure.subfigs[0].axes]
    assert labels == ["stage 1", "stage 2", "stage 3", REAL]
    titles = [axes.get_title() for axes in figure.subfigs[1].axes]
    assert titles == list(STATISTICS.values())[not colourful :]


def test_examples_take_the_classes_in_turn(subject):
    """The set holds both images of a class one after the other."""
    images = example_images(subject)["stage 1"]
    assert torch.equal(images, groups_of(subject)[0].pixels[[0, 2, 4, 1, 3, 5]])


def test_methods_are_compared_statistic_by_statistic(rows):
    figure = Figure()
    draw_methods(figure, [{**row, "method": method, "seeds": 2} for method in ("A", "B") for row in rows])
    assert [axes.get_title() for axes in figure.axes] == list(STATISTICS.values())
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["A", "B"]
    drawn = figure.axes[4].containers[1].lines[0].get_ydata()
    assert list(drawn) == [row["variation"] for row in rows if row["stage"]]
