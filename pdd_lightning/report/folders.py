"""Folders of runs and studies: which there are, and what can be shown of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pdd_lightning.errors import ConfigError, PDDError
from pdd_lightning.report.runs import Run, read_run
from pdd_lightning.report.studies import Study, read_study

TRACES_OF_A_RUN = ("config.yaml", "checkpoints", "experts", "distilled.safetensors")


@dataclass(frozen=True)
class Broken:
    """A folder of which nothing can be shown, and why."""

    name: str
    folder: Path
    reason: str


@dataclass(frozen=True)
class Folders:
    """All that a page is made of."""

    runs: list[Run]
    studies: list[Study]
    broken: list[Broken]


def read_folders(paths: Sequence[str | Path]) -> Folders:
    """Reads folders of runs and studies; a folder that is neither stands for those in it. Files are passed over.

    Raises:
        ConfigError: A path does not exist, or there is no run and no study.
    """
    candidates = [folder for path in paths for folder in _candidates(Path(path))]
    folders = list({folder.resolve(): folder for folder in candidates}.values())
    if not any(map(_is_ours, folders)):
        raise ConfigError(f"no run found in {', '.join(map(str, paths))}: name folders that `pdd fit` wrote")
    counts = [folder.resolve().name for folder in folders]
    read: list[Run | Study | Broken] = [_read(folder) for folder in folders]
    # Folders of the same name are told apart by the paths that were given.
    read = [
        one if counts.count(name) == 1 else replace(one, name=str(one.folder))
        for one, name in zip(read, counts, strict=True)
    ]
    return Folders(
        [one for one in read if isinstance(one, Run)],
        [one for one in read if isinstance(one, Study)],
        [one for one in read if isinstance(one, Broken)],
    )


def _candidates(path: Path) -> list[Path]:
    if not path.exists():
        raise ConfigError(f"there is no folder {path}: name folders that `pdd fit` wrote")
    if not path.is_dir():
        return []
    inside = [] if _is_ours(path) else sorted(folder for folder in path.iterdir() if _is_ours(folder))
    return inside or [path]


def _is_ours(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("summary.json", "study.json", *TRACES_OF_A_RUN))


def _read(folder: Path) -> Run | Study | Broken:
    name = folder.resolve().name
    if not _is_ours(folder):
        return Broken(name, folder, "it holds no run and no study")
    try:
        return read_study(folder, name) if (folder / "study.json").exists() else read_run(folder, name)
    except PDDError as error:
        return Broken(name, folder, str(error))
