import pytest
import torch

from pdd_lightning.augment import ZCA
from pdd_lightning.errors import DataError


def correlated_images(count: int = 400) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(count, 3, 4, 4, generator=generator)
    return (noise + noise.mean(dim=(1, 2, 3), keepdim=True)) / 2


def test_whitened_pixels_are_uncorrelated_when_eps_is_small():
    images = correlated_images()
    whitened = ZCA.fit(images, eps=1e-8).whiten(images).flatten(1)
    torch.testing.assert_close(whitened.mean(0), torch.zeros(48), rtol=0, atol=1e-4)
    torch.testing.assert_close(whitened.T.cov(), torch.eye(48), rtol=0, atol=1e-3)


def test_restore_inverts_whiten_on_images_that_were_not_fitted():
    images = correlated_images()
    zca = ZCA.fit(images[:300])
    torch.testing.assert_close(zca.restore(zca.whiten(images[300:])), images[300:], rtol=1e-4, atol=1e-5)


def test_fewer_images_than_pixels_give_finite_matrices_with_the_definition_s_spectrum():
    images = correlated_images(10)
    zca = ZCA.fit(images, eps=0.1)
    variances = images.flatten(1).double().T.cov()
    expected = torch.linalg.inv(torch.linalg.eigh(variances + 0.1 * torch.eye(48)).eigenvalues.sqrt().diag())
    torch.testing.assert_close(
        torch.linalg.eigvalsh(zca.matrix.double()), expected.diag().flip(0), rtol=1e-5, atol=1e-6
    )


def test_fit_is_the_same_in_chunks(monkeypatch):
    whole = ZCA.fit(correlated_images())
    monkeypatch.setattr("pdd_lightning.augment.zca._CHUNK_SIZE", 7)
    torch.testing.assert_close(ZCA.fit(correlated_images()).matrix, whole.matrix)


def test_one_image_is_refused():
    with pytest.raises(DataError, match="at least 2 images to fit, got 1"):
        ZCA.fit(correlated_images(1))
