import pytest
import torch
from PIL import ImageChops

from pdd_lightning.callbacks.pictures import GAP, PAPER, SMALLEST_CELL, as_tensor, example_grid, labelled_grid
from pdd_lightning.data import ForgettingScores, ImageSplit

NAMES = ["cat", "dog"]


def uniform(*colours, size=8):
    """One image per colour, all of that colour."""
    return torch.stack([torch.tensor(colour, dtype=torch.float32).view(-1, 1, 1).expand(-1, size, size)
                        for colour in colours])  # fmt: skip


def cells(picture, colour):
    """Left and top edges of the cells of a colour, which must fill each cell."""
    found = (as_tensor(picture) == torch.tensor(colour).view(3, 1, 1)).all(0)
    places = []
    while bool(found.any()):
        top, left = (int(value) for value in found.nonzero()[0])
        cell = found[top : top + SMALLEST_CELL, left : left + SMALLEST_CELL]
        assert cell.numel() == SMALLEST_CELL**2 and bool(cell.all()), "a cell that is not one of the colour"
        places.append((left, top))
        cell.fill_(False)
    return places


def grid(pixels, labels, stages=None, names=NAMES):
    labels = torch.tensor(labels)
    stages = torch.ones(len(labels), dtype=torch.int64) if stages is None else torch.tensor(stages)
    return labelled_grid(pixels, labels, stages, names, "title")


def test_colours_are_true():
    """Pure red stays red; values are rounded, and clipped to [0, 1]."""
    colours = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.25, 0.5, 0.75), (2, -1, 0.001)]
    picture = grid(uniform(*colours[:4]), [0, 1, 0, 1])
    for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255), (64, 128, 191)]:
        assert len(cells(picture, colour)) == 1
    assert len(cells(grid(uniform(colours[4]), [0]), (255, 0, 0))) == 1


def test_rows_are_classes_and_columns_images():
    picture = grid(uniform((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0)), [0, 1, 0, 1])
    (first, second), (green,), (blue,) = (cells(picture, c) for c in [(255, 0, 0), (0, 255, 0), (0, 0, 255)])
    step = SMALLEST_CELL + GAP
    assert first[1] == blue[1] and green[1] == second[1] == first[1] + step
    assert first[0] == green[0] and blue[0] == second[0] == first[0] + step


def test_stages_stand_apart_in_order():
    """Also where the set does not list them in order, and a stage has more images of one class."""
    colours = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]
    picture = grid(uniform(*colours), [0, 0, 1, 0], stages=[2, 1, 1, 1])
    red, green, blue, cyan = (cells(picture, tuple(255 * v for v in colour))[0] for colour in colours)
    step = SMALLEST_CELL + GAP
    assert green[0] == blue[0] and cyan[0] == green[0] + step
    assert red[0] > cyan[0] + step, "a gap wider than between images"
    assert red[1] == green[1] == cyan[1] == blue[1] - step


def test_small_images_are_enlarged_by_a_whole_factor_without_smoothing():
    image = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    image[0, :, 0, 0] = torch.tensor([1.0, 0.0, 1.0])
    picture = as_tensor(grid(image, [1]))
    top, left = (int(v) for v in (picture == torch.tensor([255, 0, 255]).view(3, 1, 1)).all(0).nonzero()[0])
    tile = picture[:, top : top + 60, left : left + 60]
    expected = (image[0] * 255).round().to(torch.uint8).repeat_interleave(3, 1).repeat_interleave(3, 2)
    assert torch.equal(tile, expected)


def test_large_images_stay_as_they_are():
    image = torch.zeros(1, 3, 64, 64)
    image[0, 0] = torch.arange(64) / 255
    image[0, 1] = 1.0
    picture = as_tensor(grid(image, [0]))
    green = (picture[1] == 255) & (picture[2] == 0)
    assert int(green.sum()) == 64 * 64
    assert torch.equal(picture[0][green].view(64, 64)[5], torch.arange(64, dtype=torch.uint8))


def test_images_of_one_channel_are_grey():
    picture = grid(uniform((0.0,), (0.05,)), [0, 1])  # darker than the text
    assert len(cells(picture, (0, 0, 0))) == len(cells(picture, (13, 13, 13))) == 1


def test_soft_labels_count_by_their_likeliest_class():
    pixels = uniform((1, 0, 0), (0, 1, 0))
    soft = labelled_grid(pixels, torch.tensor([[0.3, 0.7], [0.9, 0.1]]), torch.ones(2), NAMES, "title")
    hard = grid(pixels, [1, 0], stages=[1.0, 1.0])
    assert soft.tobytes() == hard.tobytes()


def different(first, second):
    """Left, top, right and bottom edge of where two pictures differ."""
    assert first.size == second.size
    return ImageChops.difference(first, second).getbbox()


@pytest.mark.parametrize(("names", "row"), [(["cow", "dog"], 0), (["cat", "cow"], 1)])
def test_names_stand_left_of_their_rows(names, row):
    # A longer third name keeps the margin equal, whatever the widths of the letters.
    pixels, third = uniform((1, 0, 0), (0, 1, 0)), "a longer name"
    picture, other = (grid(pixels, [0, 1], names=[*each, third]) for each in (NAMES, names))
    left, top = cells(picture, [(255, 0, 0), (0, 255, 0)][row])[0]
    box = different(picture, other)
    assert box is not None and box[2] < left
    assert top < box[1] and box[3] < top + SMALLEST_CELL


def test_title_and_stages_stand_above_the_images():
    pixels = uniform((1, 0, 0))
    label, one = torch.tensor([0]), torch.tensor([1])
    picture = labelled_grid(pixels, label, one, NAMES, "title")
    top = cells(picture, (255, 0, 0))[0][1]
    title = different(picture, labelled_grid(pixels, label, one, NAMES, ""))
    stage = different(picture, labelled_grid(pixels, label, torch.tensor([2]), NAMES, "title"))
    assert title is not None and stage is not None
    assert title[3] <= stage[1] and stage[3] <= top


def test_a_long_title_is_not_cut_off():
    picture = labelled_grid(uniform((1, 0, 0)), torch.tensor([0]), torch.tensor([1]), NAMES, "long " * 40)
    assert as_tensor(picture)[:, :, -GAP:].eq(torch.tensor(PAPER).view(3, 1, 1)).all()
    assert picture.width > 600


def test_a_class_without_images_has_an_empty_row():
    picture = grid(uniform((1, 0, 0)), [1])
    (cell,) = cells(picture, (255, 0, 0))
    two = cells(grid(uniform((1, 0, 0), (0, 1, 0)), [1, 0]), (255, 0, 0))
    assert [cell] == two


def test_captions_stand_under_their_images():
    pixels, labels = uniform((1, 0, 0), (0, 1, 0)), torch.tensor([0, 1])
    first, second = (
        labelled_grid(pixels, labels, torch.ones(2), NAMES, "title", captions)
        for captions in (["1.5", "2"], ["1.5", "3"])
    )
    (left, top), (_, red) = cells(first, (0, 255, 0))[0], cells(first, (255, 0, 0))[0]
    box = different(first, second)
    assert box is not None and box[0] >= left and box[1] >= top + SMALLEST_CELL
    assert top > red + SMALLEST_CELL + GAP, "rows are further apart"


def test_images_without_a_stage_have_none_above_them():
    pixels, label = uniform((1, 0, 0)), torch.tensor([0])
    without, named = (labelled_grid(pixels, label, torch.tensor([stage]), NAMES, "") for stage in (0, 1))
    assert different(without, named) is not None
    above = as_tensor(without)[:, : cells(without, (255, 0, 0))[0][1]]
    assert bool((above == torch.tensor(PAPER).view(3, 1, 1)).all())


def test_the_hardest_and_the_easiest_examples_of_each_class():
    values = [0.0, 0.25, 0.5, 0.75]
    images = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 0, 255]], dtype=torch.uint8)
    examples = ImageSplit.in_order(images.view(4, 3, 1, 1).expand(-1, -1, 8, 8), torch.tensor([0, 0, 1, 1]))
    column = torch.tensor(values, dtype=torch.float64)
    scores = ForgettingScores(torch.arange(4), column, column, column, column)
    for hardest in (True, False):
        picture = example_grid(examples, scores, NAMES, "toys", hardest)
        (red,), (green,), (blue,), (pink,) = (cells(picture, tuple(image)) for image in images.tolist())
        assert red[1] == green[1] < blue[1] == pink[1]
        assert (red[0] > green[0]) == (blue[0] > pink[0]) == hardest
