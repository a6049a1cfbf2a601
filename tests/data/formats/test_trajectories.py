import pytest
import torch

from pdd_lightning.data.formats.trajectories import ReplayBuffers
from pdd_lightning.errors import DataError
from pdd_lightning.networks import ConvNet

EPOCHS = 2


def network():
    return ConvNet(3, 3, 8, depth=1, width=4)


def buffer(experts=2, epochs=EPOCHS):
    """What the authors' script collects: the parameters of fresh networks, as if each epoch gave another."""
    return [[[p.detach().clone() for p in network().parameters()] for _ in range(epochs + 1)] for _ in range(experts)]


@pytest.fixture
def write(tmp_path):
    def save(content, number=0):
        path = tmp_path / f"replay_buffer_{number}.pt"
        torch.save(content, path)
        return path

    return save


def test_experts_of_several_files_come_one_after_another(write):
    first, second = buffer(2), buffer(1)
    trajectories = ReplayBuffers([write(first), write(second, 1)], network())
    assert (len(trajectories), trajectories.epochs) == (3, EPOCHS)
    for expert, snapshots in zip([*first, *second], trajectories, strict=True):
        expected = torch.stack([torch.cat([value.flatten() for value in epoch]) for epoch in expert])
        assert torch.equal(snapshots, expected)


def test_parameters_of_another_network_are_refused(write):
    with pytest.raises(
        DataError, match=r"expert 0, epoch 0: parameter 0 is \(4, 3, 3, 3\), the network's \(5, 3, 3, 3\)"
    ):
        ReplayBuffers([write(buffer())], ConvNet(3, 3, 8, depth=1, width=5))
    with pytest.raises(DataError, match=r"parameter 4 is \(3, 64\), the network's \(4, 4, 3, 3\)"):
        ReplayBuffers([write(buffer())], ConvNet(3, 3, 8, depth=2, width=4))


def spoil(content, change):
    """A buffer whose last epoch of the second expert is changed."""
    content[1][-1] = change(content[1][-1])
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda epoch: epoch[:-1], r"expert 1, epoch 2: parameter 5 is none, the network's \(3,\)"),
        (lambda epoch: [value.half() for value in epoch], "expert 1, epoch 2: parameters must be float32"),
        (lambda epoch: [*epoch, "text"], "expert 1, epoch 2: parameter 6 is no tensor, the network's none"),
        (lambda epoch: ["text", *epoch[1:]], "expert 1, epoch 2: parameter 0 is no tensor"),
        (lambda epoch: [value * float("inf") for value in epoch], "expert 1: parameters are infinite"),
    ],
)
def test_experts_that_cannot_be_used(write, change, message):
    with pytest.raises(DataError, match=message):
        list(ReplayBuffers([write(spoil(buffer(), change))], network()))


def test_experts_of_different_length_are_refused(write):
    with pytest.raises(DataError, match=r"differ in their number of epochs \(\[2, 3\]\)"):
        ReplayBuffers([write(buffer()), write(buffer(epochs=3), 1)], network())


@pytest.mark.parametrize("content", [torch.zeros(2), [], [[]], [torch.zeros(2), torch.zeros(2)], {"data": []}])
def test_files_without_trajectories_are_refused(write, content):
    with pytest.raises(DataError, match="holds no expert trajectories"):
        ReplayBuffers([write(content)], network())


def test_a_start_without_an_epoch_is_no_trajectory(write):
    with pytest.raises(DataError, match="expert 0 is no trajectory"):
        ReplayBuffers([write(buffer(epochs=0))], network())
