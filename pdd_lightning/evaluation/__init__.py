"""Evaluation of distilled sets: protocols, baselines, and tables."""

from pdd_lightning.evaluation.protocols import PROTOCOLS, Phase, protocol_phases
from pdd_lightning.evaluation.report import format_table, rows_from_results, rows_table, stages_table
from pdd_lightning.evaluation.stored import evaluate_file
from pdd_lightning.evaluation.tasks import (
    EvaluationSettings,
    EvaluationTask,
    TaskResult,
    evaluation_tasks,
    run_tasks,
)

__all__ = [
    "PROTOCOLS",
    "EvaluationSettings",
    "EvaluationTask",
    "Phase",
    "TaskResult",
    "evaluate_file",
    "evaluation_tasks",
    "format_table",
    "protocol_phases",
    "rows_from_results",
    "rows_table",
    "run_tasks",
    "stages_table",
]
