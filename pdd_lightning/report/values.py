"""Settings of runs as flat names and values, how they differ between runs, and the files they stand in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pdd_lightning.errors import DamagedFileError

NOT_OF_THE_METHOD = (
    "checkpoint_every",
    "ckpt_path",
    "pictures.",
    "trainer.default_root_dir",
    "trainer.enable_",
    "trainer.log_every_n_steps",
    "trainer.logger",
)
"""Beginnings of the names of settings that say where and how a run was recorded, not what it computed."""

SEED = "seed_everything"
FOLDER_OF_EXPERTS = "stages.experts.folder"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as text by dotted name; a class stands under the name of what it is for.

    Example:
        >>> flatten({"model": {"class_path": "package.DM", "init_args": {"ipc": 1}}})
        {'model': 'DM', 'model.ipc': '1'}
    """
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if name == "class_path":
            flat[prefix.rstrip(".")] = str(value).rpartition(".")[2]
        elif isinstance(value, Mapping):
            flat |= flatten(value, prefix if name == "init_args" else f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return {name: value for name, value in flat.items() if not name.startswith(NOT_OF_THE_METHOD)}


def differing(all_settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of the settings that are not the same everywhere, in the order in which they come."""
    names = dict.fromkeys(name for settings in all_settings for name in settings)
    return [name for name in names if len({settings.get(name) for settings in all_settings}) > 1]


def without_seed(settings: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What two runs have in common that differ only by seed."""
    return tuple(sorted((name, value) for name, value in settings.items() if name not in (SEED, FOLDER_OF_EXPERTS)))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        DamagedFileError: It cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{path.name} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path.name} is damaged: it holds no mapping")
    return content
