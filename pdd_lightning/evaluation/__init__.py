"""Evaluation of distilled sets: protocols, baselines, and tables."""

from pdd_lightning.evaluation.plan import NetworkPlan, Subject, plan_networks
from pdd_lightning.evaluation.protocols import PROTOCOLS, Phase, protocol_phases, stage_steps
from pdd_lightning.evaluation.ranking import ranking_scores, ranking_tasks
from pdd_lightning.evaluation.report import format_table, row_title, rows_from_results, rows_table, stages_table
from pdd_lightning.evaluation.results import ResultStore, TaskResult
from pdd_lightning.evaluation.settings import EvaluationSettings
from pdd_lightning.evaluation.stored import evaluate_file
from pdd_lightning.evaluation.tasks import EvaluationTask, evaluation_tasks, run_tasks

__all__ = [
    "PROTOCOLS",
    "EvaluationSettings",
    "EvaluationTask",
    "NetworkPlan",
    "Phase",
    "ResultStore",
    "Subject",
    "TaskResult",
    "evaluate_file",
    "evaluation_tasks",
    "format_table",
    "plan_networks",
    "protocol_phases",
    "ranking_scores",
    "ranking_tasks",
    "row_title",
    "rows_from_results",
    "rows_table",
    "run_tasks",
    "stage_steps",
    "stages_table",
]
