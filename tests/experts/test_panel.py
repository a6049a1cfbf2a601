import pytest
import torch
from torch import nn

from pdd_lightning.data.splits import to_unit
from pdd_lightning.experts import panel as panel_module
from pdd_lightning.experts.panel import ExpertPanel
from pdd_lightning.networks import flatten, unflatten

CPU = torch.device("cpu")


class Fixed:
    """Trajectories given as vectors; epoch 0 is another network than the one that is asked."""

    def __init__(self, vectors):
        self.vectors = vectors
        self.number = len(vectors)

    def segment(self, expert, first, last):
        return tuple(self.vectors[expert] * (1 if epoch == 5 else 0) for epoch in (first, last))


@pytest.fixture
def panel(factory):
    """Makes panels of random experts."""

    def make(number=2, network=None, seed=0):
        network = network or factory(3, 3, 8)
        size = len(flatten(dict(network.named_parameters())))
        generator = torch.Generator().manual_seed(seed)
        vectors = [0.3 * torch.randn(size, generator=generator) for _ in range(number)]
        return ExpertPanel(network, Fixed(vectors), 5, CPU)

    return make


def classes(panel, expert, images):
    """What an expert answers, by an ordinary forward pass."""
    params = unflatten(panel.trajectories.vectors[expert], dict(panel.network.named_parameters()))
    panel.network.load_state_dict(params)
    with torch.no_grad():
        return panel.network(images)


def test_logits_are_those_of_the_expert_at_its_epoch(panel):
    experts = panel()
    images = torch.randn(1100, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    before = flatten(dict(experts.network.named_parameters())).detach().clone()
    found = experts.logits(1, images)
    assert torch.equal(flatten(dict(experts.network.named_parameters())), before)
    torch.testing.assert_close(found, classes(experts, 1, images), rtol=1e-4, atol=1e-5)


def test_chosen_images_are_recognised_where_a_class_has_enough(panel, blobs):
    """The one expert of this panel knows few images of one class, most of another, and none of the third."""
    experts = panel(number=1, seed=5)
    everything = blobs.pixels.encode(to_unit(blobs.train.images))
    right = experts.logits(0, everything).argmax(1) == blobs.train.labels
    known = torch.bincount(blobs.train.labels[right], minlength=3).tolist()
    assert sorted(known)[0] < 4 < sorted(known)[1] < 9, "the test needs all kinds of classes"
    chosen = experts.recognized_images(blobs, blobs.train, 4, torch.Generator().manual_seed(0))
    matches = [(everything == image).flatten(1).all(1).nonzero().item() for image in chosen]
    assert len(set(matches)) == 12
    assert blobs.train.labels[matches].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert right[matches].view(3, 4).sum(1).tolist() == [min(4, count) for count in known]


def test_the_choice_depends_on_the_generator_alone(panel, blobs):
    first, same, other = (
        panel().recognized_images(blobs, blobs.train, 2, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.parametrize("batch", [1, 7, 9, 53])
def test_the_size_of_batches_changes_nothing(panel, blobs, monkeypatch, batch):
    """However many images are asked for at a time, and whether or not a class is asked for to its end."""
    images = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def answers():
        source = torch.Generator().manual_seed(0)
        return panel().logits(1, images), panel(1, seed=5).recognized_images(blobs, blobs.train, 3, source)

    expected = answers()
    monkeypatch.setattr(panel_module, "_BATCH", batch)
    torch.testing.assert_close(answers(), expected, rtol=1e-4, atol=1e-5)


def test_labels_are_the_mean_of_those_who_are_right(panel):
    experts = panel(number=3)
    images = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = torch.randint(3, (60,), generator=torch.Generator().manual_seed(3))
    votes = torch.stack([classes(experts, expert, images) for expert in range(3)])
    right = votes.argmax(2) == labels
    assert set(right.sum(0).tolist()) == {0, 1, 2, 3} or right.any(0).logical_not().any()
    found = experts.mean_logits(images, labels)
    for row in range(60):
        chosen = votes[right[:, row], row] if right[:, row].any() else votes[:, row]
        torch.testing.assert_close(found[row], chosen.mean(0), rtol=1e-4, atol=1e-5)


def test_dropout_and_batch_norm_give_the_same_answer_twice(panel):
    """As the experts were trained: batch statistics, no change of the running ones, no global random numbers."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    experts = panel(network=network)
    images = torch.randn(20, 3, 8, 8)
    state = torch.get_rng_state()
    assert torch.equal(experts.logits(0, images), experts.logits(0, images))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(network[2].running_mean, torch.zeros(8))
