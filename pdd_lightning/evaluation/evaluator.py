"""Training networks on a distilled set, and on what it is compared with, and scoring them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from pdd_lightning.data.synthetic import SyntheticSet, hard_labels
from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation.baselines import (
    check_counts,
    chosen_set,
    herding_task,
    kmeans_set,
    random_set,
)
from pdd_lightning.evaluation.plan import EvaluationSettings, Phase, PlannedRow, plan_rows
from pdd_lightning.evaluation.subject import Subject, train_counting
from pdd_lightning.evaluation.tasks import OnSteps, Task, run_tasks
from pdd_lightning.experts import TrajectoryStore
from pdd_lightning.metrics import augmentation_robust_score, label_robust_score
from pdd_lightning.networks.parameters import load_flat
from pdd_lightning.networks.spec import network_spec
from pdd_lightning.randomness import derive_seed, generator_for
from pdd_lightning.results.result_store import TaskResult, rows_from_results
from pdd_lightning.results.schema import DISTILLED, FULL, RANDOM
from pdd_lightning.training import Images, Score, score_network

_HARD = ", hard labels"
_PLAIN = ", no augmentation"


def evaluate(
    subject: Subject, settings: EvaluationSettings, ranking: bool = False, progress: bool = True
) -> list[dict[str, Any]]:
    """Trains fresh networks on a distilled set, on baselines and on the full real set, and scores them.

    Processes share the networks, and each gets all rows. What `subject.store` has is not computed again.

    Args:
        subject: What is evaluated.
        settings: How.
        ranking: Evaluate what `ranking_scores` needs, too.
        progress: Show a progress bar.

    Returns:
        Rows as `rows_from_results` gives them.

    Raises:
        ConfigError: There are no experts, or experts of other networks, where their initialisations are asked for; or
            `ranking` needs other settings.
        DataError: A class has fewer real images than a baseline needs.
    """
    tasks = ranking_tasks(subject, settings) if ranking else evaluation_tasks(subject, settings)
    results = [TaskResult.of_value(value) for value in run_tasks(tasks, subject.store, progress)]
    return rows_from_results(results, subject.real.class_names, settings.every_stage)


def evaluation_tasks(subject: Subject, settings: EvaluationSettings, suffix: str = "") -> list[Task]:
    """One task per network, whose value is that of a `TaskResult`.

    Fresh network number n has the same initialisation in every row, and random images are drawn anew for each number.

    Args:
        subject: What is evaluated.
        settings: How.
        suffix: What the names of the rows end with.

    Raises:
        ConfigError: See `evaluate`.
        DataError: See `evaluate`.
    """
    return _Evaluator(subject, settings).tasks(suffix)


def ranking_tasks(subject: Subject, settings: EvaluationSettings) -> list[Task]:
    """The tasks of an evaluation that `ranking_scores` can score, by the first of its protocols.

    To the evaluation's own tasks come the distilled set with the likeliest class of each soft label, and distilled set
    and random images without augmentation and CutMix. Random images always have their own labels: there is no teacher
    that would give them soft ones. Learning rates are not searched for, as the authors do, but those of the evaluation.

    Args:
        subject: What is evaluated.
        settings: How; random images are evaluated whether or not they are among its baselines.

    Raises:
        ConfigError: The settings leave out the full real set, or augmentation.
    """
    if not settings.full_data_epochs:
        raise ConfigError("the ranking compares with the full real set: set full_data_epochs")
    if not settings.augmentation(subject.augment).operations and not settings.cutmix:
        raise ConfigError("the ranking compares training with and without augmentation: name one by augment")
    others = tuple(name for name in settings.baselines if name != "random")
    tasks = evaluation_tasks(subject, replace(settings, baselines=("random", *others)))
    one = replace(settings, protocols=settings.protocols[:1], baselines=(), full_data_epochs=0, expert_inits=False)
    if subject.synthetic.labels.ndim > 1:
        hard = replace(subject.synthetic, labels=hard_labels(subject.synthetic.labels))
        tasks += evaluation_tasks(replace(subject, synthetic=hard), one, _HARD)
    plain = replace(one, baselines=("random",), augment="none", cutmix=0.0)
    return tasks + evaluation_tasks(subject, plain, _PLAIN)


def ranking_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """DD-Ranking's label-robust and augmentation-robust score, in [0, 1], from the mean accuracies of the rows.

    Args:
        rows: Rows of an evaluation with `ranking`.
    """
    final = [row for row in rows if row["stage"] == row["num_stages"]]
    accuracy = {row["row"]: row["mean"] for row in reversed(final)}  # the first protocol counts
    distilled, random = accuracy[DISTILLED], accuracy[RANDOM]
    hard = accuracy.get(DISTILLED + _HARD, distilled)
    return {
        "label_robust_score": label_robust_score(accuracy[FULL], hard, distilled, random),
        "augmentation_robust_score": augmentation_robust_score(
            distilled, random, accuracy[DISTILLED + _PLAIN], accuracy[RANDOM + _PLAIN]
        ),
    }


class _Evaluator:
    """What the networks of an evaluation share: sets, made when they are first needed, and experts."""

    def __init__(self, subject: Subject, settings: EvaluationSettings) -> None:
        self.subject = subject
        self.settings = settings
        self._sets: dict[tuple[str, int], SyntheticSet] = {}
        self._trajectories = _trajectories_of(subject, settings.num_networks) if settings.expert_inits else None
        self._experts = self._trajectories.checksums() if self._trajectories else {}
        # Found out now rather than after hours.
        if settings.baselines:
            check_counts(subject)
        for expert in list(self._experts)[:1]:
            self._network(0, expert)

    def tasks(self, suffix: str) -> list[Task]:
        """The tasks of all rows."""
        rows = plan_rows(self.subject, self.settings, list(self._experts), suffix)
        return [self._task(row, number, expert) for row in rows for number, expert in enumerate(row.inits)]

    def _task(self, row: PlannedRow, number: int, expert: int | None) -> Task:
        about = self._about(row)
        checksum = None if expert is None else self._experts[expert]
        return Task(
            label=f"{row.row} ({row.protocol}) {number + 1}",
            steps=row.steps,
            depends_on={**self.subject.identity, "about": about, "number": number, "expert": checksum},
            compute=partial(self._evaluate, row, number, expert),
            needs=[self._herding] if row.source == "herding" else [],
            form=TaskResult.form(about, number, self.subject.real.num_classes),
        )

    def _evaluate(
        self, row: PlannedRow, number: int, expert: int | None, on_steps: OnSteps, herded: Sequence[int] = ()
    ) -> dict[str, Any]:
        subject, begin = self.subject, time.perf_counter()
        network = self._network(number, expert)
        generator = generator_for(subject.seed, "evaluation", row.row, number)
        scores: list[Score] = []
        seconds: list[float] = []
        for phase in row.phases:
            images, labels = self._training_data(row, number, phase, herded)
            train_counting(network, images, labels, phase.training, row.augment, generator, on_steps, phase.steps)
            scores.append(score_network(network, *subject.real_images(subject.part), subject.real.num_classes))
            seconds.append(time.perf_counter() - begin)
        return TaskResult(self._about(row), number, scores, seconds).value()

    def _about(self, row: PlannedRow) -> dict[str, Any]:
        """What a reader must know of the row."""
        subject = self.subject
        chosen_by = {"herding_epochs": self.settings.full_data_epochs} if row.source == "herding" else {}
        return {
            **row.about(),
            **chosen_by,
            "labels": "hard" if subject.synthetic.labels.ndim == 1 or row.source != "distilled" else "soft",
            "part": subject.part,
            "scored": len(getattr(subject.real, subject.part)),
            "seed": subject.seed,
            "network": network_spec(subject.factory),
        }

    def _network(self, number: int, expert: int | None) -> nn.Module:
        """Network `number`, fresh or as an expert began."""
        network = self.subject.network("evaluation init", number)
        if expert is not None and self._trajectories is not None:
            load_flat(network, self._trajectories.segment(expert, 0, 0)[0])
        return network

    def _training_data(
        self, row: PlannedRow, number: int, phase: Phase, herded: Sequence[int]
    ) -> tuple[Images, Tensor]:
        if row.source == "full":
            return self.subject.real_images("train")
        # Random images are drawn anew for each network.
        key = (row.source, number if row.source == "random" else 0)
        if key not in self._sets:
            whole = self._make_set(row.source, number, herded).decoded(self.subject.pixels)
            self._sets[key] = whole.to(self.subject.device)
        whole, (first, last) = self._sets[key], phase.stages
        chosen = (whole.stages >= first) & (whole.stages <= last)
        return whole.images[chosen], whole.labels[chosen]

    def _make_set(self, source: str, number: int, herded: Sequence[int]) -> SyntheticSet:
        """A set as it is stored."""
        if source == "distilled":
            return self.subject.synthetic
        if source == "kmeans":
            return kmeans_set(self.subject)
        if source == "herding":
            return chosen_set(self.subject, torch.tensor(herded))
        return random_set(self.subject, derive_seed(self.subject.seed, "random real", number))

    @cached_property
    def _herding(self) -> Task:
        training = replace(self.settings.training, epochs=self.settings.full_data_epochs)
        return herding_task(self.subject, training, self.settings.augmentation(self.subject.augment))


def _trajectories_of(subject: Subject, used: int) -> TrajectoryStore:
    if subject.experts is None:
        raise ConfigError("expert_inits needs the trajectories of a run: name their folder")
    store = TrajectoryStore.existing(subject.experts)
    if not store.checksums():
        raise ConfigError(f"{subject.experts} has no expert recorded yet: leave expert_inits out")
    store.check(list(store.checksums())[:used])
    return store
