"""A folder of expert trajectories.

    manifest.json             what was recorded: settings, and per expert its file, checksum and curves
    expert_000.safetensors    `snapshots` float32 [epochs + 1, P]: all parameters, flat, in named_parameters()
                              order, before the first and after each epoch; and, where there are epochs,
                              `counts`, `learned`, `first_learned`, `errors` [N]: how the real examples that
                              the expert was trained on were learned and forgotten, see `Forgetting`
    expert_000.json           the expert's record, until every expert is there and the manifest holds it

Files appear by atomic renames, so that an expert is either recorded whole or not at all; processes may
record different experts at the same time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from pdd_lightning import __version__
from pdd_lightning.errors import ConfigError, DamagedFileError, differences
from pdd_lightning.files import atomic_write_bytes, atomic_write_json
from pdd_lightning.metrics import Forgetting

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ExpertRecord:
    """What is known of one recorded expert.

    Attributes:
        sha256: Checksum of the expert's file.
        losses: Mean training loss of each epoch on the real data.
        accuracies: Training accuracy of each epoch on the real data, in [0, 1].
        start_accuracy: Validation accuracy of the start point, in [0, 1].
        end_accuracy: Validation accuracy after the last epoch, in [0, 1].
        start_seconds: Time spent on making the start point (training on the union).
        record_seconds: Time spent on the epochs on real data.
    """

    sha256: str
    losses: list[float]
    accuracies: list[float]
    start_accuracy: float
    end_accuracy: float
    start_seconds: float
    record_seconds: float


class TrajectoryStore:
    """Reads and writes the expert trajectories of one folder.

    Args:
        folder: Where the files are or shall be.
        number: Number of experts.
        settings: JSON-able description of everything that the trajectories depend on. A folder that holds
            trajectories of other settings is refused.

    Raises:
        ConfigError: The folder's manifest says other settings; the message lists the differences.
        DamagedFileError: The manifest cannot be read.
    """

    def __init__(self, folder: Path, number: int, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.number = number
        self.settings = json.loads(json.dumps({**settings, "number": number}))
        self._records: dict[int, ExpertRecord] = {}
        self._check_manifest()
        self._load_records()

    @classmethod
    def existing(cls, folder: Path) -> TrajectoryStore:
        """Opens a folder with the settings that it was recorded with.

        Raises:
            ConfigError: There are no trajectories.
            DamagedFileError: The manifest cannot be read.
        """
        if not (folder / MANIFEST).exists():
            raise ConfigError(f"{folder} holds no expert trajectories: name the folder that has their {MANIFEST}")
        settings = _read_json(folder / MANIFEST).get("settings")
        if not isinstance(settings, dict) or not isinstance(settings.get("number"), int):
            raise _damaged(folder / MANIFEST, "it does not say how many experts there are")
        return cls(folder, settings["number"], settings)

    @property
    def records(self) -> list[ExpertRecord]:
        """Records of all experts, in order; only once everything is recorded."""
        return [self._records[expert] for expert in range(self.number)]

    def checksums(self) -> dict[int, str]:
        """Checksum of the file of each expert that is recorded."""
        return {expert: self._records[expert].sha256 for expert in sorted(self._records)}

    def missing(self) -> list[int]:
        """Experts that are not recorded yet, or whose file is gone."""
        self._load_records()
        return [one for one in range(self.number) if one not in self._records or not self.file(one).exists()]

    def segment(self, expert: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Parameters of an expert after `first` and after `last` epochs, read from the mapped file.

        Returns:
            Two float32 vectors `[P]`.
        """
        with safe_open(self.file(expert), framework="pt") as file:
            snapshots = file.get_slice("snapshots")
            return snapshots[first], snapshots[last]

    def forgetting(self, expert: int) -> Forgetting | None:
        """How an expert learned and forgot the examples that it was trained on; None where it was not recorded."""
        with safe_open(self.file(expert), framework="pt") as file:
            if not set(Forgetting._fields) <= set(file.keys()):
                return None
            return Forgetting(*(file.get_tensor(name) for name in Forgetting._fields))

    def write(self, expert: int, snapshots: Tensor, forgetting: Forgetting | None = None, **record: Any) -> None:
        """Stores one expert.

        Args:
            expert: Number of the expert, from 0.
            snapshots: Parameters `[epochs + 1, P]`, float32.
            forgetting: How the examples were learned and forgotten; None without any training.
            record: The fields of `ExpertRecord` but the checksum.
        """
        examples = forgetting._asdict() if forgetting else {}
        data = save({"snapshots": snapshots.contiguous(), **examples})
        atomic_write_bytes(self.file(expert), data)
        entry = ExpertRecord(sha256=hashlib.sha256(data).hexdigest(), **record)
        atomic_write_json(self.file(expert).with_suffix(".json"), asdict(entry))

    def seal(self) -> None:
        """Moves the records of all experts into the manifest (one process, when nothing is missing)."""
        experts = [{"file": self.file(expert).name, **asdict(record)} for expert, record in enumerate(self.records)]
        self._write_manifest(experts)
        for expert in range(self.number):
            self.file(expert).with_suffix(".json").unlink(missing_ok=True)

    def damaged(self) -> list[int]:
        """Recorded experts whose file is truncated or altered (reads every file)."""
        files = {expert: record for expert, record in self._records.items() if self.file(expert).exists()}
        return [expert for expert, record in files.items() if not self._is_intact(expert, record)]

    def file(self, expert: int) -> Path:
        """Where an expert's snapshots are stored."""
        return self.folder / f"expert_{expert:03d}.safetensors"

    def _is_intact(self, expert: int, record: ExpertRecord) -> bool:
        digest = hashlib.sha256()
        with self.file(expert).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest() == record.sha256

    def _check_manifest(self) -> None:
        if not (self.folder / MANIFEST).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(self.folder.glob("expert_*")):
                raise DamagedFileError(f"{self.folder} has expert files but no {MANIFEST}: delete it to record again")
            self._write_manifest([])
            return
        stored = _read_json(self.folder / MANIFEST).get("settings")
        if not isinstance(stored, dict):
            raise _damaged(self.folder / MANIFEST, "it holds no settings")
        if stored != self.settings:
            changes = "\n  ".join(differences(stored, self.settings))
            raise ConfigError(
                f"{self.folder} holds expert trajectories recorded with other settings:\n  {changes}\n"
                "Restore those settings, choose another folder, or delete this one."
            )

    def _write_manifest(self, experts: list[dict[str, Any]]) -> None:
        manifest = {"package_version": __version__, "settings": self.settings, "experts": experts}
        atomic_write_json(self.folder / MANIFEST, manifest)

    def _load_records(self) -> None:
        manifest = self.folder / MANIFEST
        entries = _read_json(manifest).get("experts")
        if not isinstance(entries, list):
            raise _damaged(manifest, "it lists no experts")
        self._records = {expert: _record(manifest, entry) for expert, entry in enumerate(entries)}
        for expert in range(self.number):
            path = self.file(expert).with_suffix(".json")
            if path.exists():
                self._records[expert] = _record(path, _read_json(path))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, "it holds no JSON object")
    return content


def delete_folders(root: Path, pattern: str, kept: Path) -> None:
    """Deletes the folders in `root` whose names match, but for one (one process)."""
    for folder in root.glob(pattern):
        if folder != kept:
            # Renamed first, so that an interruption leaves no half of a store under its name.
            folder.rename(root / f"deleted_{folder.name}")
    for folder in root.glob("deleted_*"):
        shutil.rmtree(folder)


def _record(path: Path, entry: Any) -> ExpertRecord:
    """The record that an entry of a manifest, or a record's own file, stands for."""
    names = [field.name for field in fields(ExpertRecord)]
    if not isinstance(entry, dict) or not entry.keys() >= set(names):
        raise _damaged(path, "an expert's record is incomplete")
    return ExpertRecord(**{name: entry[name] for name in names})


def _damaged(path: Path, reason: str) -> DamagedFileError:
    remedy = f"the folder {path.parent} to record its experts" if path.name == MANIFEST else "it to record this expert"
    return DamagedFileError(f"{path} is damaged ({reason}): restore it from a copy, or delete {remedy} again")
