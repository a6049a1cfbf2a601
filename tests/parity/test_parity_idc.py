import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from pdd_lightning.augment import decode
from pdd_lightning.objectives import kernel_distance


@pytest.mark.parametrize("factor", [2, 3])
def test_decoding(reference, factor):
    arrays = reference("idc_decode")
    images, labels = decode(arrays["images"], arrays["labels"], factor)
    torch.testing.assert_close(images, arrays[f"decoded_f{factor}"], rtol=1e-4, atol=1e-6)
    assert torch.equal(labels, arrays[f"labels_f{factor}"])


@pytest.mark.parametrize("metric", ["mse", "l1"])
def test_distance_of_gradients(reference, reference_convnet, reference_params, metric):
    arrays = reference("gradient_matching")
    params = {name: value.requires_grad_() for name, value in reference_params.items()}
    images = arrays["synthetic_images"].requires_grad_()

    def gradients(batch, labels, differentiable):
        loss = F.cross_entropy(functional_call(reference_convnet, params, (batch,)), labels)
        return torch.autograd.grad(loss, list(params.values()), create_graph=differentiable)

    real = gradients(arrays["real_images"], arrays["real_labels"], False)
    distance = kernel_distance(real, gradients(images, arrays["synthetic_labels"], True), metric)
    (gradient,) = torch.autograd.grad(distance, images)
    torch.testing.assert_close(distance, arrays[f"idc_{metric}"], rtol=1e-4, atol=0)
    expected = arrays[f"idc_{metric}_grad_images"]
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
