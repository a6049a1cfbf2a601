import numpy as np
import pytest
from sklearn.datasets import load_digits

from pdd_lightning.data.standard_sets import Digits
from pdd_lightning.errors import ConfigError


@pytest.fixture(scope="module")
def data():
    data = Digits(test_fraction=0.2, val_fraction=0.1)
    data.setup()
    return data


def test_the_parts_cover_all_digits_once(data):
    parts = (data.train, data.val, data.test)
    assert sorted(i for part in parts for i in part.indices.tolist()) == list(range(1797))
    assert len(data.test) == pytest.approx(0.2 * 1797, abs=5)
    assert len(data.val) == pytest.approx(0.08 * 1797, abs=5)
    assert (data.class_names, data.image_shape) == ([str(i) for i in range(10)], (1, 8, 8))


def test_images_and_labels_are_those_of_scikit_learn(data):
    source = load_digits()
    assert data.test.labels.tolist() == source.target[data.test.indices].tolist()
    levels = data.test.images[:, 0].numpy() * (16 / 255)
    assert np.abs(levels - source.images[data.test.indices]).max() < 0.04
    assert (int(data.train.images.min()), int(data.train.images.max())) == (0, 255)


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="test_fraction"):
        Digits(test_fraction=0)
