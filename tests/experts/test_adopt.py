from dataclasses import replace

import pytest
import torch

from pdd_lightning.augment import DSA
from pdd_lightning.errors import ConfigError
from pdd_lightning.experts import ExpertRecorder, ExpertSettings

SETTINGS = ExpertSettings(number=2, batch_size=16)


@pytest.fixture
def recorder(blobs, factory):
    return ExpertRecorder(factory, blobs, SETTINGS, DSA("flip"), seed=3, device=torch.device("cpu"), progress=False)


@pytest.fixture
def network(factory):
    return factory(3, 3, 8)


def test_what_was_recorded_can_be_adopted_and_is_the_same(tmp_path, recorder):
    """Recorded trajectories stand in for somebody else's."""
    recorded = recorder.record(tmp_path / "recorded", epochs=3)
    trajectories = [torch.stack([recorded.segment(expert, epoch, 0)[0] for epoch in range(4)]) for expert in range(2)]
    adopted = recorder.adopt(tmp_path / "adopted", iter(trajectories), epochs=3)
    for store in (adopted, recorder.record(tmp_path / "adopted", epochs=3)):
        assert store.missing() == [] and store.damaged() == []
        for expert, expected in enumerate(trajectories):
            assert torch.equal(store.segment(expert, 0, 3)[1], expected[3])
    for mine, theirs in zip(adopted.records, recorded.records, strict=True):
        assert (mine.start_accuracy, mine.end_accuracy) == (theirs.start_accuracy, theirs.end_accuracy)
        assert (mine.losses, mine.accuracies, mine.start_seconds, mine.record_seconds) == ([], [], 0.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": replace(SETTINGS, lr=0.5)}, r"training\.lr: 0\.01 on disk, 0\.5 asked for"),
        ({"settings": replace(SETTINGS, number=1)}, "number: 2 on disk, 1 asked for"),
        ({"seed": 4}, "seed: 3 on disk, 4 asked for"),
        ({"augment": DSA("color")}, "augment: 'flip' on disk, 'color' asked for"),
    ],
)
def test_a_run_with_other_settings_refuses_them(tmp_path, recorder, network, blobs, factory, changes, message):
    size = sum(parameter.numel() for parameter in network.parameters())
    recorder.adopt(tmp_path, [torch.zeros(2, size), torch.ones(2, size)], epochs=1)
    asked = {"settings": SETTINGS, "augment": DSA("flip"), "seed": 3, **changes}
    other = ExpertRecorder(factory, blobs, device=torch.device("cpu"), progress=False, **asked)
    with pytest.raises(ConfigError, match=message):
        other.record(tmp_path, epochs=1)
