"""Pictures: every image is there in its true colours, whatever is written beside it."""

import io

import pytest
import torch
from PIL import Image

from pdd_lightning.data import ForgettingScores, ImageSplit
from pdd_lightning.results.grids import count_previous, encode_png, example_grid, labeled_grid, tile_images

NAMES = ["cat", "dog"]


def uniform(*colours, size=8):
    """One image per colour, all of that colour."""
    return torch.stack([torch.tensor(colour, dtype=torch.float32).view(-1, 1, 1).expand(-1, size, size)
                        for colour in colours])  # fmt: skip


def places(picture, colour, size=56):
    """Left and top edges of the squares of a colour, which must fill each."""
    found = (picture == torch.tensor(colour).view(3, 1, 1)).all(0)
    corners = []
    while bool(found.any()):
        top, left = (int(value) for value in found.nonzero()[0])
        square = found[top : top + size, left : left + size]
        assert square.numel() == size**2 and bool(square.all()), "a square that is not one of the colour"
        corners.append((left, top))
        square.fill_(False)
    return corners


def grid(pixels, labels, stages=None, **options):
    labels = torch.tensor(labels)
    stages = torch.ones(len(labels), dtype=torch.int64) if stages is None else torch.tensor(stages)
    return labeled_grid(pixels, labels, stages, NAMES, "title", **options)


@pytest.mark.parametrize("captions", [None, ["0.5", "1", "2", "inf"]])
def test_all_images_are_there_in_their_colours_in_rows_of_classes(captions):
    """Also where the set does not list stages in order, and a stage has more images of one class."""
    pixels = uniform((1, 0, 0), (0, 1, 0), (0.25, 0.5, 0.75), (2, -1, 0.001))
    picture = grid(pixels, [0, 0, 1, 0], stages=[2, 1, 1, 1], captions=captions)
    (blue,) = places(picture, (64, 128, 191))
    red = places(picture, (255, 0, 0))
    (green,) = places(picture, (0, 255, 0))
    assert len(red) == 2, "values outside are clipped"
    assert green[0] == blue[0] < red[0][0] < red[1][0], "columns in the order of stages"
    assert red[0][1] == red[1][1] == green[1] < blue[1], "rows in the order of classes"


def test_small_images_are_enlarged_by_a_whole_factor_without_smoothing():
    image = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    image[0, :, 0, 0] = torch.tensor([1.0, 0.0, 1.0])
    picture = grid(image, [1])
    top, left = (int(v) for v in (picture == torch.tensor([255, 0, 255]).view(3, 1, 1)).all(0).nonzero()[0])
    expected = (image[0] * 255).round().to(torch.uint8).repeat_interleave(3, 1).repeat_interleave(3, 2)
    assert torch.equal(picture[:, top : top + 60, left : left + 60], expected)


def test_large_images_keep_their_size():
    assert len(places(grid(uniform((0, 1, 0), size=64), [0]), (0, 255, 0), size=64)) == 1


def test_images_of_one_channel_are_grey():
    picture = grid(uniform((0.0,), (0.05,)), [0, 1])  # darker than the text
    assert len(places(picture, (0, 0, 0))) == len(places(picture, (13, 13, 13))) == 1


def test_soft_labels_count_by_their_likeliest_class():
    pixels = uniform((1, 0, 0), (0, 1, 0))
    soft = labeled_grid(pixels, torch.tensor([[0.3, 0.7], [0.9, 0.1]]), torch.ones(2).long(), NAMES, "title")
    assert torch.equal(soft, grid(pixels, [1, 0]))


@pytest.mark.parametrize(
    "other", [{"title": "other"}, {"class_names": ["cow", "dog"]}, {"stages": torch.tensor([2])}, {"captions": ["3"]}]
)
def test_words_are_drawn_beside_the_images(other):
    words = {"stages": torch.tensor([1]), "class_names": NAMES, "title": "title", "captions": ["2"]}
    first, second = (labeled_grid(uniform((1, 0, 0)), torch.tensor([0]), **each) for each in (words, words | other))
    assert first.shape != second.shape or not torch.equal(first, second)
    assert len(places(second, (255, 0, 0))) == 1


def test_long_words_are_not_cut_off():
    picture = labeled_grid(uniform((1, 0, 0)), torch.tensor([0]), torch.tensor([1]), NAMES, "long " * 40)
    assert bool((picture[:, :, -2:] == 255).all()) and picture.shape[2] > 600


def test_the_hardest_and_the_easiest_examples_of_each_class():
    images = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 0, 255]], dtype=torch.uint8)
    examples = ImageSplit.in_order(images.view(4, 3, 1, 1).expand(-1, -1, 8, 8), torch.tensor([0, 0, 1, 1]))
    column = torch.tensor([0.0, 0.25, 0.5, 0.75], dtype=torch.float64)
    scores = ForgettingScores(torch.arange(4), column, column, column, column)
    for hardest in (True, False):
        picture = example_grid(examples, scores, NAMES, "toys", hardest)
        (red,), (green,), (blue,), (pink,) = (places(picture, tuple(image)) for image in images.tolist())
        assert red[1] == green[1] < blue[1] == pink[1]
        assert (red[0] > green[0]) == (blue[0] > pink[0]) == hardest


def test_png_files_hold_the_picture():
    picture = tile_images(uniform((1, 0, 0), (0, 0.5, 0)), 2, 1)
    with Image.open(io.BytesIO(encode_png(picture))) as image:
        assert image.size == (picture.shape[2], picture.shape[1]) and image.tobytes()[:3] == b"\xff" * 3
        assert image.getpixel((1, 1)) == (255, 0, 0) and image.getpixel((12, 4)) == (0, 128, 0)


def test_ranks_count_equal_keys():
    assert count_previous("abacab") == [0, 0, 1, 0, 2, 1]
