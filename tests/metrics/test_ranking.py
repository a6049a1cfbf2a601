import math

import pytest

from pdd_lightning.errors import ConfigError
from pdd_lightning.metrics import augmentation_robust_score, label_robust_score


def normalised(value):
    return (math.exp(value) - 1 / math.e) / (math.e - 1 / math.e)


def test_label_robust_score_by_hand():
    """IOR 0.65 - 0.31, HLR 0.85 - 0.60."""
    assert label_robust_score(0.85, 0.60, 0.65, 0.31) == pytest.approx(normalised(0.5 * 0.34 - 0.5 * 0.25))
    assert label_robust_score(0.85, 0.60, 0.65, 0.31, weight=1) == pytest.approx(normalised(0.34))
    assert label_robust_score(0.85, 0.60, 0.65, 0.31) == pytest.approx(0.288525, abs=1e-6)


def test_augmentation_robust_score_by_hand():
    assert augmentation_robust_score(0.65, 0.31, 0.5, 0.4, weight=0.25) == pytest.approx(normalised(0.085 + 0.075))


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
