"""The networks that methods without trajectories start from."""

from types import SimpleNamespace

import pytest
import torch

from pdd_lightning.errors import ConfigError
from pdd_lightning.experts import draw_start, start_network
from pdd_lightning.networks import flatten


class Numbered:
    """A pool that holds its networks as they were after the union alone: network n has all parameters n."""

    number = 3

    def segment(self, expert, first, last):
        assert (first, last) == (0, 0)
        return torch.full((7,), float(expert)), torch.full((7,), float(expert))


def drawn(stage, trajectories=None, count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    state = SimpleNamespace(stage=stage, trajectories=trajectories)
    return [draw_start(state, generator) for _ in range(count)]


def parameters(network):
    return flatten(dict(network.named_parameters())).detach()


def test_every_network_of_the_pool_is_drawn_as_it_was_after_the_union():
    assert {tuple(start.params.unique().tolist()) for start in drawn(2, Numbered())} == {(0.0,), (1.0,), (2.0,)}


@pytest.mark.parametrize("trajectories", [None, Numbered()])
def test_the_first_stage_draws_random_networks(trajectories, factory):
    """Also where experts are at hand; each is another one, and its seed alone decides."""
    starts = drawn(1, trajectories, count=3)
    networks = [start_network(lambda: factory(3, 3, 8), start) for start in (*starts, starts[0])]
    vectors = [parameters(network) for network in networks]
    assert torch.equal(vectors[0], vectors[3])
    assert len({tuple(vector.tolist()) for vector in vectors}) == 3
    assert [start.seed for start in drawn(1, count=3)] == [start.seed for start in starts]


def test_a_network_of_the_pool_has_its_parameters(factory):
    network = factory(3, 3, 8)
    expected = parameters(network) + 1
    start = drawn(2, Numbered(), count=1)[0]._replace(params=expected)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(parameters(start_network(lambda: factory(3, 3, 8), start)), expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_later_stage_needs_a_pool():
    with pytest.raises(ConfigError, match="stage 2 starts from trained networks"):
        drawn(2)
