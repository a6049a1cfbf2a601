"""Evaluation of distilled sets: protocols and baselines."""

from pdd_lightning.evaluation.plan import NetworkPlan, Subject, plan_networks
from pdd_lightning.evaluation.protocols import PROTOCOLS, Phase, protocol_phases, stage_steps
from pdd_lightning.evaluation.ranking import ranking_scores, ranking_tasks
from pdd_lightning.evaluation.settings import EvaluationSettings
from pdd_lightning.evaluation.stored import evaluate_file
from pdd_lightning.evaluation.tasks import EvaluationTask, evaluation_tasks, run_tasks

__all__ = [
    "PROTOCOLS",
    "EvaluationSettings",
    "EvaluationTask",
    "NetworkPlan",
    "Phase",
    "Subject",
    "evaluate_file",
    "evaluation_tasks",
    "plan_networks",
    "protocol_phases",
    "ranking_scores",
    "ranking_tasks",
    "run_tasks",
    "stage_steps",
]
