"""What every method refuses, and when it says that a run has failed, without a run."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule

from pdd_lightning import distributed
from pdd_lightning.errors import ConfigError, DataError, NonFiniteLossError
from pdd_lightning.memory import total_memory
from pdd_lightning.networks import ConvNet
from pdd_lightning.progression.observer import stage_module
from pdd_lightning.stages import DATM, IDC, DistributionMatching, GradientMatching, TrajectoryMatching
from pdd_lightning.stages import trajectory_matching as trajectory_module
from tests.tiny import change, started

NETWORK = partial(ConvNet, depth=2, width=4)
PER_CLASS = 18  # images of `blobs`, without the validation part


@pytest.fixture
def make(blobs):
    """Makes stages that are set up, with a trainer that knows the data and no other process."""

    def build(kind, **options):
        module = kind(NETWORK, **options)
        strategy = SimpleNamespace(reduce_boolean_decision=lambda good, all: good)
        data = started(blobs, module.decode_factor)
        module._trainer = SimpleNamespace(datamodule=data, strategy=strategy)
        module.setup("fit")
        return module

    return build


@pytest.mark.parametrize(
    ("kind", "options", "most"),
    [(DistributionMatching, {}, PER_CLASS), (IDC, {"init": "real"}, PER_CLASS), (IDC, {}, PER_CLASS // 4)],
)
def test_a_stage_may_begin_from_every_real_image_and_not_from_more(make, kind, options, most):
    assert len(make(kind, ipc=most, **options).images) == 3 * most
    with pytest.raises(DataError, match=rf"class 'red' has {PER_CLASS} training images .* ipc={most + 1}"):
        make(kind, ipc=most + 1, **options)
    assert len(make(kind, ipc=most + 1, **{**options, "init": "noise"}).images) == 3 * (most + 1)


def test_a_stage_that_is_set_up_keeps_what_it_has(make):
    stage = make(TrajectoryMatching)
    images, rate = stage.images, stage.log_lr
    stage.setup("test")
    assert stage.images is images and stage.log_lr is rate


def ruined_images(stage):
    stage.images.data[1, 0, 2, 3] = math.nan


def vanished_rate(stage):
    stage.log_lr.data.fill_(-1000.0)


def endless_rate(stage):
    stage.log_lr.data.fill_(1000.0)


@pytest.mark.parametrize(
    ("kind", "ruin", "message"),
    [
        (TrajectoryMatching, ruined_images, r"stage 1, iteration 1\. The learned rate is 0\.01\. Lower lr_img"),
        (
            TrajectoryMatching,
            vanished_rate,
            r"learned rate is 0\..* or lr_lr \(now 1e-05\) or lr_teacher \(now 0\.01\)",
        ),
        (TrajectoryMatching, endless_rate, "learned rate is inf"),
        (partial(DATM, lr_label=3.0), ruined_images, r"lr_img \(now 1000\) or lr_lr .* or lr_label \(now 3\)"),
        (
            partial(DATM, lr_label=None),
            ruined_images,
            r"lr_img \(now 1000\) or lr_lr .* or lr_teacher \(now 0\.01\), and",
        ),
        (DistributionMatching, ruined_images, r"iteration 1\. Lower lr_img \(now 1\), and continue"),
    ],
)
def test_an_update_that_ruins_what_is_learned_is_told(make, kind, ruin, message):
    """With the rates that may be lowered, and the learned one if there is one."""
    stage = make(kind)
    stage.check_parameters()
    ruin(stage)
    with pytest.raises(NonFiniteLossError, match=message):
        stage.check_parameters()


def test_what_was_last_finite_stays_when_the_loss_is_not(make, monkeypatch):
    stage = make(DistributionMatching)
    stage.restart(torch.Generator().manual_seed(0))
    assert all(torch.equal(*pair) for pair in zip(stage.last_finite, stage.distilled, strict=True))
    monkeypatch.setattr(stage, "log", lambda *args, **options: None)
    monkeypatch.setattr(stage, "matching_loss", lambda batch: batch)
    stage.training_step(torch.tensor(1.0), 0)
    good = stage.images.detach().clone()
    with torch.no_grad():
        stage.images.add_(1)
    for loss in (math.nan, math.inf):
        with pytest.raises(NonFiniteLossError, match="the matching loss is not finite"):
            stage.training_step(torch.tensor(loss), 1)
    assert torch.equal(stage.last_finite[0], good) and torch.equal(stage.last_finite[1], stage.labels)
    stage.restart(torch.Generator().manual_seed(1))
    assert torch.equal(stage.last_finite[0], stage.images)


def test_checkpoints_of_something_else_are_refused(make):
    stage = make(DistributionMatching, ipc=2)
    others = [{"weight": torch.zeros(1)}, {"images": torch.zeros(3, 3, 8, 8)}, {"images": 0.5}]
    for other in (*others, {"images": stage.images, "log_lr": torch.zeros(())}):
        with pytest.raises(ConfigError, match=r"other options.*need \{'images': \[6, 3, 8, 8\]\} \(ipc 2"):
            stage.on_load_checkpoint({"state_dict": other})
    stage.on_load_checkpoint({"state_dict": stage.state_dict()})


def test_checkpoints_without_a_methods_own_are_refused_when_it_is_needed(make):
    stage = make(GradientMatching, outer=2)
    stage.on_load_checkpoint({"state_dict": stage.state_dict()})
    with pytest.raises(ConfigError, match="holds no matching network"):
        stage.matching_loss(stage.draw_batch(1, torch.Generator().manual_seed(0)))


def test_data_and_models_of_other_kinds_are_refused():
    stage = DistributionMatching(NETWORK)
    stage._trainer = SimpleNamespace(datamodule=None)
    with pytest.raises(ConfigError, match="needs a ProgressiveDataModule, got NoneType"):
        _ = stage.data
    assert stage_module(stage) is stage
    with pytest.raises(ConfigError, match="must be a DistillationStage, got LightningModule"):
        stage_module(LightningModule())


def test_what_a_method_leaves_as_it_is():
    stage = DistributionMatching(NETWORK)
    assert (stage.default_lr, stage.learned_lr, stage.trajectory_epochs) == (0.01, None, 0)
    assert (stage.decode_factor, IDC(NETWORK, factor=3).decode_factor) == (1, 3)


@pytest.mark.parametrize("processes", [1, 4])
def test_processes_on_one_machine_share_its_memory(make, monkeypatch, processes):
    """The mode of the inner loop is chosen by what is left of it."""
    asked = []

    def choose_mode(problem, params, inputs, steps, memory):
        asked.append((steps, memory))
        return "stored", "there is enough"

    monkeypatch.setattr(trajectory_module, "choose_mode", choose_mode)
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    stage = make(TrajectoryMatching, syn_steps=3, max_start_epoch=2)
    stage.log = lambda *args, **options: None
    stage.restart(torch.Generator().manual_seed(0))
    change(stage.data, trajectories=Moving(sum(weight.numel() for weight in stage.student.parameters())))
    for _ in range(2):
        stage.matching_loss(stage.draw_batch(0, torch.Generator().manual_seed(0)))
    assert asked == [(3, total_memory(torch.device("cpu")) // processes)]


class Moving:
    """One expert whose parameters grow with the epoch."""

    number = 1

    def __init__(self, size):
        self.size = size

    def segment(self, expert, first, last):
        return torch.full((self.size,), 0.01 * first), torch.full((self.size,), 0.01 * last)


@pytest.mark.parametrize(
    ("batch", "expected"), [(None, [3] * 5), (2, [2, 2, 2, 2, 1]), (4, [4, 4, 1, 4, 4]), (99, [9] * 5)]
)
def test_students_see_shuffled_passes_over_the_union_in_chunks(make, staged_blobs, batch, expected):
    """By default in chunks of as many images as one stage has."""
    stage = make(TrajectoryMatching, syn_steps=5, batch_syn=batch, max_start_epoch=2)
    change(stage.data, union=staged_blobs.stage(2), trajectories=Moving(3))
    chunks = stage.draw_batch(0, torch.Generator().manual_seed(0)).indices
    assert [len(chunk) for chunk in chunks] == expected
    first_pass = torch.cat(chunks)[:9].tolist()
    assert len(set(first_pass)) == 9 and max(torch.cat(chunks)) < 9
    assert first_pass != sorted(first_pass)
