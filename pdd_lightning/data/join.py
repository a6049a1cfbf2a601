"""Joining distilled sets into the stages of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pdd_lightning.data.distilled import DistilledDataset, save_distilled
from pdd_lightning.errors import ConfigError, DataError

KEPT = ("dataset", "network", "method", "settings")
"""What the joined set says of itself in the words of the first."""


def join_distilled(paths: Sequence[str | Path], target: str | Path) -> Path:
    """Writes a set whose stages are those of several stored sets, one after another.

    What the target says of itself is what the first set says, and the checksums of all (`joined`).

    Args:
        paths: Distilled sets of the same data in the same model space.
        target: File to write or replace.

    Raises:
        ConfigError: There is nothing to join.
        DataError: The sets do not belong together.
    """
    if not paths:
        raise ConfigError("nothing to join: name at least one distilled set")
    sets = [DistilledDataset(path, stored=True) for path in paths]
    first = sets[0]
    for path, other in zip(paths, sets, strict=True):
        _check_match(paths[0], first, path, other)
    joined = first.synthetic
    for other in sets[1:]:
        for stage in range(1, other.num_stages + 1):
            images = other.synthetic.stage(stage)
            joined = joined.append(images.images, images.labels, images.learning_rates[-1])
    about: dict[str, Any] = {name: first.metadata[name] for name in KEPT if name in first.metadata}
    about["joined"] = [other.metadata["sha256"] for other in sets]
    return save_distilled(target, joined, first.pixels, first.class_names, about)


def _check_match(first_path: str | Path, first: DistilledDataset, path: str | Path, other: DistilledDataset) -> None:
    mine, others = first.pixels.tensors(), other.pixels.tensors()
    same_space = mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)
    facts = {
        "class names": first.class_names == other.class_names,
        "model space": first.pixels.kind == other.pixels.kind and same_space,
        "decode factor": first.synthetic.decode_factor == other.synthetic.decode_factor,
        "data": first.metadata.get("dataset") == other.metadata.get("dataset"),
    }
    if wrong := [what for what, same in facts.items() if not same]:
        raise DataError(f"{path} cannot be joined with {first_path}: another {' and '.join(wrong)}")
