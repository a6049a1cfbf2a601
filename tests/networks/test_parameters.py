import pytest
import torch

from pdd_lightning.errors import ConfigError
from pdd_lightning.networks import ConvNet, flatten, unflatten


def test_unflatten_inverts_flatten_in_order_and_shape():
    params = dict(ConvNet(3, 10, 8, depth=2, width=4).named_parameters())
    restored = unflatten(flatten(params), params)
    assert list(restored) == list(params)
    for name, parameter in params.items():
        torch.testing.assert_close(restored[name], parameter, rtol=0, atol=0)


def test_both_directions_are_differentiable():
    params = {"a": torch.ones(2, 3, requires_grad=True), "b": torch.ones(2, requires_grad=True)}
    back = unflatten(flatten(params) * torch.arange(8.0), params)
    (back["a"].sum() + 10 * back["b"].sum()).backward()
    torch.testing.assert_close(params["a"].grad, torch.arange(6.0).view(2, 3))
    torch.testing.assert_close(params["b"].grad, torch.tensor([60.0, 70.0]))


def test_a_vector_of_another_network_is_refused():
    params = {"a": torch.ones(2, 3)}
    with pytest.raises(ConfigError, match=r"\(7,\) cannot fill a network of 6 parameters"):
        unflatten(torch.ones(7), params)
