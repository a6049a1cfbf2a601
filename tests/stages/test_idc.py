import json
import logging
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.nn import functional as F

from pdd_lightning.augment import decode
from pdd_lightning.callbacks.checkpoint import CheckpointFiles, RollingCheckpoint
from pdd_lightning.data.progressive import ProgressiveDataModule
from pdd_lightning.data.splits import to_unit
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.experts import ExpertSettings
from pdd_lightning.networks import ConvNet, flatten
from pdd_lightning.objectives import class_distance, kernel_distance
from pdd_lightning.progression import StageAdvance, TransitionSettings
from pdd_lightning.stages import IDC, idc
from tests.tiny import Blobs, change, started

SETTINGS = {"inner": 2, "batch_real": 8, "batch_syn": 6, "net_images": 24, "batch_net": 8, "lr_img": 0.2}
CLASSES = 3


class Steps:
    """A stage with a data module and no trainer: steps are taken by hand."""

    def __init__(self, stage: IDC, data: ProgressiveDataModule) -> None:
        self.stage, self.data = stage, data
        stage._trainer = SimpleNamespace(datamodule=data)
        stage.setup("fit")
        stage.restart(data.generator("initial images", data.state.stage))

    def loss(self, iteration: int, seed: int = 0) -> torch.Tensor:
        change(self.data, iteration=iteration)
        return self.stage.matching_loss(self.stage.draw_batch(iteration, torch.Generator().manual_seed(seed)))


class Pool:
    """Networks of a former stage: random ones, of which network j has (j + 1) / 100 as its first parameter."""

    number = 3

    def __init__(self, size: int) -> None:
        self.size = size

    def segment(self, expert: int, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert (first, last) == (0, 0)
        theta = 0.2 * torch.randn(self.size, generator=torch.Generator().manual_seed(expert))
        theta[0] = (expert + 1) / 100
        return theta, theta


@pytest.fixture
def steps(factory):
    """Makes a stage to step by hand; settings, images per class and data are the test's choice."""

    def make(real: Blobs | None = None, **changes: object) -> Steps:
        stage = IDC(factory, **{**SETTINGS, **changes})
        return Steps(stage, started(real or Blobs(), stage.decode_factor))

    return make


def freeze_stage(steps: Steps) -> None:
    """Ends stage 1 by hand."""
    stage, data = steps.stage, steps.data
    union = data.union.append(stage.images.detach().clone(), stage.labels)
    change(data, union=union, trajectories=Pool(flatten(dict(stage.build_network().named_parameters())).numel()))
    stage.restart(data.generator("initial images", data.state.stage))


def parameters(steps: Steps) -> torch.Tensor:
    return flatten(dict(steps.stage._training.network.named_parameters())).detach().clone()


def test_the_gradient_reaches_the_new_images_of_the_class_and_only_them(steps):
    taken = steps(ipc=2, batch_syn=100)
    freeze_stage(taken)
    frozen = taken.data.union.sha256()
    for iteration in range(CLASSES):
        taken.stage.images.grad = None
        loss = taken.loss(iteration)
        loss.backward()
        touched = taken.stage.images.grad.flatten(1).any(1).tolist()
        assert float(loss.detach()) > 0
        assert touched == [label == iteration for label in range(CLASSES) for _ in range(2)]
    assert taken.data.union.sha256() == frozen and not taken.data.union.images.requires_grad
    assert [name for name, _ in taken.stage.named_parameters()] == ["images"]


def test_the_loss_is_that_of_the_definition(steps):
    """Written out for the first class of the second stage, at rate of pixels in [0, 1]."""
    taken = steps(match_augment="none", batch_syn=100)
    freeze_stage(taken)
    stage, data = taken.stage, taken.data
    batch = stage.draw_batch(0, torch.Generator().manual_seed(1))
    loss = stage.matching_loss(batch)
    loss.backward()
    network = stage._training.network
    kernels = [parameter for parameter in network.parameters() if parameter.dim() == 4]
    pixels = data.real.pixels
    unit = pixels.decode(stage.images.detach()[:1]).requires_grad_()
    frozen = data.union.images[data.union.labels == 0]
    synthetic, _ = decode(torch.cat([pixels.decode(frozen), unit]), torch.zeros(2), 2)
    real = pixels.encode(to_unit(data.real.train.images[batch.real]))

    def gradients(images: torch.Tensor, differentiable: bool) -> tuple[torch.Tensor, ...]:
        labels = torch.zeros(len(images), dtype=torch.int64)
        return torch.autograd.grad(F.cross_entropy(network(images), labels), kernels, create_graph=differentiable)

    pairs = zip(gradients(real, False), gradients(pixels.encode(synthetic), True), strict=True)
    expected = sum((a - b).square().sum() for a, b in pairs)
    torch.testing.assert_close(loss, expected)
    (expected_gradient,) = torch.autograd.grad(expected, unit)
    # A step of SGD in model space, seen in [0, 1], is a step with the gradient of the pixels.
    step = stage.images.grad[:1] * (pixels.level(1.0) - pixels.level(0.0)).reciprocal()
    torch.testing.assert_close(step, expected_gradient, rtol=1e-4, atol=1e-4 * float(expected_gradient.abs().max()))


def exact(taken: Steps, batch: object, one_by_one: bool, norm: str = "instance") -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and image gradient in float64, with or without taking images of earlier stages for constants."""
    torch.manual_seed(0)
    network = ConvNet(3, CLASSES, 8, depth=2, width=6, norm=norm).double()
    params = {name: parameter.detach() for name, parameter in network.named_parameters()}
    stage = taken.stage.double()
    sides = stage._sides(batch, one_by_one)
    sides = sides._replace(real=sides.real.double(), weights=sides.weights.double())
    loss = class_distance(network, params, sides, kernel_distance)
    (gradient,) = torch.autograd.grad(loss, stage.images)
    return loss.detach(), gradient


@pytest.mark.parametrize("chosen", [range(16), (0, 3, 7, 10), (2, 3), (0, 1, 4, 5)], ids=["all", "some", "new", "old"])
def test_constants_of_earlier_stages_change_neither_loss_nor_gradient(steps, chosen):
    """Of 16 pieces, each second pair is of the new images."""
    taken = steps(ipc=2)
    freeze_stage(taken)
    batch = taken.stage.draw_batch(1, torch.Generator().manual_seed(1))
    frozen, new = ([index for index in chosen if (index % 4 >= 2) == learned] for learned in (False, True))
    batch = batch._replace(frozen=torch.tensor(frozen, dtype=torch.int64), new=torch.tensor(new, dtype=torch.int64))
    (loss, gradient), (joint, expected) = (exact(taken, batch, one_by_one) for one_by_one in (True, False))
    torch.testing.assert_close(loss, joint, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)
    assert bool(gradient.any()) == bool(new)


def test_batch_norms_see_images_of_all_stages_at_once(steps, monkeypatch):
    """The reason why the others are not taken for constants there: it would be something else."""
    taken = steps(ipc=2, batch_syn=100)
    freeze_stage(taken)
    batch = taken.stage.draw_batch(1, torch.Generator().manual_seed(1))
    apart, joint = (exact(taken, batch, one_by_one, "batch")[0] for one_by_one in (True, False))
    assert abs(apart - joint) > 1e-3 * joint
    seen = []
    taken.stage.network = partial(ConvNet, depth=2, width=6, norm="batch")
    size = flatten(dict(taken.stage.build_network().named_parameters())).numel()
    change(taken.data, trajectories=Pool(size))
    monkeypatch.setattr(idc, "class_distance", lambda network, params, sides, distance: seen.append(sides))
    taken.stage.matching_loss(batch)
    assert (len(seen[0].frozen), len(seen[0].new)) == (0, 16)


def test_classes_take_turns_and_batches_are_theirs(steps):
    taken = steps(batch_real=100, batch_syn=3)
    freeze_stage(taken)
    train = taken.data.real.train
    for iteration in range(2 * CLASSES):
        batch = taken.stage.draw_batch(iteration, torch.Generator().manual_seed(0))
        assert sorted(batch.real.tolist()) == train.images_of_class(iteration % CLASSES).tolist()
        chosen = torch.cat([batch.frozen, batch.new])
        assert len(chosen) == 3 and int(chosen.max()) < 8
        assert all(parameter.numel() == 1 for parameter in batch.draw.parameters)


def test_a_network_lives_for_inner_rounds_and_is_trained_after_each(steps):
    taken, seen = steps(), []
    for iteration in range(4 * CLASSES):
        taken.loss(iteration)
        seen.append(tuple(parameters(taken).tolist()))
    rounds = [seen[start : start + CLASSES] for start in range(0, len(seen), CLASSES)]
    assert [len(set(members)) for members in rounds] == [1] * 4
    assert len({members[0] for members in rounds}) == 4
    trained = (torch.tensor(rounds[1][0]) - torch.tensor(rounds[0][0])).norm()
    renewed = (torch.tensor(rounds[2][0]) - torch.tensor(rounds[1][0])).norm()
    assert 0 < trained < 0.5 * renewed


def test_later_stages_begin_with_networks_of_the_pool(steps):
    taken, chosen = steps(), set()
    freeze_stage(taken)
    for life in range(12):
        taken.loss(life * CLASSES * SETTINGS["inner"])
        chosen.add(round(100 * float(parameters(taken)[0])))
    assert chosen == {1, 2, 3}


def test_mixed_initial_images_hold_reduced_real_ones(steps):
    taken = steps(ipc=2)
    pixels, train = taken.data.real.pixels, taken.data.real.train
    assert taken.stage.images.shape == (6, 3, 8, 8)
    reduced = F.interpolate(pixels.encode(to_unit(train.images)), (4, 4), mode="bilinear", antialias=True)
    for label in range(CLASSES):
        images = taken.stage.images.detach()[taken.stage.labels == label]
        pieces = images.view(2, 3, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(8, -1)
        distances = torch.cdist(pieces, reduced.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
        found = distances.argmin(1)
        assert float(distances.min(1).values.max()) < 1e-4
        assert len(set(found.tolist())) == 8 and set(train.labels[found].tolist()) == {label}


@pytest.mark.parametrize("init", ["mix", "real", "noise"])
def test_initial_images_lie_between_black_and_white(steps, init):
    taken = steps(init=init)
    unit = taken.data.real.pixels.decode(taken.stage.images.detach())
    assert float(unit.min()) > -1e-5 and float(unit.max()) < 1 + 1e-5
    assert float(unit.std()) > 0.05


def test_the_published_rate_is_the_default(factory):
    assert IDC(factory, ipc=2).lr_img == pytest.approx(1e-3) and IDC(factory, ipc=10).lr_img == pytest.approx(5e-3)
    assert IDC(factory, ipc=2, lr_img=0.3).settings["lr_img"] == 0.3


@pytest.mark.parametrize(
    ("changes", "real", "error", "message"),
    [
        ({}, Blobs(normalization="zca"), ConfigError, "normalization to standard"),
        ({"factor": 5}, Blobs(), ConfigError, "images of 8 pixels cannot be divided into 5"),
        ({"ipc": 5}, Blobs(), DataError, "fewer than the 20 that ipc=5 initial images are made of"),
        ({"network": lambda *_: nn.Linear(4, 3)}, Blobs(), ConfigError, "Linear has none"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(factory, changes, real, error, message):
    stage = IDC(**{"network": factory, **SETTINGS, **changes})
    with pytest.raises(error, match=message):
        Steps(stage, started(real, stage.decode_factor))


@pytest.mark.parametrize("bad", [{"factor": 0}, {"inner": 0}, {"net_images": 0}, {"lr_net": 0.0}, {"cutmix": 2.0}])
def test_settings_out_of_range_are_refused(factory, bad):
    with pytest.raises(ConfigError, match=next(iter(bad)).split("_")[0]):
        IDC(factory, **bad)


class Watch(Callback):
    """Notes what each iteration leaves, and stops the run after one of them."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.fail_after, self.done = fail_after, 0
        self.extremes: list[tuple[float, float]] = []
        self.classes: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        unit = pl_module.data.real.pixels.decode(pl_module.images.detach())
        self.extremes.append((float(unit.min()), float(unit.max())))
        self.classes.append(batch.iteration)
        self.done += 1
        if self.done == self.fail_after:
            raise RuntimeError("killed")


class Run:
    """Two stages on blobs, in process."""

    def __init__(self, folder, factory, watch=None, iterations=10, **changes):
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        self.stage = IDC(factory, **{**SETTINGS, "lr_img": 2.0, **changes})
        self.data, self.watch = ProgressiveDataModule(Blobs(), seed=4), watch or Watch()
        transition = TransitionSettings(epochs=3, batch_size=8, cutmix=0.5, milestones=(0.7,))
        self.advance = StageAdvance(2, iterations, ExpertSettings(number=2), transition)
        self.folder = folder
        checkpoint = RollingCheckpoint(folder / "checkpoints", every_n_iterations=2)
        self.trainer = Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=-1,
            default_root_dir=folder, callbacks=[self.advance, checkpoint, self.watch],
        )  # fmt: skip

    def fit(self) -> SyntheticSet:
        last = self.folder / "checkpoints" / "last.ckpt"
        self.trainer.fit(self.stage, datamodule=self.data, ckpt_path=last if last.exists() else None)
        return self.data.union


@pytest.fixture(scope="module")
def straight(tmp_path_factory, factory):
    run = Run(tmp_path_factory.mktemp("straight"), factory)
    run.fit()
    return run


def test_a_run_makes_two_stages_within_bounds(straight):
    union = straight.data.union
    assert union.decode_factor == 2 and union.stages.tolist() == [1, 1, 1, 2, 2, 2]
    assert [report.images for report in straight.advance.history] == [3, 6]
    assert straight.watch.classes == [*range(10), *range(10)]
    extremes = torch.tensor(straight.watch.extremes)
    assert float(extremes[:, 0].min()) > -1e-5 and float(extremes[:, 1].max()) < 1 + 1e-5
    # The rate is high enough for the bounds to matter.
    assert float((straight.data.real.pixels.decode(union.images) < 1e-6).float().mean()) > 0.01


def test_transitions_train_on_decoded_images_with_the_schedule_given(straight):
    manifest = json.loads((straight.folder / "experts" / "theta_1" / "manifest.json").read_text())
    start = manifest["settings"]["start"]
    first = straight.data.union.union(1)
    assert start["union"] == first.decoded(straight.data.real.pixels).sha256() != first.sha256()
    assert (start["training"]["milestones"], start["training"]["cutmix"]) == ([0.7], 0.5)


@pytest.mark.parametrize("moments", [(5,), (8,), (11,), (15,), (5, 1, 4)])
def test_a_stopped_run_continues_to_the_same_images(moments, straight, factory, tmp_path):
    """In the middle of a round, at its end, after the transition, in stage 2, and again right after continuing."""
    for moment in moments:
        with pytest.raises(RuntimeError, match="killed"):
            Run(tmp_path, factory, Watch(fail_after=moment)).fit()
    assert Run(tmp_path, factory).fit().sha256() == straight.data.union.sha256()


def test_the_network_is_part_of_the_position(straight, factory, tmp_path):
    """A checkpoint without it leads elsewhere: the test above can fail."""
    with pytest.raises(RuntimeError, match="killed"):
        Run(tmp_path, factory, Watch(fail_after=5)).fit()
    path = tmp_path / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    assert state["matching_network"] is not None
    CheckpointFiles().save_checkpoint({**state, "matching_network": None}, path)
    assert Run(tmp_path, factory).fit().sha256() != straight.data.union.sha256()


def test_a_checkpoint_of_another_factor_is_refused(factory, tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        Run(tmp_path, factory, Watch(fail_after=3)).fit()
    with pytest.raises(ConfigError, match=r"model\.factor: 2 on disk, 1 asked for"):
        Run(tmp_path, factory, factor=1, init="real").fit()


def test_networks_with_batch_norm_go_through(tmp_path):
    network = partial(ConvNet, depth=1, width=4, norm="batch")
    assert Run(tmp_path, network, iterations=4).fit().num_stages == 2
