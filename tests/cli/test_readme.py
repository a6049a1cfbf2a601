"""What the README and the pages show works as it stands there."""

import re
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import PROJECT


def blocks(page: str) -> list[str]:
    """The Python of a page that is meant to run."""
    return re.findall(r"```python\n(.*?)```", (PROJECT / page).read_text(), flags=re.DOTALL)


@pytest.mark.parametrize(("page", "count"), [("README.md", 1), ("docs/python.md", 4)])
def test_scripts_train_a_network(page: str, count: int, run: Path, image_folder: Path) -> None:
    changes = {
        "runs/digits_mtt": str(run),
        "Digits(test_fraction=0.2, val_fraction=0.2)": f"ImageFolder({str(image_folder)!r}, val_fraction=0.25)",
        "import Digits": "import ImageFolder",
        "range(200)": "range(2)",
        "epochs=200": "epochs=2",
    }
    scripts = blocks(page)
    assert len(scripts) == count
    script = "".join(scripts)
    for shown, small in changes.items():
        script = script.replace(shown, small)
    names: dict[str, object] = {}
    exec(script, names)
    network, dataset = names["network"], names["dataset"]
    assert network(dataset.pixels.encode(torch.rand(2, 3, 8, 8))).shape == (2, 3)


def test_a_dataset_of_ones_own_is_loaded() -> None:
    (script,) = blocks("docs/extending.md")
    names: dict[str, object] = {"__name__": "page"}
    exec(script, names)
    real = names["Stripes"]()
    real.setup()
    assert real.num_classes == 2 and real.image_shape == (1, 8, 8)
    vertical = real.train.images_of_class(0)
    columns = real.train.images[vertical].float().mean((0, 1, 2))
    assert columns[1::2].min() > columns[::2].max()


def test_the_recipes_listed_are_those_that_exist() -> None:
    listed = set(re.findall(r"`((?:digits|folder|cifar\d+|tiny)_\w+)`", (PROJECT / "docs" / "methods.md").read_text()))
    assert listed == {path.stem for path in (PROJECT / "configs" / "recipe").glob("*.yaml")}
