"""Trajectory matching in three stages: what stands behind each stage, computed again by plain means."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor
from torch.nn import functional as F

from pdd_lightning.data import DiscardSettings
from pdd_lightning.data.progressive import ProgressiveDataModule
from pdd_lightning.data.splits import ImageSplit, to_unit
from pdd_lightning.experts import ExpertSettings, TrajectoryStore
from pdd_lightning.networks import ConvNet
from pdd_lightning.networks.parameters import flatten, load_flat
from pdd_lightning.progression import StageAdvance, StageObserver, TransitionSettings
from pdd_lightning.randomness import generator_for
from pdd_lightning.stages import TrajectoryMatching
from pdd_lightning.training import TrainingSettings, train_network
from tests.tiny import Blobs

STAGES, ITERATIONS, EXPERTS = 3, 4, 3
NETWORK = functools.partial(ConvNet, depth=2, width=4)
RECORDED = ExpertSettings(number=EXPERTS, batch_size=16, lr=0.05)
TRANSITION = TransitionSettings(epochs=6, batch_size=4)
EPOCHS = 3  # of each expert: two start epochs, segments of one or two
each_expert = pytest.mark.parametrize("expert", range(EXPERTS))


class Watch(StageObserver):
    """Remembers what each iteration was given and what each stage left."""

    def __init__(self) -> None:
        self.batches: dict[int, list[Any]] = {stage: [] for stage in range(1, STAGES + 1)}
        self.losses: list[tuple[float, float]] = []
        self.kept: dict[int, ImageSplit] = {}
        self.left: dict[int, tuple[Tensor, float]] = {}
        self.history: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches[pl_module.state.stage].append(batch)
        self.expected = loss_by_hand(pl_module, batch)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        stage = pl_module.state.stage
        self.losses.append((float(outputs["loss"]), self.expected))
        self.kept[stage] = pl_module.data.kept
        self.left[stage] = pl_module.images.detach().clone(), pl_module.learned_lr

    def on_stage_end(self, trainer: Any, stage_module: Any, history: Any) -> None:
        self.history = list(history)


def loss_by_hand(module: TrajectoryMatching, batch: Any) -> float:
    """The matching loss of an iteration: a student trained by torch's own SGD on the whole union."""
    union = module.data.union
    images = torch.cat([union.images, module.images.detach()])
    labels = torch.cat([union.labels, module.labels])
    student = NETWORK(3, 3, 8)
    load_flat(student, batch.start)
    optimizer = torch.optim.SGD(student.parameters(), lr=module.learned_lr)
    for indices, draw in zip(batch.indices, batch.draws, strict=True):
        optimizer.zero_grad()
        F.cross_entropy(student(module.augment(images[indices], draw)), labels[indices]).backward()
        optimizer.step()
    distance = (parameters(student) - batch.target).square().sum()
    return float(distance / (batch.start - batch.target).square().sum())


def parameters(network: torch.nn.Module) -> Tensor:
    return flatten(dict(network.named_parameters())).detach()


def trained(start: Tensor, images: Tensor, labels: Tensor, how: TrainingSettings, module: Any, *key: Any) -> Tensor:
    """Parameters `[P]` after a training that begins at `start`."""
    network = NETWORK(3, 3, 8)
    load_flat(network, start)
    train_network(network, images, labels, how, module.augment, generator_for(module.data.seed, *key))
    return parameters(network)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Watch, Path]:
    """The module, what was seen, and the folder of the experts, after three stages that leave out ever more."""
    seed_everything(0, verbose=False)
    folder, watch = tmp_path_factory.mktemp("three_stages"), Watch()
    options = {"syn_steps": 3, "expert_epochs": 1, "max_start_epoch": 2, "batch_syn": 4, "lr_img": 10.0, "lr_lr": 5e-6}
    module = TrajectoryMatching(NETWORK, lr_teacher=0.05, **options)
    discard = DiscardSettings(keep=(1.0, 0.6, 0.3))
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[StageAdvance(STAGES, ITERATIONS, RECORDED, TRANSITION, discard), watch],
        accelerator="cpu",
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=ProgressiveDataModule(Blobs()))
    return module, watch, folder / "experts"


@pytest.fixture(scope="module")
def thetas(run: Any) -> list[TrajectoryStore]:
    """The stored experts that start from theta_0, theta_1 and theta_2, and theta_3 itself."""
    folders = ["theta_0", "theta_1", "theta_2", "theta_3_final"]
    return [TrajectoryStore.existing(run[2] / name) for name in folders]


def test_the_union_has_the_images_and_the_rate_of_each_stage(run: Any) -> None:
    module, watch, _ = run
    union = module.data.union
    assert union.stages.tolist() == [1] * 3 + [2] * 3 + [3] * 3
    assert union.labels.tolist() == [0, 1, 2] * 3
    for stage, (images, rate) in watch.left.items():
        assert torch.equal(union.stage(stage).images, images)
        assert union.learning_rates[stage - 1] == rate
    assert len(set(union.learning_rates)) == STAGES


@each_expert
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_theta_is_the_former_theta_trained_on_the_union_at_the_learned_rate(
    stage: int, expert: int, run: Any, thetas: list[TrajectoryStore]
) -> None:
    module, watch, _ = run
    union, rate = module.data.union.union(stage), watch.left[stage][1]
    assert len(union.labels) == 3 * stage and abs(rate / module.default_lr - 1) > 0.5
    former, theta = (store.segment(expert, 0, 0)[0] for store in thetas[stage - 1 : stage + 1])
    how = TRANSITION.training(rate)
    by_hand = trained(former, union.images, union.labels, how, module, "transition", stage, expert)
    torch.testing.assert_close(theta, by_hand)


@each_expert
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_experts_are_trained_from_theta_on_what_their_stage_keeps(
    stage: int, expert: int, run: Any, thetas: list[TrajectoryStore]
) -> None:
    module, watch, _ = run
    kept = watch.kept[stage]
    assert len(kept.labels) == {1: 54, 2: 32, 3: 16}[stage]
    start, end = thetas[stage - 1].segment(expert, 0, EPOCHS)
    images = module.data.real.pixels.encode(to_unit(kept.images))
    by_hand = trained(start, images, kept.labels, RECORDED.training(EPOCHS), module, "expert", stage - 1, expert)
    torch.testing.assert_close(end, by_hand)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_follows_the_experts_that_start_from_the_former_theta(
    stage: int, run: Any, thetas: list[TrajectoryStore]
) -> None:
    segments = [thetas[stage - 1].segment(expert, start, start + 1) for expert in range(EXPERTS) for start in (0, 1)]
    for batch in run[1].batches[stage]:
        assert any(torch.equal(batch.start, start) and torch.equal(batch.target, end) for start, end in segments)


def test_students_are_trained_on_frozen_and_new_images_at_the_learned_rate(run: Any) -> None:
    watch = run[1]
    assert len(watch.losses) == STAGES * ITERATIONS
    for loss, by_hand in watch.losses:
        assert loss == pytest.approx(by_hand, rel=1e-4)
    for stage, batches in watch.batches.items():
        assert {int(place) for batch in batches for place in torch.cat(batch.indices)} == set(range(3 * stage))


def test_reports_have_the_sample_deviation_of_the_networks(run: Any, thetas: list[TrajectoryStore]) -> None:
    for report, store in zip(run[1].history, thetas[1:], strict=True):
        accuracies = [record.start_accuracy for record in store.records]
        mean = sum(accuracies) / EXPERTS
        spread = (sum((accuracy - mean) ** 2 for accuracy in accuracies) / (EXPERTS - 1)) ** 0.5
        assert (report.val_accuracy, report.val_std) == pytest.approx((mean, spread))
    assert any(report.val_std > 0.01 for report in run[1].history)
