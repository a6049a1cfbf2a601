import pytest
import torch
from torch.nn import functional as F

from pdd_lightning.objectives import distribution_distance, gradient_distance


def assert_gradient(images, expected):
    # The smallest of these gradients are sums of cancelling terms: compare them to the largest.
    largest = float(expected.abs().max())
    torch.testing.assert_close(images.grad, expected, rtol=1e-4, atol=1e-4 * largest)


@pytest.mark.parametrize("metric", ["ours", "mse", "cos"])
def test_gradient_matching(reference, reference_convnet, reference_params, metric):
    arrays = reference("gradient_matching")
    reference_convnet.load_state_dict(reference_params)
    images = arrays["synthetic_images"].requires_grad_()
    params = tuple(reference_convnet.parameters())
    real_loss = F.cross_entropy(reference_convnet(arrays["real_images"]), arrays["real_labels"])
    real = torch.autograd.grad(real_loss, params)
    loss = F.cross_entropy(reference_convnet(images), arrays["synthetic_labels"])
    distance = gradient_distance(torch.autograd.grad(loss, params, create_graph=True), real, metric)
    distance.backward()
    torch.testing.assert_close(distance, arrays[metric], rtol=1e-4, atol=0)
    assert_gradient(images, arrays[f"{metric}_grad_images"])


def test_distribution_matching(reference, reference_convnet, reference_params):
    arrays = reference("distribution_matching")
    reference_convnet.load_state_dict(reference_params)
    images = arrays["synthetic_images"].requires_grad_()

    def means(images):
        return torch.stack([reference_convnet.features(part).mean(0) for part in images])

    distance = distribution_distance(means(images), means(arrays["real_images"]))
    distance.backward()
    torch.testing.assert_close(distance, arrays["loss"], rtol=1e-4, atol=0)
    assert_gradient(images, arrays["grad_images"])
