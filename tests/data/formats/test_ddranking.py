"""Folders as DD-Ranking loads them."""

import pytest
import torch

from pdd_lightning.data import DistilledDataset
from pdd_lightning.data.formats import FORMATS, ImportOptions, find_format, open_distilled
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError, DataError


def as_peers_read(folder, num_classes):
    """Images and labels as DD-Ranking takes them: labels by order, unless there are soft ones."""
    images = torch.load(folder / "images.pt")
    labels = torch.arange(num_classes).repeat_interleave(len(images) // num_classes)
    return images, torch.load(folder / "labels.pt") if (folder / "labels.pt").exists() else labels


def of(synthetic, blobs):
    return DistilledDataset.of(synthetic, blobs.pixels, blobs.class_names, {})


def test_labels_by_order_are_those_of_a_staged_set(even, blobs, tmp_path):
    FORMATS["ddranking"].save(tmp_path / "set", of(even, blobs))
    images, labels = as_peers_read(tmp_path / "set", 3)
    original = {
        tuple(image.flatten().tolist()): int(label) for image, label in zip(even.images, even.labels, strict=True)
    }
    assert {
        tuple(image.flatten().tolist()): int(label) for image, label in zip(images, labels, strict=True)
    } == original
    assert float(torch.load(tmp_path / "set" / "lr.pt")) == pytest.approx(0.013)
    assert not (tmp_path / "set" / "labels.pt").exists()


def test_a_set_comes_back_with_its_stages(even, blobs, tmp_path):
    FORMATS["ddranking"].save(tmp_path / "set", of(even, blobs))
    assert find_format(tmp_path / "set").name == "ddranking"
    back = open_distilled(tmp_path / "set", blobs, ImportOptions(num_stages=2)).synthetic
    for stage in (1, 2):
        order, other = even.stage(stage).labels.argsort(), back.stage(stage).labels.argsort()
        assert torch.equal(back.stage(stage).images[other], even.stage(stage).images[order])


def test_soft_labels_stay_beside_their_images(even, blobs, tmp_path):
    probabilities = torch.nn.functional.one_hot(even.labels, 3) * 0.7 + 0.1
    soft = SyntheticSet(even.images, probabilities, even.stages, even.learning_rates)
    FORMATS["ddranking"].save(tmp_path / "set", of(soft, blobs))
    images, labels = as_peers_read(tmp_path / "set", 3)
    for image, label in zip(soft.images, soft.labels, strict=True):
        (found,) = ((images == image).flatten(1).all(1)).nonzero()
        assert torch.equal(labels[found[0]], label)


def test_classes_of_different_size_are_refused(staged_blobs, blobs, tmp_path):
    uneven = SyntheticSet.empty((3, 8, 8)).append(staged_blobs.images[:4], torch.tensor([0, 1, 2, 2]), None)
    with pytest.raises(ConfigError, match="as many images of each class"):
        FORMATS["ddranking"].save(tmp_path / "set", of(uneven, blobs))


def test_images_that_do_not_divide_among_the_classes_are_refused(blobs, tmp_path):
    (tmp_path / "set").mkdir()
    torch.save(torch.zeros(4, 3, 8, 8), tmp_path / "set" / "images.pt")
    with pytest.raises(DataError, match="as many images of each of the 3 classes"):
        open_distilled(tmp_path / "set", blobs)
