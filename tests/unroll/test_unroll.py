import gc
import weakref
from functools import partial

import pytest
import torch
from torch import nn

from pdd_lightning.errors import ConfigError
from pdd_lightning.networks import ConvNet, flatten
from pdd_lightning.unroll import InnerProblem, choose_mode, unroll
from pdd_lightning.unroll.modes import graph_size
from pdd_lightning.unroll.problem import start_from

MODES = ["stored", "constant", "higher"]


@pytest.mark.parametrize("mode", MODES)
def test_the_result_is_that_of_an_ordinary_training_loop(data, network, augmented, mode):
    problem = InnerProblem(network, augmented)
    start = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    final = unroll(problem, start, (data["images"],), data["lr"], 5, mode)
    optimizer = torch.optim.SGD(network.parameters(), lr=float(data["lr"]))
    for step in range(5):
        images, labels = augmented(step, data["images"])
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    assert list(final) == list(start)
    torch.testing.assert_close(flatten(final), flatten(dict(network.named_parameters())).detach())


@pytest.mark.parametrize("mode", MODES)
def test_start_and_network_are_left_alone(data, augmented, network, mode):
    own = flatten(dict(network.named_parameters())).detach().clone()
    start = {name: torch.ones_like(p).requires_grad_() for name, p in network.named_parameters()}
    images = data["images"].requires_grad_()
    flatten(unroll(InnerProblem(network, augmented), start, (images,), data["lr"], 2, mode)).sum().backward()
    assert torch.equal(flatten(dict(network.named_parameters())), own)
    assert torch.equal(flatten(start), torch.ones_like(own))
    assert all(parameter.grad is None for parameter in start.values())


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_differentiated_that_nobody_asks_for(data, network, augmented, mode):
    """An input that needs no gradient never enters a graph; without any, the result has none."""
    seen = []

    def watched(step, images, soft):
        seen.append(images.requires_grad)
        return augmented(step, images, soft)

    problem, params = InnerProblem(network, watched), dict(network.named_parameters())
    soft = data["soft"].requires_grad_()
    flatten(unroll(problem, params, (data["images"], soft), data["lr"], 3, mode)).sum().backward()
    assert soft.grad is not None
    assert data["images"].grad is None and data["lr"].grad is None
    inputs = (data["images"], soft.detach())
    assert not flatten(unroll(problem, params, inputs, data["lr"], 3, mode)).requires_grad
    with torch.no_grad():
        assert not flatten(unroll(problem, params, (data["images"], soft), data["lr"], 3, mode)).requires_grad
    assert not any(seen)


@pytest.mark.parametrize("mode", MODES)
def test_learning_rate_alone(data, network, augmented, mode):
    problem, params = InnerProblem(network, augmented), dict(network.named_parameters())

    def loss(lr):
        return flatten(unroll(problem, params, (data["images"],), lr, 3, mode)).square().sum()

    assert torch.autograd.gradcheck(loss, (data["lr"].requires_grad_(),))


@pytest.mark.parametrize("mode", MODES)
def test_gradient_flows_through_what_made_the_inputs(data, network, augmented, mode):
    """As with a learning rate that is the exponential of a parameter."""
    problem, params = InnerProblem(network, augmented), dict(network.named_parameters())
    log_lr = data["lr"].log().requires_grad_()
    flatten(unroll(problem, params, (data["images"],), log_lr.exp(), 2, mode)).square().sum().backward()
    lr = data["lr"].requires_grad_()
    flatten(unroll(problem, params, (data["images"],), lr, 2, mode)).square().sum().backward()
    torch.testing.assert_close(log_lr.grad, lr.grad * lr.detach())


def test_constant_form_holds_no_graph_of_the_steps(data, network, augmented):
    """What waits for the backward pass is the parameters of each step, the inputs and the learning rate."""
    held = []

    def pack(tensor):
        held.append(tensor)
        return tensor

    images = data["images"].requires_grad_()
    params = dict(network.named_parameters())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        final = unroll(InnerProblem(network, augmented), params, (images,), data["lr"], 5, "constant")
    waiting = final[next(iter(final))].grad_fn.saved_tensors
    assert len(waiting) == 2 + 5 * len(params)
    assert sum(tensor.numel() for tensor in waiting) == images.numel() + 1 + 5 * flatten(params).numel()


def test_settings_that_cannot_work_are_refused(data, network, augmented):
    problem, params = InnerProblem(network, augmented), dict(network.named_parameters())
    call = partial(unroll, problem, params, (data["images"],), data["lr"])
    with pytest.raises(ConfigError, match=r"unknown mode 'other'.*stored, constant or higher"):
        call(2, "other")
    with pytest.raises(ConfigError, match="must be >= 1, got 0"):
        call(0)
    with pytest.raises(ConfigError, match="scalar tensor, got one of shape"):
        unroll(problem, params, (data["images"],), data["lr"][None], 2)
    other = dict(ConvNet(1, 3, 8, depth=1, width=4).named_parameters())
    with pytest.raises(ConfigError, match="not those of the network"):
        unroll(problem, other, (data["images"],), data["lr"], 2)


def test_the_form_is_chosen_by_what_the_graph_takes_and_the_device_has(data, network, augmented):
    problem, params = InnerProblem(network, augmented), dict(network.named_parameters())
    inputs = (data["images"].clone().requires_grad_(),)
    size = graph_size(lambda: problem.gradient(0, start_from(params), inputs, create_graph=True))
    for memory, mode in ((None, "stored"), (8 * size, "stored"), (8 * size - 1, "constant")):
        chosen, reason = choose_mode(problem, params, inputs, 4, memory)
        assert chosen == mode and f"mode {mode!r}" in reason and "4 student steps" in reason


def test_a_graph_counts_each_block_of_memory_once():
    values = torch.ones(1000, requires_grad=True)
    assert graph_size(lambda: values.square() * values) == 8000  # the values, and their squares


def test_choosing_a_form_leaves_random_numbers_alone(data, augmented):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Dropout(0.5)).double()
    inputs = (data["images"].clone().requires_grad_(),)
    state = torch.get_rng_state()
    choose_mode(InnerProblem(network, augmented), dict(network.named_parameters()), inputs, 4, None)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_was_measured_is_freed():
    saved = []

    def build() -> torch.Tensor:
        result = torch.ones(1000, requires_grad=True).exp()  # stores its own result
        saved.append(weakref.ref(result))
        return result

    assert graph_size(build) == 4000
    gc.collect()
    assert saved[0]() is None


def test_a_batch_is_made_once_for_a_gradient(data, augmented):
    calls = []

    def batch(step, images):
        calls.append(step)
        return augmented(step, images)

    for norm in ("instance", "batch"):
        network = ConvNet(1, 3, 8, depth=2, width=4, norm=norm).double()
        params = start_from(dict(network.named_parameters()))
        gradient = InnerProblem(network, batch).gradient(0, params, (data["images"],), create_graph=False)
        assert len(calls) == 1 and not any(one.requires_grad for one in gradient)
        calls.clear()


def test_a_network_is_asked_for_the_gradient_that_it_offers(data, augmented, differentiate):
    class Offers(nn.Module):
        """Half of the gradient, so that it is known from autograd's."""

        def __init__(self, inner):
            super().__init__()
            self.inner, self.asked = inner, 0

        def forward(self, images):
            return self.inner(images)

        def loss_gradient(self, params, images, labels, weights=None):
            self.asked += 1
            loss = nn.functional.cross_entropy(torch.func.functional_call(self, params, (images,)), labels)
            return tuple(torch.autograd.grad(loss / 2, tuple(params.values()), create_graph=True))

    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    half = Offers(network)
    offered = differentiate(InnerProblem(half, augmented), [data["images"]], data["lr"], "stored")
    expected = differentiate(InnerProblem(network, augmented), [data["images"]], data["lr"] / 2, "stored")
    assert half.asked
    for number in (0, 2):  # the loss, and its gradient by the images
        torch.testing.assert_close(offered[number], expected[number])
