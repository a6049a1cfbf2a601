import copy
import io

import pytest
import torch

from pdd_lightning.augment import DSA
from pdd_lightning.data.splits import EncodedImages
from pdd_lightning.networks import ConvNet, flatten
from pdd_lightning.training import OngoingTraining, TrainingSettings

SETTINGS = TrainingSettings(epochs=1, lr=0.05, batch_size=8, cutmix=0.5)


@pytest.fixture
def ongoing(factory):
    torch.manual_seed(0)
    return OngoingTraining(factory(3, 3, 8), SETTINGS)


@pytest.fixture
def train(blobs):
    images = EncodedImages(blobs.train.images, blobs.pixels)

    def one_pass(training, seed, count=24):
        source = torch.Generator().manual_seed(seed)
        return training.train_pass(images, blobs.train.labels, count, DSA("color_crop", together=True), source)

    return one_pass


def parameters(training):
    return flatten(dict(training.network.named_parameters())).detach()


def test_a_stored_training_goes_on_as_if_it_had_not_been(ongoing, train, factory):
    """With its momentum: parameters alone would not do."""
    train(ongoing, 1)
    file = io.BytesIO()
    torch.save(ongoing.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    continued, without_momentum = (OngoingTraining(factory(3, 3, 8), SETTINGS) for _ in range(2))
    continued.load_state_dict(state)
    without_momentum.network.load_state_dict(state["network"])
    for training in (ongoing, continued, without_momentum):
        train(training, 2)
    assert torch.equal(parameters(continued), parameters(ongoing))
    assert not torch.equal(parameters(without_momentum), parameters(ongoing))


def test_passes_make_the_network_learn(ongoing, train):
    records = [train(ongoing, seed, count=1000) for seed in range(12)]
    assert records[-1].loss < 0.7 * records[0].loss


def test_the_generator_alone_decides(ongoing, train):
    others = [copy.deepcopy(ongoing.network) for _ in range(2)]
    results = []
    for network, seed in ((ongoing.network, 3), (others[0], 3), (others[1], 4)):
        torch.manual_seed(len(results))
        training = OngoingTraining(network, SETTINGS)
        train(training, seed)
        results.append(parameters(training))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_a_pass_sees_so_many_images_without_repeats(blobs):
    seen = []

    class Watched(EncodedImages):
        def __getitem__(self, indices):
            seen.append(indices.tolist())
            return super().__getitem__(indices)

    images = Watched(blobs.train.images, blobs.pixels)
    training = OngoingTraining(ConvNet(3, 3, 8, depth=1, width=4), SETTINGS)
    training.train_pass(images, blobs.train.labels, 20, DSA("none"), torch.Generator().manual_seed(0))
    assert [len(batch) for batch in seen] == [8, 8, 4]
    assert len({index for batch in seen for index in batch}) == 20
