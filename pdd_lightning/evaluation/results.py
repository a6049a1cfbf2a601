"""Results of single networks, kept while an evaluation goes on, so that it can be stopped and continued."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pdd_lightning.training import Score


@dataclass(frozen=True)
class TaskResult:
    """One trained and scored network.

    Attributes:
        about: What was trained on what and how, see `EvaluationTask`; the same for all networks of a row.
        number: Number of the network, from 0.
        scores: Score after each phase of the training.
        seconds: Time from the start until each of them.
    """

    about: dict[str, Any]
    number: int
    scores: list[Score]
    seconds: list[float]


class ResultStore:
    """What was computed, by a hash of all that it depends on; with a file, a line of JSON each.

    Lines are appended as soon as something is computed, by any number of processes. A line that was cut off, when a
    process was killed, counts for nothing.

    Args:
        path: The file, which need not exist; None keeps nothing beyond the process.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        text = path.read_text() if path is not None and path.exists() else ""
        for line in text.splitlines():
            self._read_line(line)
        self._lead = "\n" if text and not text.endswith("\n") else ""  # ends a line that was cut off

    def get(self, depends_on: dict[str, Any]) -> Any:
        """What was put for the same `depends_on`, or None."""
        return self._values.get(_key(depends_on))

    def put(self, depends_on: dict[str, Any], value: Any) -> None:
        """Keeps a JSON value."""
        key = _key(depends_on)
        self._values[key] = value
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(f"{self._lead}{json.dumps({'key': key, 'value': value})}\n")
        self._lead = ""

    def result(self, depends_on: dict[str, Any], about: dict[str, Any], number: int) -> TaskResult | None:
        """The kept result of a network, if any."""
        value = self.get(depends_on)
        if value is None:
            return None
        return TaskResult(about, number, [Score(**score) for score in value["scores"]], value["seconds"])

    def put_result(self, depends_on: dict[str, Any], result: TaskResult) -> None:
        """Keeps the result of a network, and in plain text what it is."""
        value = asdict(result) | {"scores": [score._asdict() for score in result.scores]}
        self.put(depends_on, value)

    def _read_line(self, line: str) -> None:
        try:
            entry = json.loads(line)
            self._values[entry["key"]] = entry["value"]
        except (ValueError, KeyError, TypeError):
            return


def _key(depends_on: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()
