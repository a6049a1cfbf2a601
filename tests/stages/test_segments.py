"""Which segments of the experts' trajectories are matched: the window of DATM, and draws from a window."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.networks import ConvNet
from pdd_lightning.stages import DATM, TrajectoryMatching


class Counted:
    """Trajectories whose parameters are expert and epoch."""

    number = 3

    def segment(self, expert, first, last):
        return torch.tensor([expert, first]), torch.tensor([expert, last])


def windows(begin, first_end, end, growth=1.0, iterations=100):
    """The window of each iteration of a stage."""
    kind = type("Held", (DATM,), {"state": SimpleNamespace(iterations=iterations)})
    stage = kind(partial(ConvNet), begin, first_end, growth, max_start_epoch=end)
    return [stage.start_epochs(iteration) for iteration in range(iterations)]


def test_the_window_has_its_bounds_at_the_first_and_the_last_iteration():
    assert (windows(1, 3, 7)[0], windows(1, 3, 7)[99]) == ((1, 3), (1, 7))
    assert set(windows(0, None, 5)) == {(0, 5)}
    assert windows(0, 2, 4, growth=0.1, iterations=1) == [(0, 2)]


def test_the_end_grows_in_equal_parts_and_then_stays():
    assert [end for _, end in windows(0, 2, 5)] == [2] * 25 + [3] * 25 + [4] * 25 + [5] * 25
    assert [end for _, end in windows(0, 2, 3, growth=0.5)] == [2] * 25 + [3] * 75


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, 0, 4), "0, 0, 4"),
        ((2, 2, 4), "min_start_epoch < first_max_start_epoch"),
        ((4, None, 4), "min_start_epoch"),
        ((-1, 2, 4), "0 <= min_start_epoch"),
        ((0, 5, 4), "first_max_start_epoch <= max_start_epoch"),
        ((0, 2, 4, 0.0), "window_growth"),
        ((0, 2, 4, 1.5), "window_growth"),
        ((0, 2, 4, -0.5), "window_growth"),
    ],
)
def test_windows_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        windows(*settings)


def drawn(expert_epochs, window, count):
    stage = TrajectoryMatching(partial(ConvNet), expert_epochs=expert_epochs or 1)
    stage.expert_epochs = expert_epochs
    stage.__class__ = type("Held", (TrajectoryMatching,), {"trajectories": Counted()})
    generator = torch.Generator().manual_seed(0)
    return [stage._draw_segment(window, generator) for _ in range(count)]


def test_segments_start_anywhere_in_the_window_and_are_of_any_expert():
    segments = drawn(4, (2, 5), 200)
    assert all(start[0] == target[0] and target[1] == start[1] + 4 for start, target in segments)
    starts = {tuple(start.tolist()) for start, _ in segments}
    assert starts == {(expert, epoch) for expert in range(3) for epoch in (2, 3, 4)}


def test_an_expert_that_stands_still_is_named():
    with pytest.raises(DataError, match="did not move between epochs 2 and 2"):
        drawn(0, (2, 3), 1)
