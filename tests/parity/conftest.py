"""Reference arrays, from the folder that PDD_REFERENCE_DIR names (by default those kept with the tests)."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pdd_lightning.networks import ConvNet
from pdd_lightning.typing import Params

_KEPT = Path(__file__).parents[1] / "reference"


@pytest.fixture(scope="session")
def reference() -> Callable[[str], dict[str, Tensor]]:
    """Give `reference("dsa")`: the numeric arrays of `dsa.npz` by name."""
    folder = Path(os.environ.get("PDD_REFERENCE_DIR", _KEPT))

    def load(name: str) -> dict[str, Tensor]:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files if arrays[key].dtype.kind in "fi"}

    return load


@pytest.fixture(scope="session")
def reference_names() -> list[str]:
    folder = Path(os.environ.get("PDD_REFERENCE_DIR", _KEPT))
    with np.load(folder / "convnet.npz", allow_pickle=False) as arrays:
        return [str(name) for name in arrays["names"]]


@pytest.fixture
def reference_convnet() -> ConvNet:
    """The network of all reference arrays, with parameters of its own."""
    return ConvNet(3, 10, 32, depth=3, width=8)


@pytest.fixture
def reference_params(reference, reference_convnet) -> Params:
    """The parameters of the reference network by name."""
    arrays = reference("convnet")
    names = [name for name, _ in reference_convnet.named_parameters()]
    return {name: arrays[f"param_{index:02d}"] for index, name in enumerate(names)}
