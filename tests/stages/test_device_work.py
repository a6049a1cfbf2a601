"""What an iteration asks of its device, on `meta`: to wait for a number is an error there."""

from dataclasses import replace

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.cases import Case, Iteration, in_precision
from tests.tiny import change

pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")  # there is nothing to copy to


class Transfers(TorchDispatchMode):
    """Notes operations on tensors of several devices; scalars may come from anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if len({tensor.device for tensor in tensors if tensor.ndim}) > 1:
            self.seen.append(f"{func} on {[tuple(tensor.shape) for tensor in tensors]}")
        return result


def on_meta(method: str) -> Iteration:
    """An iteration of stage 2 whose stage, networks and batch are on the meta device."""
    case = Case(method, stage=2, real_batch=16, syn_steps=3, batch_syn=20, size=16, width=16)
    iteration = Iteration(case)
    batch = iteration.stage.draw_batch(1, iteration.data.generator("batch", 0))
    iteration.case = replace(case, device="meta")
    iteration.stage.to("meta")
    if method == "MTT":
        iteration.stage._mode = "stored"  # the device has no memory to choose a mode by
    iteration.data._sampler = None
    change(iteration.data, union=in_precision(iteration.data.union, iteration.case))
    iteration._batches[0] = move_data_to_device(batch, "meta")
    return iteration


@pytest.mark.parametrize("method", ["MTT", "DC", "DSA", "DM", "IDC"])
def test_loss_and_gradient_wait_for_no_number(method):
    loss, gradient = on_meta(method)("ours")
    assert loss.device.type == gradient.device.type == "meta"
    assert gradient.shape == (20, 3, 16, 16)


def test_trajectory_matching_sends_it_nothing():
    iteration = on_meta("MTT")
    iteration("ours")
    with Transfers() as transfers:
        iteration("ours")
    assert not transfers.seen
