"""What a run folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pdd_lightning.errors import DamagedFileError, PDDError
from pdd_lightning.report.figures import EvaluationRow, StageFigures, number
from pdd_lightning.report.pictures import Picture, Sheets, noting, stage_sheets
from pdd_lightning.report.values import SEED, flatten, read_json


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        name: The folder's name.
        folder: The folder.
        dataset: Name of the dataset.
        fingerprint: Hash of its content.
        settings: Settings by dotted name, as text.
        stages: Finished stages.
        planned_stages: Number of stages configured; None where the folder does not say.
        rows: Evaluation rows.
        sheets: Distilled images, if they can be read.
        pictures: Further pictures.
        notes: What is missing or damaged.
    """

    name: str
    folder: Path
    dataset: str
    fingerprint: str
    settings: dict[str, str]
    stages: list[StageFigures]
    planned_stages: float | None
    rows: list[EvaluationRow]
    sheets: Sheets | None
    pictures: list[Picture]
    notes: list[str]


def read_run(folder: Path, name: str) -> Run:
    """Reads a run folder; what cannot be read is noted, as long as there are figures to show.

    Raises:
        DamagedFileError: The summary is missing or damaged.
    """
    if not (folder / "summary.json").exists():
        if (folder / "distilled.safetensors").exists():
            raise DamagedFileError("it holds a distilled set, but no run: there is no summary.json")
        raise DamagedFileError("no stage is finished yet: there is no summary.json")
    summary = read_json(folder / "summary.json")
    notes: list[str] = []
    config = _config(folder / "config.yaml", notes)
    sheets, pictures = _pictures(folder, notes)
    try:
        stages = [StageFigures.from_entry(entry) for entry in _list(summary, "stages")]
        rows = [EvaluationRow.from_entry(entry) for entry in _list(summary, "evaluation")]
    except DamagedFileError as error:
        raise DamagedFileError(f"summary.json is damaged: {error}") from error
    planned = number(_inside(config, "stages", "num_stages"))
    if planned is not None and len(stages) < planned:
        notes.append(f"{len(stages)} of {planned:.0f} stages are finished")
        if (folder / "last_good.safetensors").exists():
            notes.append("a loss was not finite: the last good images are in last_good.safetensors")
    return Run(
        name=name,
        folder=folder,
        dataset=str(_inside(summary, "dataset", "name") or "not stated"),
        fingerprint=str(_inside(summary, "dataset", "fingerprint")),
        settings=flatten(config) if config else _stored_settings(summary),
        stages=stages,
        planned_stages=planned,
        rows=rows,
        sheets=sheets,
        pictures=pictures,
        notes=notes,
    )


def _stored_settings(summary: dict[str, Any]) -> dict[str, str]:
    """The method's settings, which the summary repeats, under the names that the configuration has for them."""
    stored = summary.get("settings")
    settings = dict(stored) if isinstance(stored, dict) else {}
    method = settings.pop("method", "not stated")
    return flatten({SEED: summary.get("seed"), "model": {"class_path": method, "init_args": settings}})


def _pictures(folder: Path, notes: list[str]) -> tuple[Sheets | None, list[Picture]]:
    """The distilled images, and pictures that show something else; of a set that cannot be read, all pictures."""
    sheets = None
    try:
        sheets = stage_sheets(folder / "distilled.safetensors")
    except PDDError as error:
        notes.append(str(error))
    pictures = []
    for path in sorted((folder / "images").glob("*.png")):
        if sheets is None or not (path.stem == "union" or path.stem.startswith("stage_")):
            pictures += noting(path, notes)
    return sheets, pictures


def _config(path: Path, notes: list[str]) -> dict[str, Any]:
    """The configuration; empty where it is missing or damaged, which is noted."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        notes.append("config.yaml is damaged: it holds no mapping")
    except (OSError, ValueError, yaml.YAMLError) as error:
        notes.append(f"config.yaml cannot be read: {str(error).splitlines()[0]}")
    return {}


def _list(summary: dict[str, Any], name: str) -> list[Any]:
    value = summary.get(name, [])
    if not isinstance(value, list):
        raise DamagedFileError(f"{name!r} is no list")
    return value


def _inside(settings: Any, *names: str) -> Any:
    """A nested value; None where there is none."""
    for name in names:
        settings = settings.get(name) if isinstance(settings, dict) else None
    return settings
