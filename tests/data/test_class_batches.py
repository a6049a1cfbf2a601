import torch

from pdd_lightning.data import ClassSampler, ImageSplit, Standardized, by_class


def split(counts):
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    return ImageSplit.in_order(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), labels)


def test_rows_are_different_images_of_their_class():
    part = split([6, 2, 4])
    drawn = ClassSampler(part, 3, Standardized([0.5], [0.5])).draw(4, torch.Generator().manual_seed(1))
    assert drawn.counts == [4, 2, 4] and drawn.positions.shape == (3, 4)
    for label in range(3):
        row = drawn.of_class(label)
        assert len(set(row.tolist())) == drawn.counts[label]
        assert (part.labels[drawn.positions[label]] == label).all()
    torch.testing.assert_close(drawn.weights()[1], torch.tensor([0.5, 0.5, 0.0, 0.0]))
    torch.testing.assert_close(drawn.weights().sum(1), torch.ones(3))
    assert part.labels[drawn.joint(3)].tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


def test_other_generators_draw_others():
    sampler = ClassSampler(split([50, 50]), 2, Standardized([0.5], [0.5]))
    first, second = (sampler.draw(5, torch.Generator().manual_seed(seed)).positions for seed in (1, 2))
    assert not torch.equal(first, second)


def test_synthetic_images_are_sorted_by_class_in_their_order():
    images = torch.arange(6.0).view(6, 1, 1, 1)
    sorted_images = by_class(images, torch.tensor([0, 1, 2, 0, 1, 2]), 3)
    assert sorted_images.flatten(1).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert by_class(images[:0], torch.zeros(0, dtype=torch.int64), 3).shape == (3, 0, 1, 1, 1)
