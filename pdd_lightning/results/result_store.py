"""Results of single networks, stored as soon as they are computed, and the rows made of them."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, JsonValue

from pdd_lightning.files import append_line
from pdd_lightning.results.schema import EvaluatedRow
from pdd_lightning.results.tables import mean_and_std
from pdd_lightning.stored import MAX_TEXT_BYTES, Count, Json, Seconds, Share, Stored, read_bytes, validate_as


class ResultStore:
    """JSON values by a hash of all that they depend on, in memory and as lines of a file.

    Any number of processes may append to the file. Incomplete lines, which killed processes leave, are ignored.

    Args:
        path: The file, which need not exist; None stores nothing beyond the process.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        text = read_bytes(path, MAX_TEXT_BYTES) if path is not None and path.exists() else b""
        for line in text.splitlines():
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                entry = json.loads(line)
                self._values[entry["key"]] = entry["value"]

    def get(self, depends_on: Mapping[str, Any], value_type: Any = JsonValue) -> Any:
        """Return the value stored for the same `depends_on`, or None.

        Raises:
            DamagedFileError: It is not of the given type, as pydantic knows it.
        """
        key = _hash(depends_on)
        value = self._values.get(key)
        if value is not None:
            remedy = "delete the file: its results are computed again"
            validate_as(value_type, value, f"{self.path}, key {key[:8]}", remedy)
        return value

    def put(self, depends_on: Mapping[str, Any], value: Any) -> None:
        """Store a JSON value."""
        key = _hash(depends_on)
        self._values[key] = value
        if self.path is not None:
            append_line(self.path, json.dumps({"key": key, "value": value}))


class StoredScore(Stored):
    """A `pdd_lightning.training.Score`."""

    accuracy: Share
    per_class: list[Share]


class TaskResult(Stored):
    """The result of one trained and scored network.

    Attributes:
        about: What was trained on what and how, see `pdd_lightning.evaluation.plan.PlannedRow.about`; the same for all
            networks of a row.
        scores: Score after each phase of the training.
        seconds: Time from the start until each of them.
    """

    about: Json
    number: Count
    scores: list[StoredScore]
    seconds: list[Seconds]

    @classmethod
    def type_for(cls, about: Mapping[str, Any], number: int, num_classes: int) -> Any:
        """Return the type of such a result for `ResultStore.get`."""
        expected = json.loads(json.dumps(about))

        def check(result: TaskResult) -> TaskResult:
            lengths = {len(score.per_class) for score in result.scores}
            if (result.about, result.number) != (expected, number) or lengths != {num_classes}:
                raise ValueError("it is the result of another network or other classes")
            if not len(result.scores) == len(result.seconds) == len(about["phases"]):
                raise ValueError(f"expected {len(about['phases'])} scores and times")
            return result

        return Annotated[cls, AfterValidator(check)]


def rows_from_results(
    results: Sequence[TaskResult], class_names: Sequence[str], every_stage: bool = False
) -> list[dict[str, Any]]:
    """Summarize the networks of each row as an `EvaluatedRow`; `every_stage` adds rows for earlier stages."""
    groups: dict[tuple[str, str], list[TaskResult]] = {}
    for result in results:
        groups.setdefault((result.about["row"], result.about["protocol"]), []).append(result)
    rows = []
    for (_, protocol), group in groups.items():
        group.sort(key=lambda result: result.number)
        last = len(group[0].scores) - 1
        first = 0 if every_stage and protocol == "progressive" else last
        rows += [_row_after(phase, group, class_names).model_dump() for phase in range(first, last + 1)]
    return rows


def row_title(row: Mapping[str, Any]) -> str:
    """Return a name for a row that no other row of the evaluation has."""
    protocol = "" if row["protocol"] in ("progressive", "all images") else f", {row['protocol']}"
    stage = "" if row["stage"] == row["num_stages"] else f", stage {row['stage']}"
    return f"{row['row']}{protocol}{stage}"


def _row_after(phase: int, results: Sequence[TaskResult], class_names: Sequence[str]) -> EvaluatedRow:
    """Summarize networks after a phase, counted from 0."""
    about = dict(results[0].about)
    images, phases = about.pop("images"), about.pop("phases")
    finished = phases[: phase + 1]
    scores = [result.scores[phase] for result in results]
    accuracies = [score.accuracy for score in scores]
    mean, std = mean_and_std(accuracies)
    per_class = map(statistics.fmean, zip(*(score.per_class for score in scores), strict=True))
    values = {
        "stage": phases[phase]["stages"][1],
        "num_stages": phases[-1]["stages"][1],
        "images": images[phase],
        "steps": sum(each["steps"] for each in finished),
        "epochs": [each["epochs"] for each in finished],
        "learning_rates": [each["lr"] for each in finished],
        "mean": mean,
        "std": std or 0.0,
        "n": len(accuracies),
        "accuracies": accuracies,
        "per_class": dict(zip(class_names, per_class, strict=True)),
        "seconds": sum(result.seconds[phase] for result in results),
    }
    return EvaluatedRow(**about | values)


def _hash(depends_on: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()
