"""A run in float32, as the package computes it and as plain autograd does."""

import pytest
import torch

from benchmarks.cases import Case, Iteration
from pdd_lightning.kernels.compiled import library

TURNS = 8


def run(method: str, form: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of some iterations, each followed by its update, and the images at the end."""
    case = Case(method, stage=2, ipc=2, real_batch=16, syn_steps=5, batch_syn=20, size=16, width=32)
    iteration = Iteration(case)
    optimizer = iteration.stage.configure_optimizers()
    losses = []
    for turn in range(TURNS):
        loss, _ = iteration(form, turn)
        optimizer.step()
        losses.append(loss)
    return torch.stack(losses), iteration.stage.images.detach()


@pytest.mark.parametrize("method", ["MTT", "DC", "DSA", "DM"])
def test_losses_and_images_stay_those_of_the_plain_form(method):
    if library() is None:
        pytest.skip("no C++ compiler here, so that both forms are the same")
    (losses, images), (plain_losses, plain_images) = run(method, "ours"), run(method, "plain")
    torch.testing.assert_close(losses, plain_losses, rtol=1e-3, atol=0)
    assert (images - plain_images).norm() < 1e-3 * plain_images.norm()
    assert (losses.diff() != 0).all()
