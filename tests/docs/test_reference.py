"""The API reference has all public names."""

import importlib
import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "reference"
SHOWN = {name for page in PAGES.glob("*.md") for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)}
PARTS = "data stages networks augment training unroll objectives experts progression evaluation metrics callbacks"


@pytest.mark.parametrize("package", ["pdd_lightning", *(f"pdd_lightning.{part}" for part in PARTS.split())])
def test_public_names_are_in_the_reference(package: str) -> None:
    module = importlib.import_module(package)
    home = {name: getattr(module, name).__module__ for name in module.__all__ if callable(getattr(module, name))}
    missing = [
        name
        for name, source in home.items()
        if package not in SHOWN and f"{package}.{name}" not in SHOWN and not covered(source, name)
    ]
    assert missing == []


def covered(source: str, name: str) -> bool:
    """Whether a name that comes from a module is shown with one of the packages that hold the module."""
    parents = [source.rsplit(".", depth)[0] for depth in range(1, source.count(".") + 1)]
    return any(parent in SHOWN or f"{parent}.{name}" in SHOWN for parent in parents if parent != "pdd_lightning")
