from functools import partial

import pytest
from torch import nn

from pdd_lightning.errors import ConfigError
from pdd_lightning.networks import ConvNet, ResNet10
from pdd_lightning.networks.spec import factory_from_spec, network_spec

CONVNET = "pdd_lightning.networks.convnet.ConvNet"


class OwnNetwork(nn.Linear):
    """A network outside the package."""


def make(constructor, *args, **kwargs):
    """Stands for the parser's function that makes an object of a class."""
    return constructor(*args, **kwargs)


def kept_apart(factory):
    """A `partial` with an attribute, which Python does not merge with one around it."""
    factory.note = "own"
    return factory


@pytest.mark.parametrize(
    ("factory", "path", "arguments"),
    [
        (ConvNet, CONVNET, {}),
        (partial(ConvNet, width=8, norm="batch"), CONVNET, {"width": 8, "norm": "batch"}),
        (partial(kept_apart(partial(ConvNet, width=8, depth=2)), width=16), CONVNET, {"width": 16, "depth": 2}),
        (partial(make, ConvNet, depth=1), CONVNET, {"depth": 1}),
        (ResNet10, "pdd_lightning.networks.resnet.ResNet10", {}),
    ],
)
def test_a_factory_is_described_by_class_and_arguments(factory, path, arguments):
    assert network_spec(factory) == {"class_path": path, "init_args": arguments}


def test_a_class_of_the_users_own_is_described_too():
    assert network_spec(OwnNetwork)["class_path"] == f"{__name__}.OwnNetwork"


@pytest.mark.parametrize("factory", [partial(ConvNet, width=8, depth=2), ResNet10, partial(make, ConvNet, depth=1)])
def test_a_description_gives_the_same_network(factory):
    built, expected = factory_from_spec(network_spec(factory))(3, 5, 8), factory(3, 5, 8)
    assert type(built) is type(expected)
    shapes = [{name: value.shape for name, value in net.state_dict().items()} for net in (built, expected)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "torch.nn.Linear",
        "pdd_lightningevil.Net",
        "pdd_lightning.networks.NoSuchNet",
        "pdd_lightning.nowhere.Net",
        "pdd_lightning.networks.flatten",
        "pdd_lightning.errors.ConfigError",
        "ConvNet",
        "",
    ],
)
def test_what_is_not_a_network_of_a_trusted_package_is_not_used(path):
    with pytest.raises(ConfigError, match=r"cannot use the stored network .* name one with --network"):
        factory_from_spec({"class_path": path, "init_args": {}})


def test_importing_a_module_elsewhere_is_not_even_tried(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError):
        factory_from_spec({"class_path": "evil.Net", "init_args": {}})


def test_arguments_of_another_version_are_named():
    with pytest.raises(ConfigError, match=r"unexpected keyword argument 'depht'.* name one with --network"):
        factory_from_spec({"class_path": "pdd_lightning.networks.ConvNet", "init_args": {"depht": 2}})
