"""What a study needs to know of a recipe: its settings by dotted name, as `pdd fit` takes them on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import yaml

from pdd_lightning import stages
from pdd_lightning.errors import ConfigError
from pdd_lightning.stored import MAX_YAML_BYTES, load_yaml, one_line, read_bytes

YAML = (".yaml", ".yml")


class Recipe:
    """A recipe file with changes.

    Args:
        path: The YAML file that `pdd fit --config` takes.
        changes: Options of `pdd fit` that replace the recipe's, nested or by dotted names.

    Attributes:
        path: The file, relative to the working directory where it lies below.
        changes: The changes by dotted name.
        settings: The recipe's settings by dotted name, without `init_args`, with the changes.

    Raises:
        ConfigError: The file cannot be read or lacks something that a study needs.
    """

    def __init__(self, path: Path, changes: Mapping[str, Any]) -> None:
        self.path = readable(path)
        self.changes = dotted(changes)
        settings = dotted(read_yaml(path))
        if str(settings.get("model", "")).endswith(YAML):
            settings = overridden(settings, dotted({"model": read_yaml(Path(settings["model"]))}))
        self.settings = overridden(settings, self.changes)

    def __getitem__(self, name: str) -> Any:
        """A setting by dotted name.

        Raises:
            ConfigError: The recipe does not say it.
        """
        if name not in self.settings:
            raise ConfigError(f"the recipe {self.path} does not say {name}: add it there, or to the study's `fit`")
        return self.settings[name]

    def number(self, name: str) -> int:
        """A setting that is a positive whole number.

        Raises:
            ConfigError: The recipe does not say it, or says something else.
        """
        return positive(self.path, name, self[name])

    def section(self, name: str) -> dict[str, Any]:
        """Settings below `name`, by the rest of their names."""
        return {key[len(name) + 1 :]: value for key, value in self.settings.items() if key.startswith(f"{name}.")}

    def data(self) -> dict[str, Any]:
        """The real images as options of `pdd evaluate`."""
        options = self.section("data.real")
        kind = options.pop("class_path", None) or self["data.real"]
        return {"data": kind, **{f"data.{name}": value for name, value in options.items()}}

    @property
    def images_per_stored_image(self) -> int:
        """Training images that a distilled one stands for: the square of the method's `factor`, if it has one."""
        name = str(self.settings.get("model.class_path", self.settings.get("model"))).rpartition(".")[2]
        method = getattr(stages, name, None)
        factor = signature(method).parameters.get("factor") if method else None
        return (
            positive(self.path, "model.factor", self.settings.get("model.factor", factor.default if factor else 1)) ** 2
        )


def positive(path: Path, name: str, value: Any) -> int:
    """A setting that must be a positive whole number.

    Args:
        path: The file that says it.
        name: Its name.
        value: What it says.

    Raises:
        ConfigError: It says something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**12:
        raise ConfigError(f"{path}: {name} must be a positive whole number, got {one_line(repr(value))}")
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """What a YAML file says; the files that it names, which are relative to it, as seen from the working directory.

    Raises:
        ConfigError: It cannot be read, or says something else than names and values.
    """
    try:
        content = load_yaml(read_bytes(path, MAX_YAML_BYTES).decode())
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings")
    if wrong := [name for name in _names(content) if not isinstance(name, str)]:
        raise ConfigError(f"{path}: the name of a setting is a text, got {wrong[0]!r}")
    return dict(_found(content, path.parent))


def _names(value: Any) -> Iterator[Any]:
    """The names in nested settings."""
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _names(one)
    yield from value if isinstance(value, dict) else ()


def _found(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {name: _found(one, folder) for name, one in value.items()}
    if isinstance(value, list):
        return [_found(one, folder) for one in value]
    return str(readable(folder / value)) if isinstance(value, str) and value.endswith(YAML) else value


def dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name, without `init_args`, which the command line does not need."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = prefix + key.replace("init_args.", "")
        if isinstance(value, Mapping) and value:
            flat |= dotted(value, prefix if key == "init_args" else f"{name}.")
        else:
            flat[name] = value
    return flat


def overridden(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name with changes; a change of a whole section drops what the section said."""
    kept = {name: value for name, value in settings.items() if not any(name.startswith(f"{new}.") for new in changes)}
    return {**kept, **changes}


def option_args(options: Mapping[str, Any]) -> list[str]:
    """Options by dotted name as arguments: `{"stages.iterations": 5}` gives `--stages.iterations 5`."""
    return [word for name, value in options.items() for word in (f"--{name}", _text(value))]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def readable(path: Path) -> Path:
    """The path relative to the working directory where it lies below, else absolute, without detours."""
    resolved = path.resolve()
    return resolved.relative_to(Path.cwd()) if resolved.is_relative_to(Path.cwd()) else resolved
