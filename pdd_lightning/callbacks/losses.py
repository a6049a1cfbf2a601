"""The matching loss at the beginning and at the end of a stage, without keeping every iteration's."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class LossEnds:
    """Mean loss over the first and over the last twentieth of a stage's iterations (at least one).

    Only sums are kept, since a stage may have millions of iterations and checkpoints hold this.

    Attributes:
        first_sum: Sum of the losses in the first twentieth.
        first_count: Number of them.
        last_sum: Sum of the losses in the last twentieth.
        last_count: Number of them.
        latest: The last loss seen.
    """

    first_sum: float = 0.0
    first_count: int = 0
    last_sum: float = 0.0
    last_count: int = 0
    latest: float = 0.0

    def add(self, loss: float, iteration: int, iterations: int) -> None:
        """Takes the loss of an iteration (from 0) of a stage of so many `iterations`."""
        few = max(1, iterations // 20)
        if iteration < few:
            self.first_sum += loss
            self.first_count += 1
        if iteration >= iterations - few:
            self.last_sum += loss
            self.last_count += 1
        self.latest = loss

    @property
    def first(self) -> float:
        """Mean over the first twentieth."""
        return self.first_sum / self.first_count

    @property
    def last(self) -> float:
        """Mean over the last twentieth; the latest loss if a stage was cut shorter than it set out to be."""
        return self.last_sum / self.last_count if self.last_count else self.latest

    def as_dict(self) -> dict[str, float]:
        """The sums as plain data, from which `LossEnds(**..)` makes them again."""
        return asdict(self)
