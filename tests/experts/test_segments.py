import pytest
import torch

from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.experts.segments import StartWindow, draw_segment


class Counted:
    """Trajectories whose parameters are expert and epoch."""

    number = 3

    def segment(self, expert, first, last):
        return torch.tensor([expert, first]), torch.tensor([expert, last])


def test_the_window_has_its_bounds_at_the_first_and_the_last_iteration():
    window = StartWindow(1, 3, 7)
    assert window.at(0, 100) == (1, 3)
    assert window.at(99, 100) == (1, 7)
    assert StartWindow(0, None, 5).at(0, 100) == StartWindow(0, None, 5).at(99, 100) == (0, 5)
    assert StartWindow(0, 2, 4, growth=0.1).at(0, 1) == (0, 2)


def test_the_end_grows_in_equal_parts_and_then_stays():
    ends = [StartWindow(0, 2, 5).at(iteration, 100)[1] for iteration in range(100)]
    assert ends == [2] * 25 + [3] * 25 + [4] * 25 + [5] * 25
    early = [StartWindow(0, 2, 3, growth=0.5).at(iteration, 100)[1] for iteration in range(100)]
    assert early == [2] * 25 + [3] * 75


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
        StartWindow(*settings)


def test_segments_start_anywhere_in_the_window_and_are_of_any_expert():
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(200):
        start, target = draw_segment(Counted(), (2, 5), 4, generator)
        assert start[0] == target[0] and target[1] == start[1] + 4
        seen.add(tuple(start.tolist()))
    assert seen == {(expert, epoch) for expert in range(3) for epoch in (2, 3, 4)}


def test_an_expert_that_stands_still_is_named():
    with pytest.raises(DataError, match="did not move between epochs 2 and 2"):
        draw_segment(Counted(), (2, 3), 0, torch.Generator())
