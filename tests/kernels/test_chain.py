"""The written-out gradient of a ConvNet's loss against automatic differentiation."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from pdd_lightning.kernels.parts import in_parts
from pdd_lightning.networks import ConvNet

CLASSES = 5
WIDTH = 40


@pytest.fixture(autouse=True, params=[40, 48])
def width(request, monkeypatch):
    """With 40 channels all maps are in memory; with 48 `image_block` and `winograd` take part."""
    monkeypatch.setitem(globals(), "WIDTH", request.param)


def network(dtype: torch.dtype = torch.float64, **options) -> ConvNet:
    torch.manual_seed(0)
    made = ConvNet(3, CLASSES, 16, **{"width": WIDTH, **options}).to(dtype)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def plain(made: ConvNet, params: dict[str, Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    for module in made.features:
        module.register_forward_hook(lambda *_: None)  # so that every module is called
    loss = F.cross_entropy(functional_call(made, params, (images,)), labels)
    return torch.autograd.grad(loss, tuple(params.values()), create_graph=True)


def own(made: ConvNet, params: dict[str, Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    gradient = made.loss_gradient(params, images, labels)
    assert gradient is not None
    return gradient


def both_orders(gradient, made: ConvNet, images: Tensor, labels: Tensor) -> list[Tensor]:
    """The gradient, and derivatives of a function of it by parameters, images and (soft) labels."""
    params = {name: parameter.detach().requires_grad_() for name, parameter in made.named_parameters()}
    first = gradient(made, params, images, labels)
    torch.manual_seed(2)
    product = sum((one * torch.randn(one.shape)).sum() for one in first) + sum(one.square().sum() for one in first)
    targets = [*params.values(), images, *([labels] if labels.requires_grad else [])]
    return [*first, *torch.autograd.grad(product, targets)]


def batch(soft: bool, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    images = torch.randn(6, 3, 16, 16, dtype=dtype).requires_grad_()
    # Not of sum 1: also weights of images are expressed by it.
    labels = torch.rand(6, CLASSES, dtype=dtype).requires_grad_() if soft else torch.arange(6) % CLASSES
    return images, labels


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "probabilities"])
@pytest.mark.parametrize("options", [{}, {"depth": 1}, {"depth": 2, "width": 7}], ids=str)
def test_gradient_and_its_derivative_are_those_of_automatic_differentiation(soft, options):
    images, labels = batch(soft)
    for one, other in zip(
        both_orders(own, network(**options), images, labels),
        both_orders(plain, network(**options), images, labels),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("count", [6, 4])
def test_a_batch_that_is_computed_in_parts_gives_the_same(monkeypatch, count):
    images, labels = batch(True)
    whole = both_orders(own, network(), images, labels)
    features = network().features(images)
    for module in ("kernels.chain", "networks.blocks"):
        monkeypatch.setattr(f"pdd_lightning.{module}.in_parts", lambda images, *_: images.tensor_split(count))
    for one, other in zip(both_orders(own, network(), images, labels), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(network().features(images), features, rtol=1e-12, atol=1e-12)


def test_parts_of_a_batch_are_alike_and_have_maps_of_limited_size():
    images = torch.arange(100.0).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    parts = in_parts(images, 128, torch.float32, False)
    assert [len(part) for part in parts] == [25, 25, 25, 25] and torch.equal(torch.cat(parts), images)
    assert [len(part) for part in in_parts(images, 128, torch.bfloat16, False)] == [50, 50]
    assert [len(part) for part in in_parts(images, 128, torch.float32, True)] == [100]
    assert len(in_parts(images, 10**6, torch.float32, False)) == 100
    assert [len(part) for part in in_parts(images[:0], 128, torch.float32, False)] == [0]


def test_in_float32_it_is_as_good_as_automatic_differentiation():
    exact = both_orders(plain, network(), *batch(True))
    images, labels = (tensor.detach().float().requires_grad_() for tensor in batch(True))
    ours = both_orders(own, network(torch.float32), images, labels)
    theirs = both_orders(plain, network(torch.float32), images, labels)
    for one, other, expected in zip(ours, theirs, exact, strict=True):
        assert (one - expected).norm() <= 3 * (other - expected).norm() + 1e-6 * expected.norm()


def test_biases_before_a_norm_have_no_gradient_at_all():
    made = network()
    first = own(made, dict(made.named_parameters()), *batch(False))
    names = [name for name, _ in made.named_parameters()]
    biases = [one for name, one in zip(names, first, strict=True) if name in ("features.0.bias", "features.4.bias")]
    assert len(biases) == 2 and not any(one.any() for one in biases)


def test_under_autocast_it_is_as_good_as_automatic_differentiation():
    batches = [batch(False, torch.float32) for _ in range(3)]
    exact = both_orders(plain, network(torch.float32), *batches[0])
    with torch.autocast("cpu", torch.bfloat16):
        ours = both_orders(own, network(torch.float32), *batches[1])
        theirs = both_orders(plain, network(torch.float32), *batches[2])
    assert all(one.dtype == torch.float32 for one in ours)
    errors = [
        torch.stack(
            [(one - expected).norm() / (expected.norm() + 1e-3) for one, expected in zip(tensors, exact, strict=True)]
        )
        for tensors in (ours, theirs)
    ]
    assert 1e-4 < errors[0].mean() <= 1.2 * errors[1].mean()


def test_constants_get_no_derivative():
    made = network()
    images, labels = batch(False)
    first = own(made, {name: p.detach() for name, p in made.named_parameters()}, images, labels)
    (of_images,) = torch.autograd.grad(sum(one.sum() for one in first), [images])
    assert of_images.shape == images.shape
    with torch.no_grad():
        assert not own(made, dict(made.named_parameters()), images, labels)[0].requires_grad


@pytest.mark.parametrize("norm", ["batch", "layer", "group", "none"])
def test_other_norms_are_left_to_automatic_differentiation(norm):
    made = network(norm=norm)
    assert made.loss_gradient(dict(made.named_parameters()), *batch(False)) is None


def test_a_third_derivative_is_refused_and_not_wrong():
    made = network()
    images, labels = batch(False)
    first = own(made, dict(made.named_parameters()), images, labels)
    with pytest.raises(RuntimeError, match="PDD_KERNELS=off"):
        torch.autograd.grad(first[0].square().sum(), [images], create_graph=True)
    for wanted in ([images], list(made.parameters())):
        (second, *_) = torch.autograd.grad(made(images).exp().sum(), wanted, create_graph=True)
        with pytest.raises(RuntimeError, match="PDD_KERNELS=off"):
            torch.autograd.grad(second.square().sum(), [images], create_graph=True)


@pytest.mark.parametrize("part", ["", "features", "classifier", "features.2"])
@pytest.mark.parametrize("kind", ["forward", "full_backward", "full_backward_pre"])
def test_where_somebody_listens_to_modules_they_are_called(part, kind):
    made = network()
    module = made.get_submodule(part) if part else made
    getattr(module, f"register_{kind}_hook")(lambda *_: None)
    assert made.loss_gradient(dict(made.named_parameters()), *batch(False)) is None


def test_networks_that_were_changed_are_left_to_automatic_differentiation():
    class Twice(torch.nn.Linear):
        def forward(self, features: Tensor) -> Tensor:
            return 2 * super().forward(features)

    images, labels = batch(False)
    made = network()
    made.classifier = Twice(*made.classifier.weight.shape[::-1]).double()
    assert made.loss_gradient(dict(made.named_parameters()), images, labels) is None
    made = network()
    torch.nn.utils.parametrizations.weight_norm(made.classifier)
    assert made.loss_gradient(dict(made.named_parameters()), images, labels) is None
    made = network()
    made.features[0] = torch.nn.Conv2d(3, WIDTH, 3, padding=1, bias=False).double()
    assert made.loss_gradient(dict(made.named_parameters()), images, labels) is None
    assert network().loss_gradient(dict(network().named_parameters()), images[:0], labels[:0]) is None


def test_parameters_of_other_shapes_are_an_error():
    made = network()
    params = {name: p[:2] if name == "features.1.weight" else p for name, p in made.named_parameters()}
    with pytest.raises(RuntimeError, match=rf"goes \[{WIDTH}\] there, got \[2\]"):
        made.loss_gradient(params, *batch(False))


def test_a_network_in_bfloat16_has_gradients_in_it():
    made = network().bfloat16()
    images, labels = (tensor.detach() for tensor in batch(False))
    first = own(made, dict(made.named_parameters()), images.bfloat16(), labels)
    assert {one.dtype for one in first} == {torch.bfloat16}
