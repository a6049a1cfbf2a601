"""Recipes as studies use them: settings by dotted name, as `pdd fit` takes them on the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import yaml

from pdd_lightning import stages
from pdd_lightning.errors import ConfigError
from pdd_lightning.results.tables import flatten
from pdd_lightning.stored import MAX_YAML_BYTES, load_yaml, one_line, read_bytes

YAML_SUFFIXES = (".yaml", ".yml")


class Recipe:
    """A recipe file with changes.

    Args:
        path: The YAML file that `pdd fit --config` takes.
        changes: Options of `pdd fit` that replace the recipe's, nested or by dotted names.

    Raises:
        ConfigError: The file cannot be read or lacks something that a study needs.
    """

    def __init__(self, path: Path, changes: Mapping[str, Any]) -> None:
        self.path = relative_path(path)
        self.changes = flatten(changes)
        settings = flatten(read_yaml(path))
        if str(settings.get("model", "")).endswith(YAML_SUFFIXES):
            settings = override(settings, flatten({"model": read_yaml(Path(settings["model"]))}))
        self.settings = override(settings, self.changes)

    def __getitem__(self, name: str) -> Any:
        if name not in self.settings:
            raise ConfigError(f"the recipe {self.path} lacks {name}: add it there, or to the study's `fit`")
        return self.settings[name]

    def count(self, name: str, value: Any = None) -> int:
        """Return a setting, or a value given in its place, that must be a positive integer.

        Raises:
            ConfigError: The recipe lacks it, or it is not a positive integer.
        """
        value = self[name] if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**12:
            raise ConfigError(f"{self.path}: {name} must be a positive whole number, got {one_line(repr(value))}")
        return value

    def section(self, name: str) -> dict[str, Any]:
        """Return the settings below `name`, by the rest of their names."""
        return {key[len(name) + 1 :]: value for key, value in self.settings.items() if key.startswith(f"{name}.")}

    def data(self) -> dict[str, Any]:
        """Return the real images as options of `pdd evaluate`."""
        options = self.section("data.real")
        kind = options.pop("class_path", None) or self["data.real"]
        return {"data": kind, **{f"data.{name}": value for name, value in options.items()}}

    @property
    def images_per_stored_image(self) -> int:
        """Number of training images that a distilled one is decoded to: the square of the method's `factor`, if any."""
        name = str(self.settings.get("model.class_path", self.settings.get("model"))).rpartition(".")[2]
        method = getattr(stages, name, None)
        factor = signature(method).parameters.get("factor") if method else None
        default = factor.default if factor else 1
        return self.count("model.factor", self.settings.get("model.factor", default)) ** 2


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file; names of YAML files in it, which are relative to it, become relative to the working directory.

    Raises:
        ConfigError: It cannot be read, or holds anything but settings.
    """
    try:
        content = load_yaml(read_bytes(path, MAX_YAML_BYTES).decode())
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings")
    return dict(_resolve(content, path))


def _resolve(value: Any, path: Path) -> Any:
    """Check the names in nested settings of a file, and resolve the YAML files that they name."""
    if isinstance(value, dict):
        if wrong := [name for name in value if not isinstance(name, str)]:
            raise ConfigError(f"{path}: the name of a setting is a text, got {wrong[0]!r}")
        return {name: _resolve(item, path) for name, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, path) for item in value]
    is_file = isinstance(value, str) and value.endswith(YAML_SUFFIXES)
    return str(relative_path(path.parent / value)) if is_file else value


def override(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted name with changes; a change of a section replaces all of it."""
    sections = tuple(f"{name}." for name in changes)
    return {**{name: value for name, value in settings.items() if not name.startswith(sections)}, **changes}


def to_arguments(options: Mapping[str, Any]) -> list[str]:
    """Return options by dotted name as arguments: `{"stages.iterations": 5}` becomes `--stages.iterations 5`."""
    return [argument for name, value in options.items() for argument in (f"--{name}", _to_text(value))]


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def relative_path(path: Path) -> Path:
    """Return the path relative to the working directory if it is inside, else the absolute path."""
    resolved = path.resolve()
    return resolved.relative_to(Path.cwd()) if resolved.is_relative_to(Path.cwd()) else resolved
