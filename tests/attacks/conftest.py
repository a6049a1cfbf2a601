"""A small run, and what strangers may make of its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
from torch import Tensor

from pdd_lightning.cli import PDDCLI, main
from pdd_lightning.files import sha256_of_tensors
from tests.cli.conftest import RECIPE, image_folder, recipe, run, write_folder

__all__ = ["image_folder", "prepared", "recipe", "run"]


class Prepared(NamedTuple):
    """A finished run of two stages, its recipe, and the images that it was distilled from."""

    run: Path
    recipe: Path
    images: Path

    @property
    def words(self) -> list[str]:
        """The real images as options of `pdd evaluate` and others."""
        return ["--data", "ImageFolder", "--data.root", str(self.images), "--data.val_fraction", "0.25"]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Made once; tests copy what they alter."""
    root = tmp_path_factory.mktemp("prepared")
    recipe = root / "recipe.yaml"
    recipe.write_text(RECIPE.replace("ROOT", str(write_folder(root / "images"))))
    words = ["fit", "--config", recipe, "--trainer.default_root_dir", root / "run", "--trainer.logger", "false"]
    main([str(word) for word in [*words, "--stages.iterations", 4]])
    return Prepared(root / "run", recipe, root / "images")


Alter = Callable[[dict[str, Tensor], dict[str, Any]], None]


def forged(source: Path, target: Path, alter: Alter) -> Path:
    """A copy of a distilled set, altered by somebody who knows how checksums are made.

    The function alters tensors and header in place; header entries that are not text are written as JSON.
    """
    data = source.read_bytes()
    tensors = safetensors.torch.load(data)
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    alter(tensors, header)
    text = {name: value if isinstance(value, str) else json.dumps(value) for name, value in header.items()}
    text.pop("sha256", None)
    whole = {name: value.contiguous() for name, value in tensors.items()}
    text["sha256"] = sha256_of_tensors(whole, text)
    target.write_bytes(safetensors.torch.save(whole, text))
    return target


def refusal(*words: object) -> str:
    """The one sentence with which the command line refuses something."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert isinstance(stop.value.code, str), "the parser refused it, or nothing did"
    assert stop.value.code.startswith("pdd: error: ") and "Traceback" not in stop.value.code
    return stop.value.code


def changed(content: Any, path: str, value: Any) -> Any:
    """JSON with an entry, named by a dotted path, replaced; `DELETE` removes it."""
    first, _, rest = path.partition(".")
    key: Any = int(first) if isinstance(content, list) else first
    copy = list(content) if isinstance(content, list) else dict(content)
    if rest:
        copy[key] = changed(copy[key], rest, value)
    elif value is DELETE:
        del copy[key]
    else:
        copy[key] = value
    return copy


class _Delete:
    """Stands for the removal of an entry; by the same name in all processes of the tests."""

    def __repr__(self) -> str:
        return "DELETE"


DELETE = _Delete()


def places(content: Any, prefix: str = "") -> list[str]:
    """Dotted paths of all entries of nested JSON."""
    items: Mapping[Any, Any] = {}
    if isinstance(content, dict):
        items = {key: one for key, one in content.items() if "." not in key and key}
    elif isinstance(content, list):
        items = dict(enumerate(content))
    here = [f"{prefix}{key}" for key in items]
    return here + [path for key, one in items.items() for path in places(one, f"{prefix}{key}.")]


@pytest.fixture(scope="package", autouse=True)
def shared_parser() -> Iterator[None]:
    """Builds the parser of `fit` and `test` once, since it takes longer than most refusals."""
    setup, built = PDDCLI.setup_parser, []

    def setup_once(self: PDDCLI, *arguments: Any) -> None:
        if not built:
            setup(self, *arguments)
            names = [name for name in vars(self) if "parser" in name or "subcommand" in name]
            built.append({name: getattr(self, name) for name in names})
        vars(self).update(built[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PDDCLI, "setup_parser", setup_once)
        yield
