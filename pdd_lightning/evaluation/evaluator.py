"""Train and score networks on a distilled set, on baselines and on all real images."""

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
from pdd_lightning.evaluation.baselines import check_counts, herding_task, kmeans_set, random_set, real_set
from pdd_lightning.evaluation.plan import EvaluationSettings, Phase, PlannedRow, plan_rows
from pdd_lightning.evaluation.subject import Subject, train_with_progress
from pdd_lightning.evaluation.tasks import OnSteps, Task, run_tasks
from pdd_lightning.experts import TrajectoryStore
from pdd_lightning.metrics import augmentation_robust_score, label_robust_score
from pdd_lightning.networks.parameters import load_flat
from pdd_lightning.networks.spec import network_spec
from pdd_lightning.randomness import derive_seed, generator_for
from pdd_lightning.results.result_store import StoredScore, TaskResult, rows_from_results
from pdd_lightning.results.schema import DISTILLED, FULL, RANDOM
from pdd_lightning.stored import Json
from pdd_lightning.training import Images, score_network

_HARD = ", hard labels"
_PLAIN = ", no augmentation"


def evaluate(
    subject: Subject, settings: EvaluationSettings, ranking: bool = False, progress: bool = True
) -> list[dict[str, Any]]:
    """Train and score fresh networks on a distilled set, on baselines and on the full real set.

    Processes share the networks, and each gets all rows. Results in `subject.store` are not computed again. With
    `ranking`, the rows include what `ranking_scores` needs.

    Raises:
        ConfigError: There are no matching experts whose initializations could be used, or `ranking` needs other
            settings.
        DataError: A class has fewer real images than a baseline needs.
    """
    tasks = ranking_tasks(subject, settings) if ranking else evaluation_tasks(subject, settings)
    results = [TaskResult.model_validate(value) for value in run_tasks(tasks, subject.store, progress)]
    return rows_from_results(results, subject.real.class_names, settings.every_stage)


def evaluation_tasks(subject: Subject, settings: EvaluationSettings, suffix: str = "") -> list[Task]:
    """Return one task per network, whose value is a `TaskResult`.

    Fresh network number n has the same initialization in every row, and random images are drawn for each number.

    Raises:
        ConfigError: See `evaluate`.
        DataError: See `evaluate`.
    """
    evaluator = _Evaluator(subject, settings)
    rows = plan_rows(subject, settings, list(evaluator.experts), suffix)
    return [evaluator.task(row, number, expert) for row in rows for number, expert in enumerate(row.inits)]


def ranking_tasks(subject: Subject, settings: EvaluationSettings) -> list[Task]:
    """Return the tasks of an evaluation that `ranking_scores` can score by the first of its protocols.

    Added to the evaluation are the distilled set with hard labels, if it has soft ones, and distilled set and random
    images without augmentation and CutMix. Random images always have hard labels, for lack of a teacher. Learning
    rates are those of the evaluation; the authors search for them.

    Raises:
        ConfigError: The settings leave out the full real set or augmentation.
    """
    if not settings.full_data_epochs:
        raise ConfigError("the ranking compares with the full real set: set full_data_epochs")
    if not settings.augmentation(subject.augment).operations and not settings.cutmix:
        raise ConfigError("the ranking compares training with and without augmentation: name one by augment")
    others = tuple(name for name in settings.baselines if name != "random")
    tasks = evaluation_tasks(subject, replace(settings, baselines=("random", *others)))
    single = replace(settings, protocols=settings.protocols[:1], baselines=(), full_data_epochs=0, expert_inits=False)
    if subject.synthetic.labels.ndim > 1:
        hard = replace(subject.synthetic, labels=hard_labels(subject.synthetic.labels))
        tasks += evaluation_tasks(replace(subject, synthetic=hard), single, _HARD)
    plain = replace(single, baselines=("random",), augment="none", cutmix=0.0)
    return tasks + evaluation_tasks(subject, plain, _PLAIN)


def ranking_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return DD-Ranking's label-robust and augmentation-robust scores in [0, 1] from rows evaluated with `ranking`."""
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
    """Evaluates networks, which share sets and experts."""

    def __init__(self, subject: Subject, settings: EvaluationSettings) -> None:
        self.subject = subject
        self.settings = settings
        self._sets: dict[tuple[str, int], SyntheticSet] = {}
        self._trajectories = _open_trajectories(subject, settings.num_networks) if settings.expert_inits else None
        self.experts = self._trajectories.checksums() if self._trajectories else {}
        if settings.baselines:
            check_counts(subject)
        for expert in list(self.experts)[:1]:
            self._network(0, expert)  # which refuses other networks before anything is trained

    def task(self, row: PlannedRow, number: int, expert: int | None) -> Task:
        about = self._about(row)
        checksum = None if expert is None else self.experts[expert]
        return Task(
            label=f"{row.row} ({row.protocol}) {number + 1}",
            steps=sum(phase.steps for phase in row.phases),
            depends_on={**self.subject.identity, "about": about, "number": number, "expert": checksum},
            compute=partial(self._evaluate, row, about, number, expert),
            needs=[self._herding] if row.source == "herding" else [],
            value_type=TaskResult.type_for(about, number, self.subject.real.num_classes),
        )

    def _about(self, row: PlannedRow) -> dict[str, Any]:
        subject = self.subject
        is_soft = row.source == "distilled" and subject.synthetic.labels.ndim > 1
        return {
            **row.about(),
            **({"herding_epochs": self.settings.full_data_epochs} if row.source == "herding" else {}),
            "labels": "soft" if is_soft else "hard",
            "part": subject.part,
            "scored": len(getattr(subject.real, subject.part)),
            "seed": subject.seed,
            "network": network_spec(subject.factory),
        }

    def _evaluate(
        self,
        row: PlannedRow,
        about: Json,
        number: int,
        expert: int | None,
        on_steps: OnSteps,
        herded: Sequence[int] = (),
    ) -> dict[str, Any]:
        subject, begin = self.subject, time.perf_counter()
        network = self._network(number, expert)
        generator = generator_for(subject.seed, "evaluation", row.row, number)
        scores, seconds = list[StoredScore](), list[float]()
        for phase in row.phases:
            images, labels = self._training_data(row, number, phase, herded)
            train_with_progress(network, images, labels, phase.training, row.augment, generator, on_steps, phase.steps)
            score = score_network(network, *subject.real_images(subject.part), subject.real.num_classes)
            scores.append(StoredScore(**score._asdict()))
            seconds.append(time.perf_counter() - begin)
        return TaskResult(about=about, number=number, scores=scores, seconds=seconds).model_dump()

    def _network(self, number: int, expert: int | None) -> nn.Module:
        network = self.subject.network("evaluation init", number)
        if expert is not None and self._trajectories is not None:
            load_flat(network, self._trajectories.segment(expert, 0, 0)[0])
        return network

    def _training_data(
        self, row: PlannedRow, number: int, phase: Phase, herded: Sequence[int]
    ) -> tuple[Images, Tensor]:
        if row.source == "full":
            return self.subject.real_images("train")
        key = (row.source, number if row.source == "random" else 0)
        if key not in self._sets:
            stored = self._make_set(row.source, number, herded)
            self._sets[key] = stored.decoded(self.subject.pixels).to(self.subject.device)
        decoded, (first, last) = self._sets[key], phase.stages
        chosen = (decoded.stages >= first) & (decoded.stages <= last)
        return decoded.images[chosen], decoded.labels[chosen]

    def _make_set(self, source: str, number: int, herded: Sequence[int]) -> SyntheticSet:
        if source == "distilled":
            return self.subject.synthetic
        if source == "kmeans":
            return kmeans_set(self.subject)
        if source == "herding":
            return real_set(self.subject, torch.tensor(herded))
        return random_set(self.subject, derive_seed(self.subject.seed, "random real", number))

    @cached_property
    def _herding(self) -> Task:
        training = replace(self.settings.training, epochs=self.settings.full_data_epochs)
        return herding_task(self.subject, training, self.settings.augmentation(self.subject.augment))


def _open_trajectories(subject: Subject, count: int) -> TrajectoryStore:
    """Open the trajectories of experts, and check the first ones."""
    if subject.experts is None:
        raise ConfigError("expert_inits needs the trajectories of a run: name their folder")
    store = TrajectoryStore.existing(subject.experts)
    if not store.checksums():
        raise ConfigError(f"{subject.experts} has no expert recorded yet: leave expert_inits out")
    store.check(list(store.checksums())[:count])
    return store
