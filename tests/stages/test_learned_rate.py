"""The learned learning rate: how far one update moves it."""

import math
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer

from pdd_lightning import TrajectoryMatching
from pdd_lightning.networks import ConvNet


class Data(torch.utils.data.Dataset):
    """One empty batch."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return torch.zeros(1)


class PulledRate(TrajectoryMatching):
    """A stage whose loss is `slope * lr`, so that dL/d lr is known."""

    slope = 1.0
    start = 0.01

    def setup(self, stage):
        self.images = torch.nn.Parameter(torch.zeros(1))
        self.log_lr = torch.nn.Parameter(torch.tensor(math.log(self.start)))

    def training_step(self, batch, batch_idx):
        return self.slope * self.log_lr.exp() + 0 * self.images.sum()


def one_step(slope, start, **settings):
    stage = PulledRate(partial(ConvNet, depth=1, width=2), lr_img=1.0, **settings)
    stage.slope, stage.start = slope, start
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_steps=1, enable_model_summary=False, **quiet)
    trainer.fit(stage, torch.utils.data.DataLoader(Data()))
    return stage.learned_lr


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|number of training batches).*")
@pytest.mark.parametrize("start", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_a_small_step_is_that_of_plain_sgd(slope, start):
    rate = 1e-3 * start
    moved = one_step(slope, start, lr_lr=rate, lr_teacher=0.01) - start
    assert moved == pytest.approx(-rate * slope, rel=2e-3)


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|number of training batches).*")
@pytest.mark.parametrize(("slope", "factor"), [(1e6, 0.5), (-1e6, 2.0)])
def test_a_huge_step_halves_or_doubles(slope, factor):
    assert one_step(slope, 0.01, lr_lr=1.0, lr_teacher=0.01) == pytest.approx(0.01 * factor, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|number of training batches).*")
def test_a_vanished_rate_halves_and_does_not_overflow():
    assert one_step(1.0, 1e-25, lr_lr=1.0, lr_teacher=0.01) == pytest.approx(0.5e-25, rel=1e-5)
