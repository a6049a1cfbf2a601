"""Results of single networks, kept while work goes on, so that it can be stopped and continued; and rows of them."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, JsonValue

from pdd_lightning.files import append_line
from pdd_lightning.results.schema import EvaluatedRow
from pdd_lightning.stored import MAX_TEXT_BYTES, Count, Json, Seconds, Share, Stored, read_bytes, validate_as
from pdd_lightning.training import Score


class ResultStore:
    """JSON values, each by a hash of all that it depends on; with a file, a line of JSON each.

    Lines are appended as soon as something is computed, by any number of processes. A line that was cut off, when a
    process was killed, counts for nothing.

    Args:
        path: The file, which need not exist; None keeps nothing beyond the process.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        text = read_bytes(path, MAX_TEXT_BYTES) if path is not None and path.exists() else b""
        for line in text.splitlines():
            self._read_line(line)

    def get(self, depends_on: Mapping[str, Any], form: Any = JsonValue) -> Any:
        """What was put for the same `depends_on`, or None.

        Args:
            depends_on: All that it depends on.
            form: What it must be, a type as pydantic knows them.

        Raises:
            DamagedFileError: It is something else.
        """
        key = _key(depends_on)
        if (value := self._values.get(key)) is not None:
            validate_as(form, value, f"{self.path}, key {key[:8]}", "delete the file: what it held is computed again")
        return value

    def put(self, depends_on: Mapping[str, Any], value: Any) -> None:
        """Keeps a JSON value."""
        key = _key(depends_on)
        self._values[key] = value
        if self.path is None:
            return
        append_line(self.path, json.dumps({"key": key, "value": value}))

    def _read_line(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            self._values[entry["key"]] = entry["value"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return


class _StoredScore(Stored):
    """What a `Score` gives as JSON."""

    accuracy: Share
    per_class: list[Share]


class _StoredResult(Stored):
    """What `TaskResult.value` gives, as it may come back from a file."""

    about: Json
    number: Count
    scores: list[_StoredScore]
    seconds: list[Seconds]


@dataclass(frozen=True)
class TaskResult:
    """One trained and scored network.

    Attributes:
        about: What was trained on what and how, see `pdd_lightning.evaluation.plan.PlannedRow.about`; the same for all
            networks of a row.
        number: Number of the network, from 0.
        scores: Score after each phase of the training.
        seconds: Time from the start until each of them.
    """

    about: dict[str, Any]
    number: int
    scores: list[Score]
    seconds: list[float]

    @staticmethod
    def form(about: Mapping[str, Any], number: int, num_classes: int) -> Any:
        """What the value of such a result must be, for `ResultStore.get`."""
        known = json.loads(json.dumps(about))

        def check(stored: _StoredResult) -> _StoredResult:
            lengths = {len(score.per_class) for score in stored.scores}
            if (stored.about, stored.number) != (known, number) or lengths != {num_classes}:
                raise ValueError("it is of another network, or of other classes, than its key says")
            if not len(stored.scores) == len(stored.seconds) == len(about["phases"]):
                raise ValueError(f"expected {len(about['phases'])} scores, and seconds")
            return stored

        return Annotated[_StoredResult, AfterValidator(check)]

    @classmethod
    def of_value(cls, value: Mapping[str, Any]) -> TaskResult:
        """The result that `value` gave."""
        return cls(**{**value, "scores": [Score(**score) for score in value["scores"]]})

    def value(self) -> dict[str, Any]:
        """The result as a JSON value."""
        return asdict(self) | {"scores": [score._asdict() for score in self.scores]}


def rows_from_results(
    results: Sequence[TaskResult], class_names: Sequence[str], every_stage: bool = False
) -> list[dict[str, Any]]:
    """Mean and spread of each row, as `EvaluatedRow` describes it, ready for JSON.

    Args:
        results: Results of networks, in any order.
        class_names: Name of each class, by label.
        every_stage: Add a row for each earlier stage of progressive training.
    """
    groups: dict[tuple[str, str], list[TaskResult]] = {}
    for result in results:
        groups.setdefault((result.about["row"], result.about["protocol"]), []).append(result)
    rows = []
    for (_, protocol), group in groups.items():
        members = sorted(group, key=lambda result: result.number)
        last = len(members[0].scores) - 1
        first = 0 if every_stage and protocol == "progressive" else last
        rows += [_row(members, phase, class_names).model_dump() for phase in range(first, last + 1)]
    return rows


def row_title(row: Mapping[str, Any]) -> str:
    """A row's name that no other row of the evaluation has."""
    protocol = "" if row["protocol"] in ("progressive", "all images") else f", {row['protocol']}"
    stage = "" if row["stage"] == row["num_stages"] else f", stage {row['stage']}"
    return f"{row['row']}{protocol}{stage}"


def _row(members: Sequence[TaskResult], phase: int, class_names: Sequence[str]) -> EvaluatedRow:
    """The row of networks after a phase, counted from 0."""
    about = dict(members[0].about)
    images, phases = about.pop("images"), about.pop("phases")
    done = phases[: phase + 1]
    accuracies = [member.scores[phase].accuracy for member in members]
    per_class = [statistics.fmean(column) for column in zip(*(m.scores[phase].per_class for m in members), strict=True)]
    values = {
        "stage": phases[phase]["stages"][1],
        "num_stages": phases[-1]["stages"][1],
        "images": images[phase],
        "steps": sum(each["steps"] for each in done),
        "epochs": [each["epochs"] for each in done],
        "learning_rates": [each["lr"] for each in done],
        "mean": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "n": len(accuracies),
        "accuracies": accuracies,
        "per_class": dict(zip(class_names, per_class, strict=True)),
        "seconds": sum(member.seconds[phase] for member in members),
    }
    return EvaluatedRow(**about | values)


def _key(depends_on: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()
