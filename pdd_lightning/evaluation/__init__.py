"""Evaluation of distilled sets: protocols and baselines, continual learning, description of stages."""

from pdd_lightning.evaluation.evaluator import evaluate, ranking_scores
from pdd_lightning.evaluation.plan import EvaluationSettings
from pdd_lightning.evaluation.subject import Part, Subject, stored_subject, subject_of

__all__ = ["EvaluationSettings", "Part", "Subject", "evaluate", "ranking_scores", "stored_subject", "subject_of"]
