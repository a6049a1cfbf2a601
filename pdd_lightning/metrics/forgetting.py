"""Forgetting of individual examples during training."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

UNSEEN = -1
NEVER = -1


class Forgetting(NamedTuple):
    """Forgetting of each of `N` examples.

    Attributes:
        counts: Number of forgetting events `[N]`, int32: a correct classification followed by a wrong one.
        learned: Whether it was ever classified correctly `[N]`, bool.
        first_learned: First epoch, from 0, in which it was classified correctly `[N]`, int32; `NEVER` (-1) if none.
        errors: Number of epochs in which it was misclassified `[N]`, int32.
    """

    counts: Tensor
    learned: Tensor
    first_learned: Tensor
    errors: Tensor


class ForgettingScore(Metric):
    """Count the forgetting events of each example over the epochs of a training.

    An example is forgotten if it is misclassified after it was classified correctly the last time that it was seen.
    Easy examples are learned early and never forgotten. Epochs in which an example is not seen do not count.

    Examples are identified by position, so that batches may come in any order, and several processes may each see a
    part of the examples. An example that is seen twice in an epoch, as by a distributed sampler, counts as correct if
    it was correct once.

    Args:
        num_examples: Number of examples `N`.
        num_epochs: Number of epochs.
        kwargs: Options of every `torchmetrics.Metric`.

    Raises:
        ValueError: A number is below 1.

    Examples:
        >>> metric = ForgettingScore(num_examples=2, num_epochs=3)
        >>> for epoch, correct in enumerate([[True, False], [False, True], [True, True]]):
        ...     metric.update(torch.tensor(correct), torch.arange(2), epoch)
        >>> metric.compute().counts.tolist()
        [1, 0]

    Reference:
        Toneva et al., An Empirical Study of Example Forgetting during Deep Neural Network Learning (ICLR 2019),
        section 3 and algorithm 1.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None
    history: Tensor

    def __init__(self, num_examples: int, num_epochs: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, value in {"num_examples": num_examples, "num_epochs": num_epochs}.items():
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        # 1 is correct, 0 wrong: the maximum over processes is the value of those that saw the example.
        history = torch.full((num_examples, num_epochs), UNSEEN, dtype=torch.int8)
        self.add_state("history", history, dist_reduce_fx="max", persistent=True)

    def update(self, correct: Tensor, indices: Tensor, epoch: int) -> None:
        """Add a batch.

        Args:
            correct: Whether each example of the batch was classified correctly `[B]`, bool.
            indices: Positions of the examples `[B]`, from 0.
            epoch: The epoch, from 0.

        Raises:
            ValueError: The epoch is out of range.
        """
        if not 0 <= epoch < self.history.shape[1]:
            raise ValueError(f"epoch must be in 0 to {self.history.shape[1] - 1}, got {epoch}")
        values = correct.to(self.history)
        self.history[:, epoch].scatter_reduce_(0, indices.to(values.device), values, "amax")

    def compute(self) -> Forgetting:
        """Return the forgetting of each example so far."""
        history = self.history
        counts = torch.zeros(len(history), dtype=torch.int32, device=history.device)
        last = torch.full_like(history[:, 0], UNSEEN)
        for current in history.unbind(1):
            counts += (last == 1) & (current == 0)
            last = torch.where(current == UNSEEN, last, current)
        correct = history == 1
        learned = correct.any(1)
        first = torch.where(learned, correct.to(torch.int8).argmax(1), NEVER)
        return Forgetting(counts, learned, first.int(), (history == 0).sum(1).int())

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Restore a history such that `compute` can be called."""
        super()._load_from_state_dict(*args, **kwargs)
        self.history = self.history.clone()  # `update` must not change the given tensor
        self._update_count, self._computed = 1, None
