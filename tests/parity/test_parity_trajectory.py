import pytest
import torch

from pdd_lightning.networks import flatten
from pdd_lightning.objectives import trajectory_distance
from pdd_lightning.unroll import InnerProblem, unroll


@pytest.mark.parametrize("form", ["stored", "constant", "higher"])
def test_trajectory_matching(reference, reference_convnet, reference_params, form):
    arrays = reference("trajectory_matching")
    batch, labels = int(arrays["batch"]), arrays["labels"]
    images, lr = arrays["images"].requires_grad_(), arrays["lr"].requires_grad_()
    target = torch.cat([arrays[f"target_{index:02d}"].flatten() for index in range(14)])

    def consecutive(step, images):
        part = slice(step * batch, (step + 1) * batch)
        return images[part], labels[part]

    problem = InnerProblem(reference_convnet, consecutive)
    final = flatten(unroll(problem, reference_params, (images,), lr, int(arrays["steps"]), form))
    loss = trajectory_distance(final, flatten(reference_params), target)
    loss.backward()

    torch.testing.assert_close(loss, arrays["loss"], rtol=1e-4, atol=0)
    torch.testing.assert_close(final, arrays["final_params"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(lr.grad, arrays["grad_lr"], rtol=1e-4, atol=0)
    # The smallest of these gradients are sums of cancelling terms: compare them to the largest.
    largest = float(arrays["grad_images"].abs().max())
    torch.testing.assert_close(images.grad, arrays["grad_images"], rtol=1e-4, atol=1e-4 * largest)
