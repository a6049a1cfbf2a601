import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pdd_lightning.data.splits import EncodedImages
from pdd_lightning.training import score_network


class Fixed(nn.Module):
    """Reads its logits from the first pixels of an image."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        return images.flatten(1)[:, :3]


def case(predictions, labels):
    """Images for which `Fixed` predicts what is asked."""
    images = torch.zeros(len(labels), 1, 2, 2)
    images.flatten(1)[torch.arange(len(labels)), torch.tensor(predictions)] = 1
    return images, torch.tensor(labels)


PREDICTIONS, LABELS = [0, 0, 1, 2, 1, 1, 0], [0, 0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 512])
def test_accuracy_is_counted_by_hand(batch_size):
    score = score_network(Fixed(), *case(PREDICTIONS, LABELS), 3, batch_size)
    assert score.accuracy == pytest.approx(4 / 7)
    assert score.per_class == pytest.approx([2 / 4, 2 / 2, 0 / 1])


def test_a_class_without_images_scores_zero():
    score = score_network(Fixed(), *case([0, 2, 2], [0, 0, 2]), 3)
    assert score.accuracy == pytest.approx(2 / 3)
    assert score.per_class == pytest.approx([0.5, 0, 1])


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_comes_back(training):
    network = Fixed().train(training)
    score_network(network, *case(PREDICTIONS, LABELS), 3)
    assert network.training is training


def test_running_statistics_stay_as_they_are(blobs):
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 3))
    images = EncodedImages(blobs.val.images, blobs.pixels)
    before = network[0].running_mean.clone()
    first = score_network(network, images, blobs.val.labels, 3)
    assert torch.equal(network[0].running_mean, before)
    assert score_network(network, images, blobs.val.labels, 3) == first


def test_it_works_in_inference_mode():
    with torch.inference_mode():
        assert score_network(Fixed(), *case(PREDICTIONS, LABELS), 3).accuracy == pytest.approx(4 / 7)


def test_a_process_scores_without_waiting_for_others(monkeypatch):
    """There is no other process here: whoever waited for one would fail."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    assert score_network(Fixed(), *case(PREDICTIONS, LABELS), 3).accuracy == pytest.approx(4 / 7)
