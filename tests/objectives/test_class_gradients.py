"""Class by class, and by the plain formula, distance and image gradient are the same."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from pdd_lightning.errors import ConfigError
from pdd_lightning.networks import ConvNet, fix_statistics
from pdd_lightning.objectives import ClassSides, class_distance, gradient_distance

CLASSES, COUNTS = 3, [5, 2, 4]


@pytest.fixture(params=["instance", "batch"])
def network(request):
    torch.manual_seed(0)
    network = ConvNet(3, CLASSES, 8, depth=2, width=6, norm=request.param).double()
    fix_statistics(network, torch.randn(20, 3, 8, 8).double())
    return network


def make_sides(frozen):
    """Stacked sides of all classes; rows of real images are filled up."""
    generator = torch.Generator().manual_seed(1)

    def images(count):
        return torch.randn(CLASSES, count, 3, 8, 8, generator=generator, dtype=torch.float64)

    weights = torch.zeros(CLASSES, max(COUNTS), dtype=torch.float64)
    for label, count in enumerate(COUNTS):
        weights[label, :count] = 1 / count
    return ClassSides(torch.arange(CLASSES), images(max(COUNTS)), weights, images(frozen), images(2))


def one_class(sides, label, used=None):
    parts = [part[label] for part in sides]
    return ClassSides(parts[0], parts[1][:used], parts[2][:used], *parts[3:])


def gradient_of_mean(network, images, label, create_graph=False):
    loss = F.cross_entropy(network(images), torch.full((len(images),), label))
    return torch.autograd.grad(loss, tuple(network.parameters()), create_graph=create_graph)


def by_formula(network, sides, metric):
    """Mean cross-entropy of each side, without any of the shortcuts."""
    total = torch.zeros((), dtype=torch.float64)
    for label, count in enumerate(COUNTS):
        real = gradient_of_mean(network, sides.real[label, :count], label)
        union = torch.cat([sides.frozen[label], sides.new[label]])
        total = total + gradient_distance(gradient_of_mean(network, union, label, True), real, metric)
    return total


@pytest.mark.parametrize("frozen", [0, 3])
@pytest.mark.parametrize("metric", ["ours", "mse", "cos"])
def test_the_distance_is_that_of_the_formula(network, metric, frozen):
    params = {name: parameter.detach() for name, parameter in network.named_parameters()}
    compare, results = partial(gradient_distance, metric=metric), []
    for by_definition in (True, False):
        sides = make_sides(frozen)
        sides.new.requires_grad_()
        if by_definition:
            distance = by_formula(network, sides, metric)
        else:
            rows = [one_class(sides, label, count) for label, count in enumerate(COUNTS)]
            distance = torch.stack([class_distance(network, params, row, compare) for row in rows]).sum()
        (gradient,) = torch.autograd.grad(distance, sides.new)
        results.append((distance.detach(), gradient))
    (expected, expected_gradient), (distance, gradient) = results
    assert expected_gradient.abs().max() > 0
    torch.testing.assert_close(distance, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-12)


def test_a_dead_channel_gives_a_finite_gradient():
    synthetic = torch.zeros(2, 3, requires_grad=True)
    gradient_distance([synthetic], [torch.ones(2, 3)], "ours").backward()
    assert synthetic.grad.isfinite().all()


def test_unknown_metric_is_refused():
    with pytest.raises(ConfigError, match="unknown metric 'l2'"):
        gradient_distance([torch.ones(1, 1)], [torch.ones(1, 1)], "l2")


def test_a_network_is_asked_for_the_gradient_that_it_offers():
    class Doubled(ConvNet):
        """Twice the gradient, so that it is known from autograd's."""

        def loss_gradient(self, params, images, labels, weights=None):
            constant = not torch.is_grad_enabled()
            with torch.enable_grad():
                losses = F.cross_entropy(torch.func.functional_call(self, params, (images,)), labels, reduction="none")
                total = 2 * (losses * weights).sum()
            return torch.autograd.grad(total, tuple(params.values()), create_graph=not constant)

    sides, distances = one_class(make_sides(2), 1), []
    for kind in (ConvNet, Doubled):
        torch.manual_seed(0)
        network = kind(3, CLASSES, 8, depth=2, width=6).double()
        params = {name: parameter.detach().requires_grad_() for name, parameter in network.named_parameters()}
        distances.append(class_distance(network, params, sides, partial(gradient_distance, metric="mse")))
    torch.testing.assert_close(distances[1], 4 * distances[0])
