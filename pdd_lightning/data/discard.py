"""Which real examples each stage works with: easy ones may be left out of later stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pdd_lightning.data.forgetting import ForgettingScores
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.errors import ConfigError, DataError


@dataclass(frozen=True)
class DiscardSettings:
    """Leaving easy real examples out of stages, by their forgetting scores, to save time.

    Give `min_score` or `keep`, with one value per stage; without either, nothing is left out. What a stage leaves out
    it uses for nothing: not for initial images, matching, or the training of its experts.

    Attributes:
        min_score: Per stage, the score from which on an example is used; 0 uses all.
        keep: Per stage, the share of the examples that is used, the hardest ones, in (0, 1].
        min_per_class: A stage uses at least as many examples of each class, the hardest ones, or as many as its
            initial images are made of, if that is more.
        scores: File of forgetting scores, see `ForgettingScores.load`; null has them made in the run: by the experts
            of the first stage, or where that has none, or leaves something out itself, by networks for this alone.
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
            raise ConfigError("discard.min_score and discard.keep say the same in two ways: set one of them to null")
        for name, value in {"min_per_class": self.min_per_class, "networks": self.networks}.items():
            if value < 1:
                raise ConfigError(f"discard.{name} must be >= 1, got {value}")
        if self.epochs < 2:
            raise ConfigError(f"discard.epochs must be >= 2, or nothing can be forgotten, got {self.epochs}")
        if self.min_score is not None and not all(0 <= score < float("inf") for score in self.min_score):
            raise ConfigError(f"discard.min_score must be >= 0 and finite, got {list(self.min_score)}")
        if self.keep is not None and not all(0 < share <= 1 for share in self.keep):
            raise ConfigError(f"discard.keep are shares of the examples, in (0, 1], got {list(self.keep)}")
        if self.scores is not None and not self.schedule:
            raise ConfigError("discard.scores has no effect: set discard.min_score or discard.keep, too")

    @property
    def schedule(self) -> tuple[float, ...]:
        """One value per stage; empty where nothing is left out."""
        return self.min_score or self.keep or ()

    def check_stages(self, num_stages: int) -> None:
        """Refuses a schedule that is too short.

        Raises:
            ConfigError: There are stages without a value.
        """
        given = self.min_score if self.min_score is not None else self.keep
        if given is not None and len(given) < num_stages:
            name = "keep" if self.min_score is None else "min_score"
            raise ConfigError(
                f"stages.discard.{name} has {len(given)} values, one per stage, but there are {num_stages} stages:"
                " give more values, or lower stages.num_stages"
            )

    def check_classes(self, real: RealDataModule, init_images: int) -> None:
        """Refuses a number per class that some class does not have.

        Raises:
            DataError: A class has too few training examples.
        """
        if not self.schedule:
            return
        least = self.least(init_images)
        for name, count in zip(real.class_names, real.train.class_counts(real.num_classes), strict=True):
            if count < least:
                raise DataError(
                    f"class {name!r} has {int(count)} training images, fewer than the {least} that every stage is to"
                    " keep: lower stages.discard.min_per_class, or model.init_args.ipc"
                )

    def least(self, init_images: int) -> int:
        """Examples of each class that every stage uses, where its initial images are made of `init_images`."""
        return max(self.min_per_class, init_images)

    def drops(self, stage: int) -> bool:
        """Whether a stage, from 1, may leave something out."""
        if not 1 <= stage <= len(self.schedule):
            return False
        value = self.schedule[stage - 1]
        return value < 1 if self.min_score is None else value > 0

    def kept(self, stage: int, scores: ForgettingScores, labels: Tensor, least: int) -> Tensor:
        """Positions of the examples that a stage uses, ascending `[n]`.

        Args:
            stage: Number of the stage, from 1.
            scores: Scores of the examples.
            labels: Their classes `[N]`.
            least: Examples of each class that are used in any case, the hardest ones.
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
        """What the examples of each stage depend on, but for the file of scores."""
        name = "keep" if self.min_score is None else "min_score"
        return {
            name: {f"stage {stage}": value for stage, value in enumerate(self.schedule, 1)},
            "min_per_class": self.min_per_class,
            "networks": self.networks,
            "epochs": self.epochs,
        }
