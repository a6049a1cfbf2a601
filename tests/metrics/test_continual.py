import pytest
import torch

from pdd_lightning.metrics import average_accuracy, average_forgetting

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
