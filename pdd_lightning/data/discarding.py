"""Leaving easy real examples out of stages, by their forgetting scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdd_lightning.data.forgetting_scores import ForgettingScores
from pdd_lightning.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pdd_lightning.data.real import RealDataModule


@dataclass(frozen=True)
class DiscardSettings:
    """Leaving easy real examples out of stages, by their forgetting scores, to save time.

    Give `min_score` or `keep`, with one value per stage; without either, nothing is left out. A stage does not use the
    examples that it leaves out for initial images, matching, or the training of its experts.

    Attributes:
        min_score: Per stage, the lowest score of the examples that it uses; 0 uses all.
        keep: Per stage, the share of the examples that it uses, the hardest ones, in (0, 1].
        min_per_class: A stage uses at least this many examples of each class, the hardest ones, or as many as its
            initial images are made of, if that is more.
        scores: File of forgetting scores, see `ForgettingScores.load`; null computes them in the run: from the experts
            of the first stage, or, if it has none or leaves something out itself, from networks trained for this alone.
        networks: Number of networks that are trained for the scores alone.
        epochs: Epochs of their training, which otherwise is that of experts.

    Reference:
        Chen et al., Data Distillation Can Be Like Vodka (ICLR 2024), section 4.
    """

    min_score: tuple[float, ...] | None = None
    keep: tuple[float, ...] | None = None
    min_per_class: int = 1
    scores: str | None = None
    networks: int = 3
    epochs: int = 20

    def __post_init__(self) -> None:
        if self.min_score is not None and self.keep is not None:
            raise ConfigError("discard.min_score and discard.keep exclude each other: set one of them to null")
        for name, least in {"min_per_class": 1, "networks": 1, "epochs": 2}.items():  # forgetting takes two epochs
            if getattr(self, name) < least:
                raise ConfigError(f"discard.{name} must be >= {least}, got {getattr(self, name)}")
        if not all(0 <= score < float("inf") for score in self.min_score or ()):
            raise ConfigError(f"discard.min_score must be >= 0 and finite, got {list(self.schedule)}")
        if not all(0 < share <= 1 for share in self.keep or ()):
            raise ConfigError(f"discard.keep are shares of the examples, in (0, 1], got {list(self.schedule)}")
        if self.scores is not None and not self.schedule:
            raise ConfigError("discard.scores has no effect: set discard.min_score or discard.keep, too")

    @property
    def _rule(self) -> str:
        return "keep" if self.min_score is None else "min_score"

    @property
    def schedule(self) -> tuple[float, ...]:
        """One value per stage; empty if nothing is left out."""
        return getattr(self, self._rule) or ()

    def check_stages(self, num_stages: int) -> None:
        """Refuse a schedule that is too short.

        Raises:
            ConfigError: There are stages without a value.
        """
        if getattr(self, self._rule) is not None and len(self.schedule) < num_stages:
            raise ConfigError(
                f"stages.discard.{self._rule} has {len(self.schedule)} values, one per stage, but there are"
                f" {num_stages} stages: give more values, or lower stages.num_stages"
            )

    def check_classes(self, real: RealDataModule, init_images: int) -> None:
        """Refuse to keep more examples per class than some class has.

        Raises:
            DataError: A class has too few training examples.
        """
        least = self.least(init_images) if self.schedule else 0
        for name, count in zip(real.class_names, real.train.class_counts(real.num_classes), strict=True):
            if count < least:
                raise DataError(
                    f"class {name!r} has {int(count)} training images, fewer than the {least} that every stage is to"
                    " keep: lower stages.discard.min_per_class, or model.init_args.ipc"
                )

    def least(self, init_images: int) -> int:
        """Return the least number of examples of each class in a stage whose initial images need `init_images`."""
        return max(self.min_per_class, init_images)

    def drops(self, stage: int) -> bool:
        """Return whether a stage, counted from 1, may leave something out."""
        if not 1 <= stage <= len(self.schedule):
            return False
        value = self.schedule[stage - 1]
        return value < 1 if self.min_score is None else value > 0

    def kept(self, stage: int, scores: ForgettingScores, labels: Tensor, least: int) -> Tensor:
        """Return the examples that a stage uses, as ascending indices `[n]`.

        Args:
            stage: Number of the stage, from 1.
            scores: Scores of the examples.
            labels: Their classes `[N]`.
            least: Number of examples of each class, the hardest ones, that are used in any case.
        """
        ranking = scores.ranking()
        used = torch.zeros(len(labels), dtype=torch.bool)
        if not self.drops(stage):
            used[:] = True
        elif self.min_score is not None:
            used |= scores.scores >= self.min_score[stage - 1]
        else:
            used[ranking[: max(1, round(self.schedule[stage - 1] * len(labels)))]] = True
        for label in labels.unique():
            used[ranking[labels[ranking] == label][:least]] = True
        return used.nonzero().flatten()

    def description(self) -> dict[str, Any]:
        """Return what the choice of examples depends on, except for the file of scores."""
        return {
            self._rule: {f"stage {stage}": value for stage, value in enumerate(self.schedule, 1)},
            "min_per_class": self.min_per_class,
            "networks": self.networks,
            "epochs": self.epochs,
        }
