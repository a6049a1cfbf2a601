"""DD-Ranking's scores of a set: what has to be evaluated for them, and the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation.plan import Subject
from pdd_lightning.evaluation.settings import EvaluationSettings
from pdd_lightning.evaluation.tasks import EvaluationTask, evaluation_tasks
from pdd_lightning.metrics import augmentation_robust_score, label_robust_score

_HARD = ", hard labels"
_PLAIN = ", no augmentation"


def ranking_tasks(subject: Subject, settings: EvaluationSettings) -> list[EvaluationTask]:
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
    labels = subject.synthetic.labels
    if labels.ndim > 1:
        hard = replace(subject.synthetic, labels=labels.argmax(1))
        tasks += evaluation_tasks(replace(subject, synthetic=hard), one, _HARD)
    plain = replace(one, baselines=("random",), augment="none", cutmix=0.0)
    return tasks + evaluation_tasks(subject, plain, _PLAIN)


def ranking_scores(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Label-robust and augmentation-robust score, in [0, 1], from the mean accuracies of the rows.

    Args:
        rows: Rows of the tasks that `ranking_tasks` made.
    """
    final = [row for row in rows if row["stage"] == row["num_stages"]]
    accuracy = {row["row"]: row["mean"] for row in reversed(final)}  # the first protocol counts
    hard = accuracy.get("distilled" + _HARD, accuracy["distilled"])
    return {
        "label_robust_score": label_robust_score(
            accuracy["full real"], hard, accuracy["distilled"], accuracy["random real"]
        ),
        "augmentation_robust_score": augmentation_robust_score(
            accuracy["distilled"],
            accuracy["random real"],
            accuracy["distilled" + _PLAIN],
            accuracy["random real" + _PLAIN],
        ),
    }
