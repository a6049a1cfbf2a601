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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pdd_lightning import __version__
from pdd_lightning.errors import ConfigError, DamagedFileError, differences
from pdd_lightning.files import atomic_write_bytes, atomic_write_json, sha256_of_file
from pdd_lightning.metrics import Forgetting
from pdd_lightning.stored import (
    MOST_EXPERTS,
    Json,
    Kind,
    Seconds,
    Sha256,
    Share,
    Stored,
    array,
    checked,
    damaged,
    read_stored,
)

MANIFEST = "manifest.json"


class ExpertRecord(Stored):
    """What is known of one recorded expert.

    Attributes:
        sha256: Checksum of the expert's file.
        losses: Mean training loss of each epoch on the real data; of an expert that diverged they are not finite.
        accuracies: Training accuracy of each epoch on the real data, in [0, 1].
        start_accuracy: Validation accuracy of the start point, in [0, 1].
        end_accuracy: Validation accuracy after the last epoch, in [0, 1].
        start_seconds: Time spent on making the start point (training on the union).
        record_seconds: Time spent on the epochs on real data.
    """

    sha256: Sha256
    losses: list[Annotated[float, Field(allow_inf_nan=True)]]
    accuracies: list[Share]
    start_accuracy: Share
    end_accuracy: Share
    start_seconds: Seconds
    record_seconds: Seconds


class _Manifest(Stored):
    """What `manifest.json` holds: settings, of which one is the number of experts, and all records or none."""

    settings: Json
    experts: Annotated[list[ExpertRecord], Field(max_length=MOST_EXPERTS)]

    @model_validator(mode="after")
    def fit(self) -> _Manifest:
        """Refuses a number of experts that is none, or smaller than that of the records."""
        if not len(self.experts) <= self.number <= MOST_EXPERTS:
            raise ValueError(f"settings.number: expected a number of experts, {len(self.experts)} to {MOST_EXPERTS}")
        return self

    @property
    def number(self) -> int:
        """The number of experts."""
        number = self.settings.get("number")
        return number if isinstance(number, int) and not isinstance(number, bool) else -1


class _Snapshots(Stored):
    """Parameters of an expert at two times; those of one that diverged are not finite."""

    first: Annotated[Tensor, array("P: float32", finite=False)]
    last: Annotated[Tensor, array("P: float32", finite=False)]


class _Forgetting(Stored):
    """How an expert learned and forgot examples."""

    counts: Annotated[Tensor, array("N: int32")]
    learned: Annotated[Tensor, array("N: bool")]
    first_learned: Annotated[Tensor, array("N: int32")]
    errors: Annotated[Tensor, array("N: int32")]

    @model_validator(mode="after")
    def fit(self) -> _Forgetting:
        """Refuses columns of different length, and negative counts."""
        lengths = {len(column) for column in vars(self).values()}
        if len(lengths) != 1 or bool((self.counts < 0).any() or (self.errors < 0).any()):
            raise ValueError("forgetting is recorded as as many counts, which are >= 0, of each kind")
        return self


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
        manifest = _read(_Manifest, folder / MANIFEST)
        return cls(folder, manifest.number, manifest.settings)

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
        with self._opened(expert) as file:
            snapshots = file.get_slice("snapshots")
            shape = snapshots.get_shape()
            if len(shape) != 2 or not all(-shape[0] <= epoch < shape[0] for epoch in (first, last)):
                raise ValueError(f"snapshots: expected [epochs + 1, P] with epochs {first} and {last}, got {shape}")
            both = {"first": snapshots[first], "last": snapshots[last]}
        found = checked(_Snapshots, both, self.file(expert))
        return found.first, found.last

    def forgetting(self, expert: int) -> Forgetting | None:
        """How an expert learned and forgot the examples that it was trained on; None where it was not recorded."""
        with self._opened(expert) as file:
            if not set(Forgetting._fields) <= set(file.keys()):
                return None
            columns = {name: file.get_tensor(name) for name in Forgetting._fields}
        return Forgetting(**vars(checked(_Forgetting, columns, self.file(expert))))

    @contextmanager
    def _opened(self, expert: int) -> Iterator[Any]:
        """The mapped file of an expert.

        Raises:
            DamagedFileError: It is truncated or altered.
        """
        try:
            with safe_open(self.file(expert), framework="pt") as file:
                yield file
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise _damaged(self.file(expert), error) from error

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
        atomic_write_json(self.file(expert).with_suffix(".json"), entry.model_dump())

    def seal(self) -> None:
        """Moves the records of all experts into the manifest (one process, when nothing is missing)."""
        experts = [
            {"file": self.file(expert).name, **record.model_dump()} for expert, record in enumerate(self.records)
        ]
        self._write_manifest(experts)
        for expert in range(self.number):
            self.file(expert).with_suffix(".json").unlink(missing_ok=True)

    def damaged(self) -> list[int]:
        """Recorded experts whose file is truncated or altered (reads every file)."""
        files = {expert: record for expert, record in self._records.items() if self.file(expert).exists()}
        return [expert for expert, record in files.items() if not self._is_intact(expert, record)]

    def check(self, experts: Iterable[int]) -> None:
        """Reads the files of experts, to see whether they are whole.

        Raises:
            DamagedFileError: One is missing, truncated or altered.
        """
        for expert in experts:
            if not self._is_intact(expert, self._records[expert]):
                raise _damaged(self.file(expert), "its content does not match its checksum")

    def file(self, expert: int) -> Path:
        """Where an expert's snapshots are stored."""
        return self.folder / f"expert_{expert:03d}.safetensors"

    def _is_intact(self, expert: int, record: ExpertRecord) -> bool:
        try:
            return sha256_of_file(self.file(expert)) == record.sha256
        except OSError:
            return False

    def _check_manifest(self) -> None:
        if not (self.folder / MANIFEST).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(self.folder.glob("expert_*")):
                raise DamagedFileError(f"{self.folder} has expert files but no {MANIFEST}: delete it to record again")
            self._write_manifest([])
            return
        stored = _read(_Manifest, self.folder / MANIFEST).settings
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
        self._records = dict(enumerate(_read(_Manifest, self.folder / MANIFEST).experts))
        for expert in range(self.number):
            path = self.file(expert).with_suffix(".json")
            if path.exists():
                self._records[expert] = _read(ExpertRecord, path)


def delete_folders(root: Path, pattern: str, kept: Path) -> None:
    """Deletes the folders in `root` whose names match, but for one (one process)."""
    for folder in root.glob(pattern):
        if folder != kept:
            # Renamed first, so that an interruption leaves no half of a store under its name.
            folder.rename(root / f"deleted_{folder.name}")
    for folder in root.glob("deleted_*"):
        shutil.rmtree(folder)


def _read(kind: type[Kind], path: Path) -> Kind:
    return read_stored(kind, path, _remedy(path))


def _damaged(path: Path, reason: object) -> DamagedFileError:
    return damaged(path, reason, _remedy(path))


def _remedy(path: Path) -> str:
    what = f"the folder {path.parent} to record its experts" if path.name == MANIFEST else "it to record this expert"
    return f"restore it from a copy, or delete {what} again"
