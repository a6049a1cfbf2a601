"""What the README shows works as it stands there."""

import re
from pathlib import Path

import torch

from tests.cli.conftest import PROJECT

README = (PROJECT / "README.md").read_text()


def test_the_script_trains_a_network(run: Path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    script = script.replace("runs/digits_mtt", str(run)).replace("range(200)", "range(2)")
    names: dict[str, object] = {}
    exec(script, names)
    network, dataset = names["network"], names["dataset"]
    assert network(dataset.pixels.encode(torch.rand(2, 3, 8, 8))).shape == (2, 3)


def test_the_recipes_listed_are_those_that_exist() -> None:
    listed = set(re.findall(r"`((?:digits|folder|cifar\d+|tiny)_\w+)`", README))
    assert listed == {path.stem for path in (PROJECT / "configs" / "recipe").glob("*.yaml")}
