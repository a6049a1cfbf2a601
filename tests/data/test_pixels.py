import pytest
import torch

from pdd_lightning.augment.zca import ZCA
from pdd_lightning.data.pixels import PixelSpace, Standardized, Whitened
from pdd_lightning.errors import DamagedFileError


@pytest.fixture(scope="module")
def images():
    return torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["standard", "zca"])
def space(request, images):
    if request.param == "standard":
        return Standardized([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    return Whitened(ZCA.fit(images))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_decode_undoes_encode_in_the_images_own_dtype(space, images, dtype):
    encoded = space.encode(images.to(dtype))
    decoded = space.decode(encoded)
    assert encoded.dtype == decoded.dtype == dtype
    assert not torch.allclose(encoded, images.to(dtype), atol=0.1)
    tolerance = 1e-5 if dtype != torch.bfloat16 else 0.03
    torch.testing.assert_close(decoded, images.to(dtype), atol=tolerance, rtol=0)


def test_whitening_sums_in_single_precision_whatever_the_images_are(images):
    space, half = Whitened(ZCA.fit(images)), images.bfloat16()
    assert torch.equal(space.encode(half), space.encode(half.float()).bfloat16())


def test_decode_does_not_clip(space, images):
    decoded = space.decode(3 * space.encode(images))
    assert decoded.min() < 0 and decoded.max() > 1


def test_a_rebuilt_space_is_the_same(space, images):
    rebuilt = PixelSpace.from_tensors(space.kind, space.tensors())
    assert rebuilt.kind == space.kind
    encoded = space.encode(images)
    torch.testing.assert_close(rebuilt.encode(images), encoded, atol=0, rtol=0)
    torch.testing.assert_close(rebuilt.decode(encoded), images, atol=1e-5, rtol=0)


def test_encoding_is_differentiable(space, images):
    leaf = images[:2].double().requires_grad_()
    assert torch.autograd.gradcheck(space.encode, leaf)


def test_standardizing_is_per_channel():
    space = Standardized([0.5, 0.0], [0.25, 2.0])
    ones = torch.ones(1, 2, 1, 1)
    assert space.encode(ones).flatten().tolist() == [2.0, 0.5]
    assert space.decode(ones).flatten().tolist() == [0.75, 2.0]


def test_fitted_standardization_gives_mean_zero_and_deviation_one():
    images = torch.randint(0, 200, (30, 2, 5, 5), dtype=torch.uint8)
    images[:, 1] = 7
    encoded = Standardized.fit(images).encode(images / 255)
    assert encoded.mean((0, 2, 3)).abs().max() < 1e-5
    assert encoded[:, 0].std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert encoded[:, 1].abs().max() < 1e-6  # a constant channel is centered, not divided by zero


def test_whitening_removes_most_of_the_correlation():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(200, 1, 1, 1, generator=generator) + torch.rand(200, 1, 4, 4, generator=generator)
    encoded = Whitened(ZCA.fit(smooth)).encode(smooth)

    def mean_correlation(images):
        correlations = images.flatten(1).T.corrcoef()
        return (correlations.abs().sum() - 16) / (16 * 15)

    assert mean_correlation(encoded) < 0.5 * mean_correlation(smooth)


@pytest.mark.parametrize(
    ("kind", "tensors", "message"),
    [
        ("polar", {}, "unknown pixel space 'polar'"),
        ("zca", {"mean": torch.zeros(3)}, "matrix: Field required"),
        ("standard", {}, "mean: Field required"),
    ],
)
def test_a_space_that_cannot_be_rebuilt_is_named(kind, tensors, message):
    with pytest.raises(DamagedFileError, match=message):
        PixelSpace.from_tensors(kind, tensors)


def test_a_level_is_a_plain_image_in_model_space():
    from pdd_lightning.errors import ConfigError

    space = Standardized([0.5, 0.25], [0.5, 0.25])
    assert space.level(1.0).flatten().tolist() == [1, 3] and space.level(0.0).flatten().tolist() == [-1, -1]
    assert torch.equal(space.level(0.5).expand(2, 3, 3), space.encode(torch.full((1, 2, 3, 3), 0.5))[0])
    whitened = Whitened(ZCA.fit(torch.rand(10, 1, 2, 2)))
    with pytest.raises(ConfigError, match=r"cannot be ZCA-whitened.*normalization to standard"):
        whitened.level(0.5)
