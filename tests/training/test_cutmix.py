import pytest
import torch
from torch.nn import functional as F

from pdd_lightning.training import Mixed, mix


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def own_share(mixed, images):
    """Share of each image's pixels that are its own, where all images differ everywhere."""
    return (mixed.images == images).all(1).float().mean((1, 2))


def numbered(count=6, side=8):
    """Image n is the constant n."""
    return torch.arange(float(count)).view(-1, 1, 1, 1).expand(count, 2, side, side)


def test_without_a_probability_nothing_is_drawn():
    source = generator()
    state = source.get_state()
    images = numbered()
    mixed = mix(images, 0.0, source)
    assert mixed.images is images and mixed.partners is None and mixed.share == 1
    assert torch.equal(source.get_state(), state)


def test_one_box_of_a_partner_whose_area_is_the_share():
    images, source, shares = numbered(), generator(), []
    for _ in range(50):
        mixed = mix(images, 1.0, source)
        assert sorted(mixed.partners.tolist()) == list(range(6))
        foreign = mixed.images != images
        for number in range(6):
            assert bool((mixed.images[number][foreign[number]] == mixed.partners[number]).all())
        changed = [row for row in range(6) if mixed.partners[row] != row]
        assert bool((foreign[changed] == foreign[changed][:1]).all())
        rows, columns = foreign[changed[0], 0].any(1).sum(), foreign[changed[0], 0].any(0).sum()
        assert foreign[changed[0], 0].sum() == rows * columns
        torch.testing.assert_close(own_share(mixed, images)[changed[0]], torch.tensor(mixed.share))
        shares.append(mixed.share)
    assert 0.4 < sum(shares) / 50 < 0.85 and min(shares) < 0.5 and max(shares) > 0.9
    assert torch.equal(images, numbered())


def test_the_probability_is_that_of_mixing():
    source = generator()
    count = sum(mix(numbered(), 0.5, source).partners is not None for _ in range(200))
    assert 70 < count < 130


@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_weighs_both_labels(soft):
    logits, labels = torch.randn(6, 3, generator=generator()), torch.tensor([0, 1, 2, 0, 1, 2])
    one_hot = F.one_hot(labels, 3).float()
    mixed = Mixed(numbered(), torch.tensor([1, 2, 3, 4, 5, 0]), 0.3)
    blended = 0.3 * one_hot + 0.7 * one_hot[mixed.partners]
    torch.testing.assert_close(mixed.loss(logits, one_hot if soft else labels), F.cross_entropy(logits, blended))
    assert Mixed(numbered()).loss(logits, labels) == F.cross_entropy(logits, labels)
