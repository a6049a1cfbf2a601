import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from pdd_lightning.augment import decode, tile
from pdd_lightning.data.pixels import Standardized
from pdd_lightning.errors import ConfigError


def images(count=2, side=6, **options):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0), **options)


def test_factor_one_changes_nothing():
    originals, labels = images(), torch.tensor([1, 0])
    assert decode(originals, labels, 1)[0] is originals and decode(originals, labels, 1)[1] is labels


def test_pieces_come_row_by_row_and_crop_by_crop():
    """Each quarter of each image has a level of its own, which enlarging keeps."""
    levels = torch.arange(8.0).view(2, 1, 2, 2)
    decoded, labels = decode(levels.repeat_interleave(4, 2).repeat_interleave(4, 3), torch.tensor([5, 6]), 2)
    assert decoded.shape == (8, 1, 8, 8)
    assert decoded.amin((1, 2, 3)).tolist() == decoded.amax((1, 2, 3)).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert labels.tolist() == [5, 6] * 4


def test_soft_labels_are_repeated():
    soft = torch.tensor([[0.2, 0.8], [0.5, 0.5]])
    assert torch.equal(decode(images(), soft, 2)[1], soft.repeat(4, 1))


@pytest.mark.parametrize("side", [6, 7])
def test_decoding_and_standardizing_commute(side):
    space = Standardized([0.4, 0.5, 0.3], [0.2, 0.3, 0.4])
    labels = torch.tensor([0, 1])
    unit, _ = decode(images(side=side), labels, 3)
    model, _ = decode(space.encode(images(side=side)), labels, 3, space.level(0.5))
    torch.testing.assert_close(model, space.encode(unit), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", [4, 5])
def test_twice_differentiable(side):
    originals = images(1, side, dtype=torch.float64, requires_grad=True)
    labels = torch.zeros(1, dtype=torch.int64)
    assert gradcheck(lambda x: decode(x, labels, 2)[0], (originals,))
    assert gradgradcheck(lambda x: decode(x, labels, 2)[0].square(), (originals,))


@pytest.mark.parametrize(("side", "factor"), [(8, 2), (8, 3), (32, 3), (9, 3)])
def test_what_is_tiled_is_cut_apart_again(side, factor):
    """Plain images stay plain, so each piece shows whose it is; only the last row and column lose pixels."""
    levels = torch.arange(2.0 * factor**2).view(-1, 1, 1, 1)
    tiled = tile(levels.expand(-1, 3, side, side), factor)
    assert tiled.shape == (2, 3, side, side)
    decoded, _ = decode(tiled, torch.zeros(2), factor)
    middle = decoded[:, 0, side // 2 - 1, side // 2 - 1].view(-1, 2).T.flatten()
    torch.testing.assert_close(middle, levels.flatten())


def test_tiling_reduces_without_aliasing():
    """A fine checkerboard becomes gray."""
    board = (torch.arange(8).view(-1, 1) + torch.arange(8)).remainder(2).float().expand(4, 1, 8, 8)
    assert float((tile(board, 2) - 0.5).abs().max()) < 0.2


@pytest.mark.parametrize("function", [lambda x: decode(x, torch.zeros(25), 5), lambda x: tile(x, 5)])
def test_pieces_in_the_padding_are_refused(function):
    with pytest.raises(ConfigError, match=r"images of 8 pixels cannot be divided into 5 pieces per side"):
        function(torch.zeros(25, 3, 8, 8))


def test_a_factor_below_one_is_refused():
    with pytest.raises(ConfigError, match="decode factor must be >= 1, got 0"):
        decode(images(), torch.zeros(2), 0)
