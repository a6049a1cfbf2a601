"""Networks to evaluate with: sizes, parameters, derivatives, errors."""

from functools import partial

import pytest
import torch
from torch.func import functional_call

from pdd_lightning.errors import ConfigError
from pdd_lightning.networks import VGG11, AlexNet, ConvNet, DenseNet, ResNet10, ResNet18, Timm, Torchvision, ViT

SMALL_VIT = partial(ViT, depth=2, width=16, heads=2, mlp_width=16, dropout=0.0)
NETWORKS = {
    "VGG11": VGG11,
    "AlexNet": AlexNet,
    "DenseNet": partial(DenseNet, growth_rate=4),
    "ViT": SMALL_VIT,
    "ResNet10": partial(ResNet10, width=4),
    "ResNetAP": partial(ResNet10, width=4, average_pool=True),
    "ConvNet": partial(ConvNet, width=4),
}


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (VGG11, 9_231_114),
        (DenseNet, 1_000_618),
        # Weights and biases: 128 x 3 x 25, 192 x 128 x 25, 256 x 192 x 9, 192 x 256 x 9, 192 x 192 x 9, 10 x 3072.
        (AlexNet, 9_728 + 614_592 + 442_624 + 442_560 + 331_968 + 30_730),
        # Patches, class token, positions; ten layers of two norms, attention and perceptron; norm, classifier.
        (ViT, 25_088 + 512 + 65 * 512 + 10 * (2_048 + 787_968 + 262_656 + 525_312) + 1_024 + 5_130),
        (partial(ResNet18, average_pool=True), 11_173_962),
        (partial(ResNet10, width=32), 1_228_970),
        (ResNet18, 11_173_962),
        (ConvNet, 320_010),
        (partial(Torchvision, name="resnet18"), 11_689_512 - 990 * 513),
    ],
)
def test_parameter_counts_for_32_pixels_and_10_classes(family, expected):
    assert count(family(3, 10, 32)) == expected


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 16, 28, 64])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_take_images_of_any_size(name, size, channels):
    network = NETWORKS[name](channels, 7, size).eval()
    images = torch.randn(2, channels, size, size)
    assert network(images).shape == (2, 7)
    assert network.features(images).shape == (2, network.classifier.in_features)


@pytest.mark.parametrize(
    "family",
    [
        AlexNet,
        SMALL_VIT,
        partial(VGG11, norm="instance"),
        partial(DenseNet, growth_rate=4, norm="instance"),
        partial(ResNet10, width=4, norm="instance"),
        partial(ResNet10, width=4, norm="instance", average_pool=True),
    ],
)
def test_an_image_gets_a_gradient_through_a_step_of_training(family):
    """What trajectory matching needs; checked against finite differences, in the direction of the gradient."""
    torch.manual_seed(0)
    network = family(3, 2, 16).double()
    params = {name: value.detach() for name, value in network.named_parameters()}
    labels = torch.arange(2)

    def loss(values, images):
        return torch.nn.functional.cross_entropy(functional_call(network, values, (images,)), labels)

    def after_a_step(images):
        leaves = {name: value.requires_grad_() for name, value in params.items()}
        slopes = torch.autograd.grad(loss(leaves, images), list(leaves.values()), create_graph=True)
        moved = zip(leaves.items(), slopes, strict=True)
        return sum((value - 0.1 * slope).square().sum() for (_, value), slope in moved)

    images = torch.randn(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(after_a_step(images), images)
    assert bool((gradient.abs().amax((1, 2, 3)) > 0).all())
    step = 1e-6 / (1 + gradient.norm())
    direction = step * gradient / gradient.norm()
    difference = (after_a_step(images + direction) - after_a_step(images - direction)) / (2 * step)
    torch.testing.assert_close(difference, gradient.norm(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("family", [VGG11, partial(DenseNet, growth_rate=4)])
def test_instance_norm_treats_each_image_by_itself(family):
    images = torch.randn(4, 3, 16, 16)
    network = family(3, 5, 16, norm="instance")
    torch.testing.assert_close(network(images)[:1], network(images[:1]), rtol=1e-3, atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("size", [8, 9, 16, 28, 31])
def test_instance_norms_of_vgg_never_see_a_single_pixel(size):
    network = VGG11(3, 10, size, norm="instance")
    sides = []
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.register_forward_hook(lambda *call: sides.append(call[2].shape[-1]))
    network(torch.randn(1, 3, size, size))
    assert len(sides) == 8 and min(sides) >= 2


def test_every_group_of_a_resnet_after_the_first_halves_the_map():
    network = ResNet18(3, 10, 32, width=4)
    sizes = []
    for layer in network.features:
        layer.register_forward_hook(lambda *call: sizes.append(call[2].shape[-1]))
    network(torch.randn(1, 3, 32, 32).repeat(2, 1, 1, 1))
    assert sizes == [32, 32, 32, *[32] * 2, *[16] * 2, *[8] * 2, *[4] * 2, 1, 32]


def test_average_pooling_takes_the_place_of_strides():
    network = ResNet10(3, 10, 32, width=4, average_pool=True)
    assert {module.stride for module in network.modules() if isinstance(module, torch.nn.Conv2d)} == {(1, 1)}
    sides = [layer(torch.zeros(1, 3, 32, 32)).shape[-1] for layer in [network.features[:-2]]]
    assert sides == [4]


@pytest.mark.parametrize(
    ("family", "size", "message"),
    [
        (VGG11, 1, "at least 2"),
        (AlexNet, 7, "at least 8"),
        (DenseNet, 7, "at least 8"),
        (partial(DenseNet, norm="instance"), 15, "at least 16"),
        (partial(ResNet10, average_pool=True), 7, "at least 8"),
        (partial(ResNet10, average_pool=True, norm="instance"), 15, "at least 16"),
        (ViT, 30, "patch_size 4 must divide the image size, 30 pixels"),
        (partial(ViT, heads=7), 32, r"heads \(7\) must divide the width, 512"),
        (partial(VGG11, norm="weight"), 32, "unknown norm 'weight'"),
        (partial(DenseNet, norm="weight"), 32, "unknown norm 'weight'"),
        (partial(ResNet10, norm="instance"), 8, "at least 9"),
        (partial(ConvNet, norm="weight"), 8, "unknown norm 'weight'"),
        (partial(ConvNet, width=6, norm="group"), 8, "divisible by 4, got 6"),
        (partial(ConvNet, depth=4), 8, "depth 4 .* 8 pixels.* must be from 1 to 3"),
        (partial(ConvNet, depth=0), 8, "depth 0"),
    ],
)
def test_what_does_not_fit_is_refused(family, size, message):
    with pytest.raises(ConfigError, match=message):
        family(3, 10, size)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_of_torchvision_is_enlarged_to(channels):
    network = Torchvision(channels, 5, 8, "squeezenet1_1", resize=40)
    seen = []
    network.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    assert network(torch.randn(2, channels, 8, 8)).shape == (2, 5)
    assert seen == [(2, 3, 40, 40)]


def test_options_reach_the_network_of_torchvision():
    plain, zeroed = (
        Torchvision(3, 10, 32, "resnet18", options=options) for options in (None, {"zero_init_residual": True})
    )
    assert sum(bool((p == 0).all()) for p in zeroed.parameters()) > sum(
        bool((p == 0).all()) for p in plain.parameters()
    )
    with pytest.raises(ConfigError, match=r"does not work .* unexpected keyword argument 'foo'"):
        Torchvision(3, 10, 32, "resnet18", options={"foo": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, r"no classifier 'resnet19'; it has alexnet, .* resnet18"),
        ({"name": "alexnet"}, r"alexnet does not work on images of 16 pixels.*need resize"),
        ({"name": "googlenet", "options": {"init_weights": False}}, r"more than logits.*aux_logits: false"),
    ],
)
def test_what_torchvision_cannot_do_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Torchvision(3, 10, 16, **arguments)


def test_images_of_four_channels_are_not_for_torchvision():
    with pytest.raises(ConfigError, match="1 or 3 channels, got 4"):
        Torchvision(4, 10, 16)
    assert ConvNet(4, 10, 16)(torch.zeros(1, 4, 16, 16)).shape == (1, 10)


@pytest.mark.parametrize(("channels", "resize"), [(1, None), (3, 40)])
def test_a_network_of_timm(channels, resize):
    pytest.importorskip("timm")
    network = Timm(channels, 5, 32, "test_efficientnet", resize=resize)
    assert network(torch.randn(2, channels, 32, 32)).shape == (2, 5)
    assert Timm(3, 5, 32, "test_vit", options={"img_size": 32})(torch.randn(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, r"timm has no classifier 'resnet19': did you mean resnet1"),
        ({"name": "hf_hub:someone/model"}, "timm has no classifier"),
        ({"name": "resnet18", "options": {"foo": 1}}, r"does not work on images of 32 pixels.*'foo'"),
        ({"name": "resnet18", "options": {"pretrained": True}}, "untrained: leave out the option pretrained"),
    ],
)
def test_what_timm_cannot_do_is_refused(arguments, message):
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=message):
        Timm(3, 10, 32, **arguments)
