"""Running sums give the means over the first and the last twentieth of all losses."""

import statistics

import pytest
import torch

from pdd_lightning.progression import meter
from pdd_lightning.progression.meter import StageMeter


def added(losses, iterations=None):
    ends = StageMeter()
    for iteration, loss in enumerate(losses):
        ends.add(loss, iteration, iterations or len(losses))
    return ends


@pytest.mark.parametrize("count", [1, 2, 19, 20, 39, 40, 41, 1000])
def test_means_are_those_of_all_losses(count):
    losses = torch.rand(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64).tolist()
    few = max(1, count // 20)
    ends = added(losses)
    assert ends.first_loss == pytest.approx(statistics.fmean(losses[:few]), rel=1e-12)
    assert ends.last_loss == pytest.approx(statistics.fmean(losses[-few:]), rel=1e-12)


def test_what_is_stored_continues_and_does_not_grow():
    losses = [float(loss) for loss in range(2000)]
    half = added(losses[:1990], 2000)
    stored = half.model_dump()
    assert all(isinstance(value, int | float) for value in stored.values())
    continued = StageMeter(**stored)
    for iteration, loss in enumerate(losses[1990:], 1990):
        continued.add(loss, iteration, 2000)
    assert continued == added(losses)


def test_a_stage_that_was_cut_short_reports_its_latest_loss():
    ends = added([4.0, 3.0, 2.0], iterations=100)
    assert (ends.first_loss, ends.last_loss) == (3.0, 2.0)


def test_on_a_gpu_the_peak_of_memory_is_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 1024 * 1024)
    assert meter._peak_memory_mb(torch.device("cuda")) == 3
