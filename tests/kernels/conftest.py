"""Kernels are compiled when first needed; where that is impossible there is nothing to test."""

import pytest

from pdd_lightning.kernels.compiled import library


@pytest.fixture(autouse=True)
def compiled() -> None:
    if library() is None:
        pytest.skip("no C++ compiler here, so that there are no kernels")
