"""The modes are interchangeable: the same numbers in float64, to rounding."""

import pytest
import torch
from torch import nn

from pdd_lightning.networks import ConvNet, flatten
from pdd_lightning.unroll import InnerProblem, unroll


def agree(first, second):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["constant", "higher"])
def test_one_learned_input(data, network, augmented, differentiate, mode):
    problem = InnerProblem(network, augmented)
    expected = differentiate(problem, [data["images"]], data["lr"], "stored")
    assert float(expected[2].norm()) > 1e-6
    agree(differentiate(problem, [data["images"]], data["lr"], mode), expected)


@pytest.mark.parametrize("mode", ["constant", "higher"])
def test_several_learned_inputs(data, network, augmented, differentiate, mode):
    problem = InnerProblem(network, augmented)
    inputs = [data["images"], data["soft"]]
    expected = differentiate(problem, inputs, data["lr"], "stored")
    assert float(expected[3].norm()) > 1e-6
    agree(differentiate(problem, inputs, data["lr"], mode), expected)


@pytest.mark.parametrize("mode", ["constant", "higher"])
def test_new_images_beside_frozen_ones(data, network, augmented, differentiate, mode):
    frozen, new = data["images"][:6], data["images"][6:]
    problem = InnerProblem(network, lambda step, images: augmented(step, torch.cat([frozen, images])))
    expected = differentiate(problem, [new], data["lr"], "stored")
    agree(differentiate(problem, [new], data["lr"], mode), expected)
    whole = differentiate(InnerProblem(network, augmented), [data["images"]], data["lr"], "stored")
    torch.testing.assert_close(expected[2], whole[2][6:])


@pytest.mark.parametrize("mode", ["stored", "constant", "higher"])
def test_gradients_are_those_of_finite_differences(data, network, augmented, mode):
    problem = InnerProblem(network, augmented)
    params = dict(network.named_parameters())

    def loss(images, lr):
        final = flatten(unroll(problem, params, (images,), lr, 3, mode))
        return (final - 0.1).square().sum()

    inputs = (data["images"].clone().requires_grad_(), data["lr"].clone().requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


@pytest.mark.parametrize("mode", ["constant", "higher"])
def test_batch_norm_in_training_mode(data, augmented, differentiate, mode):
    network = ConvNet(1, 3, 8, depth=2, width=4, norm="batch").double()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    problem = InnerProblem(network, augmented)
    expected = differentiate(problem, [data["images"]], data["lr"], "stored")
    agree(differentiate(problem, [data["images"]], data["lr"], mode), expected)
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_dropout_draws_the_same_masks_in_both_passes(data, augmented, differentiate):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 3)).double()
    problem = InnerProblem(network, augmented)
    results, states = [], []
    for mode in ("stored", "constant"):
        torch.manual_seed(5)
        results.append(differentiate(problem, [data["images"]], data["lr"], mode))
        states.append(torch.get_rng_state())
    agree(*results)
    assert torch.equal(*states)


def test_backward_outside_the_autocast_region_of_the_forward(data, augmented):
    """Lightning leaves autocast before the backward pass; the second computation must not."""
    torch.manual_seed(0)
    network = ConvNet(1, 3, 8, depth=2, width=4, norm="none")
    params = dict(network.named_parameters())
    gradients = {}
    for mode, enabled in [("stored", True), ("constant", True), ("stored", False)]:
        images = data["images"].float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            final = flatten(unroll(InnerProblem(network, augmented), params, (images,), torch.tensor(0.1), 1, mode))
        assert final.dtype == torch.float32
        final.square().sum().backward()
        gradients[mode, enabled] = images.grad
    torch.testing.assert_close(gradients["constant", True], gradients["stored", True], rtol=1e-6, atol=1e-9)
    assert not torch.allclose(gradients["stored", False], gradients["stored", True], rtol=1e-3, atol=1e-9)
