"""A ConvNet's features and loss gradient as operators, against its modules under automatic differentiation."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional as F

from pdd_lightning.errors import KernelError
from pdd_lightning.kernels import Geometry, operators
from pdd_lightning.networks import ConvNet

CLASSES = 5
WIDTH = 40


@pytest.fixture(autouse=True, params=[40, 48])
def width(request, monkeypatch):
    """With 40 channels all maps are in memory; with 48 `ImageBlock` and Winograd's algorithm take part."""
    monkeypatch.setitem(globals(), "WIDTH", request.param)


def network(dtype: torch.dtype = torch.float64, **options) -> ConvNet:
    torch.manual_seed(0)
    made = ConvNet(3, CLASSES, 16, **{"width": WIDTH, **options}).to(dtype)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def leaves(made: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().requires_grad_() for name, parameter in made.named_parameters()}


def batch(soft: bool, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    images = torch.randn(6, 3, 16, 16, dtype=dtype).requires_grad_()
    # Not of sum 1: also weights of images are expressed by it.
    labels = torch.rand(6, CLASSES, dtype=dtype).requires_grad_() if soft else torch.arange(6) % CLASSES
    return images, labels


def module_by_module(made: ConvNet) -> ConvNet:
    for module in made.features:
        module.register_forward_hook(lambda *_: None)
    return made


def plain(made: ConvNet, params: dict[str, Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    loss = F.cross_entropy(functional_call(module_by_module(made), params, (images,)), labels)
    return torch.autograd.grad(loss, tuple(params.values()), create_graph=True)


def by_features(made: ConvNet, params: dict[str, Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    loss = F.cross_entropy(functional_call(made, params, (images,)), labels)
    return torch.autograd.grad(loss, tuple(params.values()), create_graph=True)


def own(made: ConvNet, params: dict[str, Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    gradient = made.loss_gradient(params, images, labels)
    assert gradient is not None
    return gradient


def both_orders(gradient, made: ConvNet, images: Tensor, labels: Tensor) -> list[Tensor]:
    """The gradient, and derivatives of a function of it by parameters, images and (soft) labels."""
    params = leaves(made)
    first = gradient(made, params, images, labels)
    torch.manual_seed(2)
    product = sum((one * torch.randn(one.shape)).sum() for one in first) + sum(one.square().sum() for one in first)
    targets = [*params.values(), images, *([labels] if labels.requires_grad else [])]
    return [*first, *torch.autograd.grad(product, targets)]


def agree(some, others) -> None:
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gradient", [own, by_features])
@pytest.mark.parametrize("soft", [False, True], ids=["classes", "probabilities"])
@pytest.mark.parametrize("options", [{}, {"depth": 1}, {"depth": 2, "width": 7}], ids=str)
def test_gradient_and_its_derivative_are_those_of_automatic_differentiation(gradient, soft, options):
    images, labels = batch(soft)
    agree(
        both_orders(gradient, network(**options), images, labels),
        both_orders(plain, network(**options), images, labels),
    )


def test_weights_of_images_are_those_of_their_losses():
    made, theirs, (images, labels) = network(), module_by_module(network()), batch(False)
    weights = torch.rand(6, dtype=torch.float64)
    losses = F.cross_entropy(theirs(images), labels, reduction="none")
    expected = torch.autograd.grad((losses * weights).sum(), list(theirs.parameters()))
    agree(made.loss_gradient(leaves(made), images, labels, weights), expected)


@pytest.mark.parametrize("count", [6, 4])
def test_a_batch_that_is_computed_in_parts_gives_the_same(monkeypatch, count):
    images, labels = batch(True)
    whole, features = both_orders(own, network(), images, labels), network().features(images)
    monkeypatch.setattr(operators, "split_images", lambda _, images, __: images.tensor_split(count))
    agree(both_orders(own, network(), images, labels), whole)
    agree([network().features(images)], [features])


def test_parts_of_a_batch_are_alike_and_have_maps_of_limited_size():
    images = torch.arange(100.0).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)

    def parts(images: Tensor, outputs: int) -> list[Tensor]:
        return list(operators.split_images(Geometry((1, 1), (1e-5,)), images, torch.empty(outputs, 3, 3, 3)))

    assert [len(part) for part in parts(images, 130)] == [25, 25, 25, 25]
    assert torch.equal(torch.cat(parts(images, 130)), images)
    assert [len(part) for part in parts(images.double(), 130)] == [15, 15, 14, 14, 14, 14, 14]
    assert [len(part) for part in parts(images, 128)] == [100]  # its map is in memory only after pooling
    assert len(parts(images, 10**6 + 1)) == 100


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


@pytest.mark.parametrize("gradient", [own, by_features])
def test_under_autocast_blocks_are_computed_in_float32(gradient):
    images, labels = batch(False, torch.float32)
    exact = both_orders(gradient, network(torch.float32), images, labels)
    features = network(torch.float32).features(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(torch.float32).features(images), features)
        ours = both_orders(gradient, network(torch.float32), images, labels)
    assert {one.dtype for one in ours} == {torch.float32}
    if gradient is own:
        assert all(map(torch.equal, ours, exact))


def test_constants_get_no_derivative():
    made = network()
    images, labels = batch(False)
    first = own(made, {name: p.detach() for name, p in made.named_parameters()}, images, labels)
    (of_images,) = torch.autograd.grad(sum(one.sum() for one in first), [images])
    assert of_images.shape == images.shape
    with torch.no_grad():
        assert not own(made, dict(made.named_parameters()), images, labels)[0].requires_grad
    made.requires_grad_(False)
    (of_images,) = torch.autograd.grad(made(images).sum(), [images])
    agree([of_images], torch.autograd.grad(module_by_module(made)(images).sum(), [images]))


def test_a_third_derivative_is_refused_and_not_wrong():
    made = network()
    images, labels = batch(False)
    first = own(made, dict(made.named_parameters()), images, labels)
    (second,) = torch.autograd.grad(first[0].square().sum(), [images], create_graph=True)
    with pytest.raises(KernelError, match="PDD_KERNELS=off"):
        torch.autograd.grad(second.sum(), [images])
    for wanted in ([images], list(made.parameters())):
        (first, *_) = torch.autograd.grad(made(images).exp().sum(), wanted, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), [images], create_graph=True)
        with pytest.raises(KernelError, match="PDD_KERNELS=off"):
            torch.autograd.grad(second.sum(), [images])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_under_torch_func_the_modules_are_computed():
    made, (images, _) = network(), batch(False)
    images = images.detach()

    def loss(one: Tensor) -> Tensor:
        return made(one).exp().mean()

    gradient = torch.func.grad(loss)
    ours = [torch.vmap(lambda one: made(one[None]))(images), gradient(images), torch.vmap(gradient)(images[:, None])]
    ours.append(torch.func.hessian(loss)(images[:1, :, :4, :4].repeat(1, 1, 4, 4))[0, 0, 0, 0])
    module_by_module(made)
    theirs = [torch.vmap(lambda one: made(one[None]))(images), gradient(images), torch.vmap(gradient)(images[:, None])]
    theirs.append(torch.func.hessian(loss)(images[:1, :, :4, :4].repeat(1, 1, 4, 4))[0, 0, 0, 0])
    assert all(map(torch.equal, ours, theirs))


def test_its_loss_gradient_is_refused_under_torch_func():
    made, (images, labels) = network(), batch(True)
    with pytest.raises(KernelError, match=r"not by `torch.func`"):
        torch.func.grad(lambda one: own(made, dict(made.named_parameters()), one, labels)[0].sum())(images.detach())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("dual", ["images", "parameters"])
def test_derivatives_in_forward_mode_are_those_of_the_modules(dual):
    made, (images, labels) = network(), batch(False)
    images, params = images.detach(), {name: p.detach() for name, p in made.named_parameters()}
    results = []
    for compute in (made, module_by_module(network())):
        with forward_ad.dual_level():
            given, at = images, params
            if dual == "images":
                given = forward_ad.make_dual(images, images.cos())
            else:
                at = {name: forward_ad.make_dual(p, p.cos()) for name, p in params.items()}
            assert made.loss_gradient(at, given, labels) is None
            results.append(forward_ad.unpack_dual(functional_call(compute, at, (given,))).tangent)
    assert results[0].any()
    agree(results[:1], results[1:])


@pytest.mark.parametrize("of", ["features", "gradient of features", "loss gradient"])
def test_batched_gradients_are_those_of_one_vector_at_a_time(of):
    made, (images, labels) = network(), batch(True)
    if of == "loss gradient":
        result = own(made, leaves(made), images, labels)[0]
    else:
        result = made.features(images)
        if of != "features":
            (result,) = torch.autograd.grad(result.exp().sum(), images, create_graph=True)
    vectors = torch.randn(3, *result.shape, dtype=result.dtype)
    (batched,) = torch.autograd.grad(result, images, vectors, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(result, images, vector, retain_graph=True)[0] for vector in vectors]
    agree(batched, alone)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", ["features", "loss_gradient"])
def test_registrations_are_what_torch_expects(name, depth):
    made, (images, labels) = network(depth=depth), batch(True)
    params = [*leaves(made).values()]
    given = [images, *params[:-2]] if name == "features" else [images, labels, *params]
    torch.library.opcheck(operators._operator(name, depth), ([1, 1] * depth, [1e-5] * depth, *given))


@pytest.mark.parametrize("norm", ["batch", "layer", "group", "none"])
def test_other_norms_are_left_to_automatic_differentiation(norm):
    made = network(norm=norm)
    assert made.loss_gradient(dict(made.named_parameters()), *batch(False)) is None


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
    made = network()
    made.classifier = torch.nn.Linear(made.classifier.in_features, CLASSES, bias=False).double()
    assert made.loss_gradient(dict(made.named_parameters()), images, labels) is None
    assert network().loss_gradient(dict(network().named_parameters()), images[:0], labels[:0]) is None


@pytest.mark.parametrize("name", ["features.0.weight", "features.1.weight", "features.4.weight"])
def test_parameters_of_other_shapes_are_an_error(name):
    made = network()
    params = {own: p[:2] if own == name else p for own, p in made.named_parameters()}
    with pytest.raises(KernelError, match=r"block [12] of a ConvNet .* got parameters of the shapes .*\[2[],]"):
        made.loss_gradient(params, *batch(False))
    with pytest.raises(KernelError, match="block"):
        functional_call(made, params, batch(False)[:1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_types_are_left_to_automatic_differentiation(dtype):
    made = network().to(dtype)
    images, labels = (tensor.detach() for tensor in batch(False))
    assert made.loss_gradient(dict(made.named_parameters()), images.to(dtype), labels) is None
    assert made.loss_gradient(dict(made.named_parameters()), images, labels) is None
