"""A folder of expert trajectories.

    manifest.json             settings, and per expert its file, checksum and curves
    expert_000.safetensors    `snapshots` float32 [epochs + 1, P]: all parameters, flat, in named_parameters()
                              order, before the first and after each epoch; and, if there are epochs,
                              `counts`, `learned`, `first_learned`, `errors` [N]: how the real examples that
                              the expert was trained on were learned and forgotten, see `Forgetting`
    expert_000.json           the expert's record, until all are recorded and the manifest holds it

Files appear by atomic renames: an expert is recorded completely or not at all. Processes of one run record
different experts at the same time; another run waits, see `ExpertRecorder.record`.
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
    MAX_EXPERTS,
    Json,
    Kind,
    Seconds,
    Sha256,
    Share,
    Stored,
    array,
    damaged_error,
    read_stored,
    validate,
)

MANIFEST = "manifest.json"


class ExpertRecord(Stored):
    """Record of one expert.

    Attributes:
        sha256: Checksum of the expert's file.
        losses: Mean training loss of each epoch on the real data; not finite if the expert diverged.
        accuracies: Training accuracy of each epoch on the real data, in [0, 1].
        start_accuracy: Validation accuracy of the start point, in [0, 1].
        end_accuracy: Validation accuracy after the last epoch, in [0, 1].
        start_seconds: Time of training on the union, which leads to the start point.
        record_seconds: Time of the epochs on real data.
    """

    sha256: Sha256
    losses: list[Annotated[float, Field(allow_inf_nan=True)]]
    accuracies: list[Share]
    start_accuracy: Share
    end_accuracy: Share
    start_seconds: Seconds
    record_seconds: Seconds


class _Manifest(Stored):
    """Content of `manifest.json`: settings, among them the number of experts, and all records or none."""

    settings: Json
    experts: Annotated[list[ExpertRecord], Field(max_length=MAX_EXPERTS)]

    @model_validator(mode="after")
    def check_number(self) -> _Manifest:
        """Refuse a number of experts that is not one, or is smaller than that of the records."""
        number = self.settings.get("number")
        if type(number) is not int or not max(len(self.experts), 1) <= number <= MAX_EXPERTS:
            raise ValueError(f"settings.number: expected a number of experts, {len(self.experts)} to {MAX_EXPERTS}")
        return self


class _Snapshots(Stored):
    """Parameters of an expert at two epochs; not finite if it diverged."""

    first: Annotated[Tensor, array("P: float32", finite=False)]
    last: Annotated[Tensor, array("P: float32", finite=False)]


class _Forgetting(Stored):
    """How an expert learned and forgot examples."""

    counts: Annotated[Tensor, array("N: int32")]
    learned: Annotated[Tensor, array("N: bool")]
    first_learned: Annotated[Tensor, array("N: int32")]
    errors: Annotated[Tensor, array("N: int32")]

    @model_validator(mode="after")
    def check_columns(self) -> _Forgetting:
        """Refuse columns of different lengths, and negative counts."""
        lengths = {len(column) for column in vars(self).values()}
        if len(lengths) != 1 or bool((self.counts < 0).any() or (self.errors < 0).any()):
            raise ValueError("forgetting is recorded as as many counts, which are >= 0, of each kind")
        return self


class TrajectoryStore:
    """Reads and writes the expert trajectories of one folder.

    Args:
        folder: Where the files are or will be.
        number: Number of experts.
        settings: JSON-able description of everything that the trajectories depend on.

    Raises:
        ConfigError: The folder holds trajectories of other settings; the message lists the differences.
        DamagedFileError: The manifest cannot be read.
    """

    def __init__(self, folder: Path, number: int, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.number = number
        self.settings = json.loads(json.dumps({**settings, "number": number}))
        self._records: dict[int, ExpertRecord] = {}
        if not self.manifest.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(self.folder.glob("expert_*")):
                raise DamagedFileError(f"{self.folder} has expert files but no {MANIFEST}: delete it to record again")
            self._write_manifest([])
        self._load_records()

    @classmethod
    def existing(cls, folder: Path) -> TrajectoryStore:
        """Open a folder with the settings that it was recorded with.

        Raises:
            ConfigError: There are no trajectories.
            DamagedFileError: The manifest cannot be read.
        """
        if not (folder / MANIFEST).exists():
            raise ConfigError(f"{folder} holds no expert trajectories: name the folder that has their {MANIFEST}")
        manifest = _read(_Manifest, folder / MANIFEST)
        return cls(folder, manifest.settings["number"], manifest.settings)

    @property
    def manifest(self) -> Path:
        """File of the settings and, once all experts are recorded, their records."""
        return self.folder / MANIFEST

    @property
    def records(self) -> list[ExpertRecord]:
        """Records of all experts, in order; only once all are recorded."""
        return [self._records[expert] for expert in range(self.number)]

    def file(self, expert: int) -> Path:
        """Return where an expert's snapshots are stored."""
        return self.folder / f"expert_{expert:03d}.safetensors"

    def checksums(self) -> dict[int, str]:
        """Return the checksum of the file of each expert that is recorded."""
        return {expert: self._records[expert].sha256 for expert in sorted(self._records)}

    def missing(self) -> list[int]:
        """Return the experts that are not recorded yet, or whose file is missing; reads the records again."""
        self._load_records()
        return [i for i in range(self.number) if i not in self._records or not self.file(i).exists()]

    def damaged(self) -> list[int]:
        """Return the recorded experts whose file is truncated or altered (reads every file)."""
        return [expert for expert in self._records if self.file(expert).exists() and not self._is_intact(expert)]

    def check(self, experts: Iterable[int]) -> None:
        """Check the files of experts against their checksums.

        Raises:
            DamagedFileError: One is missing, truncated or altered.
        """
        for expert in experts:
            if not self._is_intact(expert):
                raise _damaged(self.file(expert), "its content does not match its checksum")

    def segment(self, expert: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Return the parameters `[P]` of an expert after `first` and after `last` epochs, float32.

        Raises:
            DamagedFileError: The file is truncated or altered.
        """
        with self._open(expert) as file:
            snapshots = file.get_slice("snapshots")
            shape = snapshots.get_shape()
            if len(shape) != 2 or not all(-shape[0] <= epoch < shape[0] for epoch in (first, last)):
                raise ValueError(f"snapshots: expected [epochs + 1, P] with epochs {first} and {last}, got {shape}")
            both = {"first": snapshots[first], "last": snapshots[last]}
        found = validate(_Snapshots, both, self.file(expert))
        return found.first, found.last

    def forgetting(self, expert: int) -> Forgetting | None:
        """Return how an expert learned and forgot its training examples; None if that was not recorded.

        Raises:
            DamagedFileError: The file is truncated or altered.
        """
        with self._open(expert) as file:
            if not set(Forgetting._fields) <= set(file.keys()):
                return None
            columns = {name: file.get_tensor(name) for name in Forgetting._fields}
        return Forgetting(**vars(validate(_Forgetting, columns, self.file(expert))))

    def write(self, expert: int, snapshots: Tensor, forgetting: Forgetting | None = None, /, **record: Any) -> None:
        """Store one expert.

        Args:
            expert: Number of the expert, from 0.
            snapshots: Parameters `[epochs + 1, P]`, float32.
            forgetting: How the examples were learned and forgotten; None without any training.
            record: The fields of `ExpertRecord` except the checksum.
        """
        data = save({"snapshots": snapshots.contiguous(), **(forgetting._asdict() if forgetting else {})})
        atomic_write_bytes(self.file(expert), data)
        entry = ExpertRecord(sha256=hashlib.sha256(data).hexdigest(), **record)
        atomic_write_json(self._record_file(expert), entry.model_dump())

    def seal(self) -> None:
        """Move the records of all experts into the manifest (one process, when nothing is missing)."""
        self._load_records()
        records = enumerate(self.records)
        self._write_manifest([{"file": self.file(expert).name, **record.model_dump()} for expert, record in records])
        for expert in range(self.number):
            self._record_file(expert).unlink(missing_ok=True)

    @contextmanager
    def _open(self, expert: int) -> Iterator[Any]:
        """Map the file of an expert; an error in reading it is a `DamagedFileError`."""
        try:
            with safe_open(self.file(expert), framework="pt") as file:
                yield file
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise _damaged(self.file(expert), error) from error

    def _record_file(self, expert: int) -> Path:
        return self.file(expert).with_suffix(".json")

    def _is_intact(self, expert: int) -> bool:
        try:
            return sha256_of_file(self.file(expert)) == self._records[expert].sha256
        except OSError:
            return False

    def _write_manifest(self, experts: list[dict[str, Any]]) -> None:
        content = {"package_version": __version__, "settings": self.settings, "experts": experts}
        atomic_write_json(self.manifest, content)

    def _load_records(self) -> None:
        """Read all records, from the manifest and from files of their own; refuse other settings."""
        manifest = _read(_Manifest, self.manifest)
        if manifest.settings != self.settings:
            changes = "\n  ".join(differences(manifest.settings, self.settings))
            raise ConfigError(
                f"{self.folder} holds expert trajectories recorded with other settings:\n  {changes}\n"
                "Restore those settings, choose another folder, or delete this one."
            )
        self._records = dict(enumerate(manifest.experts))
        for expert in range(self.number):
            if self._record_file(expert).exists():
                self._records[expert] = _read(ExpertRecord, self._record_file(expert))


def delete_folders(root: Path, pattern: str, kept: Path) -> None:
    """Delete the folders in `root` whose names match, except one (one process)."""
    for folder in root.glob(pattern):
        if folder != kept:
            # Renamed first, so that an interruption leaves no half of a store under its name.
            folder.rename(root / f"deleted_{folder.name}")
    for folder in root.glob("deleted_*"):
        shutil.rmtree(folder)


def _read(kind: type[Kind], path: Path) -> Kind:
    return read_stored(kind, path, _remedy(path))


def _damaged(path: Path, reason: object) -> DamagedFileError:
    return damaged_error(path, reason, _remedy(path))


def _remedy(path: Path) -> str:
    what = f"the folder {path.parent} to record its experts" if path.name == MANIFEST else "it to record this expert"
    return f"restore it from a copy, or delete {what} again"
