"""Evaluation as a list of independent tasks: each trains one network and scores it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from pdd_lightning import distributed
from pdd_lightning.evaluation.evaluator import Evaluator
from pdd_lightning.evaluation.plan import NetworkPlan, Subject, plan_networks
from pdd_lightning.evaluation.settings import EvaluationSettings
from pdd_lightning.progress import progress_bar
from pdd_lightning.results.store import TaskResult


class EvaluationTask:
    """Trains one network and scores it, unless its result is kept.

    Args:
        plan: The network.
        evaluator: What trains and scores it.

    Attributes:
        result: The outcome, once `run` was called, or from the start where it was kept.
        on_steps: Called while it runs with a label and the number of optimiser steps just done.
    """

    def __init__(self, plan: NetworkPlan, evaluator: Evaluator) -> None:
        self.plan = plan
        self.evaluator = evaluator
        self.result = evaluator.kept(plan)
        self.on_steps: Callable[[str, int], Any] = lambda *_: None

    @property
    def label(self) -> str:
        """What the progress bar says."""
        return f"{self.plan.row} ({self.plan.protocol}) {self.plan.number + 1}"

    @property
    def steps(self) -> int:
        """Optimiser steps still to be done."""
        return self.plan.steps if self.result is None else 0

    def run(self) -> TaskResult:
        """Trains and scores the network; may be called in Lightning's inference mode."""
        if self.result is None:
            with torch.inference_mode(False):
                self.on_steps(self.label, 0)
                self.result = self.evaluator.evaluate(self.plan, lambda steps: self.on_steps(self.label, steps))
        return self.result


@torch.inference_mode(False)
def evaluation_tasks(subject: Subject, settings: EvaluationSettings, suffix: str = "") -> list[EvaluationTask]:
    """One task per network: on the distilled set, on the baselines, and on the full real set.

    Fresh network number n has the same initialisation in every row, and random images are drawn anew for each number.

    Args:
        subject: What is evaluated.
        settings: How.
        suffix: What the names of the rows end with.

    Raises:
        ConfigError: There are no experts, or experts of other networks, where their initialisations are asked for.
        DataError: A class has fewer real images than a baseline needs.
    """
    evaluator = Evaluator(subject, settings)
    plans = plan_networks(subject, settings, evaluator.experts(), suffix)
    return [EvaluationTask(plan, evaluator) for plan in plans]


def run_tasks(tasks: Sequence[EvaluationTask], progress: bool = True) -> list[TaskResult]:
    """Runs tasks under a progress bar; processes share them, and each gets all results, in the order of the tasks."""
    rank, processes = distributed.rank(), distributed.world_size()
    mine = tasks[rank::processes]
    with tasks_bar(mine, progress):
        shares = distributed.gather([task.run() for task in mine])
    return [shares[number % processes][number // processes] for number in range(len(tasks))]


def tasks_bar(tasks: Sequence[EvaluationTask], show: bool = True) -> tqdm[Any]:
    """A bar that counts the optimiser steps of tasks, to be closed when they are done."""
    total = sum(task.steps for task in tasks)
    bar = progress_bar(total, "Evaluating", "step", show and total > 0)

    def advance(label: str, steps: int) -> None:
        bar.set_description(f"Evaluating {label}", refresh=False)
        bar.update(steps)

    for task in tasks:
        task.on_steps = advance
    return bar


def say_kept(tasks: Sequence[EvaluationTask], subject: Subject) -> None:
    """Says how many results of an earlier start are used, if any."""
    kept = sum(task.result is not None for task in tasks)
    if kept and distributed.rank() == 0:
        tqdm.write(f"{kept} of {len(tasks)} networks were trained before: their results are in {subject.store.path}")
