import math

import pytest
import torch

from pdd_lightning.errors import ConfigError
from pdd_lightning.metrics import (
    augmentation_robust_score,
    average_accuracy,
    average_forgetting,
    label_robust_score,
)

NAN = float("nan")


def test_values_computed_by_hand():
    accuracies = torch.tensor([[0.9, 0.1, 0.2], [0.6, 0.8, 0.1], [0.7, 0.5, 0.9]])
    assert float(average_accuracy(accuracies)) == pytest.approx((0.7 + 0.5 + 0.9) / 3)
    assert float(average_forgetting(accuracies)) == pytest.approx((0.2 + 0.3) / 2)


def test_the_best_former_accuracy_counts_and_the_last_task_does_not():
    accuracies = torch.tensor([[0.5, NAN, NAN], [0.7, 0.6, NAN], [0.6, 0.6, 0.1]])
    assert float(average_forgetting(accuracies)) == pytest.approx((0.1 + 0.0) / 2)


def test_later_tasks_can_help_earlier_ones():
    assert float(average_forgetting(torch.tensor([[0.5, NAN], [0.8, 0.9]]))) == pytest.approx(-0.3)


@pytest.mark.parametrize("shape", [(2, 3), (4,), (0, 0), (1, 1)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="accuracies must be"):
        average_forgetting(torch.zeros(shape))


def test_one_task_has_an_accuracy():
    assert float(average_accuracy(torch.tensor([[0.5]]))) == 0.5


def normalized(value):
    return (math.exp(value) - 1 / math.e) / (math.e - 1 / math.e)


def test_label_robust_score_by_hand():
    """IOR 0.65 - 0.31, HLR 0.85 - 0.60."""
    assert label_robust_score(0.85, 0.60, 0.65, 0.31) == pytest.approx(normalized(0.5 * 0.34 - 0.5 * 0.25))
    assert label_robust_score(0.85, 0.60, 0.65, 0.31, weight=1) == pytest.approx(normalized(0.34))
    assert label_robust_score(0.85, 0.60, 0.65, 0.31) == pytest.approx(0.288525, abs=1e-6)


def test_augmentation_robust_score_by_hand():
    assert augmentation_robust_score(0.65, 0.31, 0.5, 0.4, weight=0.25) == pytest.approx(normalized(0.085 + 0.075))


def test_scores_span_the_unit_interval():
    assert label_robust_score(1, 0, 0, 1) == 0
    assert label_robust_score(0, 1, 1, 0) == 1
    assert augmentation_robust_score(0, 1, 0, 1) == 0
    assert augmentation_robust_score(1, 0, 1, 0) == 1
    assert augmentation_robust_score(0.5, 0.5, 0.3, 0.3) == pytest.approx(0.26894, abs=1e-5)


@pytest.mark.parametrize("bad", [65.0, -0.1, float("nan")])
def test_percent_are_refused(bad):
    with pytest.raises(ConfigError, match="fractions in"):
        label_robust_score(0.85, 0.6, bad, 0.31)
    with pytest.raises(ConfigError, match="fractions in"):
        augmentation_robust_score(0.85, 0.6, 0.5, 0.31, weight=bad)
