"""What FTD and DATM add to trajectory matching: gradients of soft labels, the images' average, and whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from pdd_lightning import DistilledDataset
from pdd_lightning.cli import main
from pdd_lightning.data.progressive import ProgressiveDataModule, StageBatches
from pdd_lightning.errors import ConfigError
from pdd_lightning.experts import ExpertSettings
from pdd_lightning.progression import StageAdvance
from pdd_lightning.stages import DATM, FTD
from tests.tiny import Blobs, change, started

RECIPE = """
seed_everything: 3
model:
  class_path: pdd_lightning.stages.DATM
  init_args:
    network:
      class_path: pdd_lightning.networks.ConvNet
      init_args: {depth: 2, width: 4}
    ipc: 2
    syn_steps: 2
    expert_epochs: 1
    max_start_epoch: 3
    first_max_start_epoch: 1
    lr_img: 10.0
    lr_label: 5.0
data:
  real: {class_path: tests.tiny.Blobs}
stages:
  num_stages: 2
  iterations: 6
  experts: {number: 2, batch_size: 16, rho: 0.05, alpha: 0.4}
  transition: {epochs: 3}
evaluation: {num_networks: 1, epochs: 2}
checkpoint_every: 2
trainer: {accelerator: cpu, log_every_n_steps: 1}
"""


class Invented:
    """Trajectories of random parameters."""

    number = 2

    def __init__(self, size):
        self.size = size

    def segment(self, expert, first, last):
        draw = [torch.Generator().manual_seed(100 * expert + epoch) for epoch in (first, last)]
        return tuple(0.3 * torch.randn(self.size, generator=generator) for generator in draw)


class Alone(DATM):
    """The stage without a trainer, on generated data."""

    def __init__(self, factory, **options):
        super().__init__(factory, ipc=2, syn_steps=3, max_start_epoch=3, batch_syn=4, **options)
        self._data = started(Blobs())
        self.setup("fit")
        change(self._data, trajectories=Invented(sum(weight.numel() for weight in self.student.parameters())))
        self.restart(torch.Generator().manual_seed(0))

    @property
    def data(self):
        return self._data

    def log(self, *args, **kwargs):
        pass


@pytest.fixture(params=["first stage", "second stage"])
def precise(request, factory):
    """Makes stages in float64, without or with frozen images, and the batch to try them on."""

    def make(mode):
        stage = Alone(factory, lr_label=1.0, unroll_mode=mode)
        if request.param == "second stage":
            change(stage.data, union=stage.data.union.append(*stage.distilled, 0.02))
            stage.restart(torch.Generator().manual_seed(1))
        batch = stage.draw_batch(0, torch.Generator().manual_seed(2))
        stage.double()
        stage._student[0].double()
        return stage, batch._replace(start=batch.start.double(), target=batch.target.double())

    return make


@pytest.mark.parametrize("mode", ["stored", "constant", "higher"])
def test_the_labels_gradient_is_that_of_finite_differences(precise, mode):
    stage, batch = precise(mode)
    stage.matching_loss(batch).backward()
    for parameter in (stage.label_logits, stage.images, stage.log_lr):
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * 1e-5 * direction)
                losses.append(stage.matching_loss(batch).item())
                parameter.sub_(sign * 1e-5 * direction)
        slope = (losses[0] - losses[1]) / 2e-5
        assert slope == pytest.approx((parameter.grad * direction).sum().item(), rel=1e-5)
        assert abs(slope) > 1e-6


def test_one_hot_soft_labels_are_hard_labels(factory):
    soft, hard = Alone(factory, lr_label=1.0), Alone(factory, lr_label=None)
    with torch.no_grad():
        hard.images.copy_(soft.images)
        soft.label_logits.copy_(1000 * torch.nn.functional.one_hot(soft.labels, 3))
    batch = hard.draw_batch(0, torch.Generator().manual_seed(0))
    assert soft.matching_loss(batch).item() == pytest.approx(hard.matching_loss(batch).item(), rel=1e-5)
    images, labels = soft.distilled
    assert torch.equal(images, soft.images) and torch.equal(labels.argmax(1), hard.distilled[1])


def test_labels_have_a_rate_and_a_momentum_of_their_own(factory):
    groups = Alone(factory, lr_label=2.0, momentum_label=0.7).configure_optimizers().param_groups
    assert [group["momentum"] for group in groups] == [0.5, 0.5, 0.7]
    assert groups[2]["lr"] == 2.0 and groups[2]["params"][0].shape == (6, 3)
    assert len(Alone(factory, lr_label=None).configure_optimizers().param_groups) == 2
    assert "label_logits" not in dict(Alone(factory, lr_label=None).named_parameters())


def test_batches_follow_the_window_of_the_iteration_they_are_for(factory):
    """Also where all of them are fetched before a single iteration is done."""
    stage = Alone(factory, first_max_start_epoch=1)
    change(stage.data, iterations=150)
    seen, segment = [], stage.trajectories.segment
    stage.trajectories.segment = lambda expert, first, last: (seen.append(first), segment(expert, first, last))[1]
    batches = list(StageBatches(stage.data, stage.draw_batch))
    assert stage.state.iteration == 0
    assert [set(seen[start : start + 50]) for start in (0, 50, 100)] == [{0}, {0, 1}, {0, 1, 2}]
    change(stage.data, iteration=100)  # continued there
    again = list(StageBatches(stage.data, stage.draw_batch))
    assert all(torch.equal(a.start, b.start) for a, b in zip(again, batches[100:], strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_label": 0.0}, "lr_label must be > 0"),
        ({"lr_label": 1.0, "init": "noise"}, "set init to real"),
        ({"momentum_label": 1.0}, "momentum_label"),
        ({"min_start_epoch": 20}, "min_start_epoch"),
        ({"window_growth": 0.0}, "window_growth"),
    ],
)
def test_settings_that_cannot_work_are_refused(factory, options, message):
    with pytest.raises(ConfigError, match=message):
        DATM(factory, **options)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def fit(recipe: Path, folder: Path, *words: object) -> DistilledDataset | None:
    main(["fit", "--config", str(recipe), "--trainer.default_root_dir", str(folder), *map(str, words)])
    file = folder / "distilled.safetensors"
    return DistilledDataset(file) if file.exists() else None


@pytest.fixture(scope="module")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit(recipe, folder)
    return folder


def test_a_run_ends_with_class_probabilities(run: Path) -> None:
    dataset = DistilledDataset(run / "distilled.safetensors")
    assert dataset.images.shape == (12, 3, 8, 8)
    assert dataset.labels.shape == (12, 3) and dataset.labels.dtype == torch.float32
    torch.testing.assert_close(dataset.labels.sum(1), torch.ones(12))
    assert dataset[0][1].shape == (3,) and dataset.union(1).labels.shape == (6, 3)
    assert 0.34 < float(dataset.labels.max(1).values.mean()) < 0.999
    assert dataset.metadata["settings"]["lr_label"] == 5.0
    assert (run / "images" / "union.png").exists()


@pytest.mark.parametrize("steps", [3, 8])
def test_a_run_left_in_mid_stage_continues_to_the_same_set(steps: int, recipe: Path, run: Path, tmp_path: Path) -> None:
    fit(recipe, tmp_path, "--trainer.max_steps", steps)
    continued = fit(recipe, tmp_path, "--ckpt_path", "last")
    straight = DistilledDataset(run / "distilled.safetensors")
    assert continued is not None
    assert torch.equal(continued.images, straight.images)
    assert torch.equal(continued.labels, straight.labels)
    assert continued.learning_rates == straight.learning_rates


def test_the_distilled_file_is_evaluated_and_tested(recipe: Path, run: Path, tmp_path: Path) -> None:
    data, output = tmp_path / "data.yaml", tmp_path / "results.json"
    data.write_text("class_path: tests.tiny.Blobs\n")
    words = ["evaluate", run / "distilled.safetensors", "--data", data, "--num_networks", 1, "--epochs", 2]
    main([str(word) for word in [*words, "--output", output]])
    assert [row["row"] for row in json.loads(output.read_text())["rows"]] == ["distilled", "random real"]
    main(["test", "--config", str(recipe), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")])
    rows = json.loads((run / "summary.json").read_text())["evaluation"]
    assert [(row["part"], row["row"], row["images"]) for row in rows] == [
        ("val", "distilled", 12),
        ("val", "random real", 12),
        ("test", "distilled", 12),
        ("test", "random real", 12),
    ]


def test_a_checkpoint_of_other_options_is_refused(recipe: Path, run: Path, tmp_path: Path) -> None:
    words = ["--ckpt_path", run / "checkpoints" / "last.ckpt", "--model.lr_label", "null"]
    with pytest.raises(SystemExit, match=r"it holds .*'label_logits': \[6, 3\].*, these settings need {'images'"):
        fit(recipe, tmp_path, *words)


def test_what_a_failed_run_leaves_has_soft_labels_too(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"lr_label \(now 5\)"):
        fit(recipe, tmp_path, "--model.lr_img", 1e25, "--stages.num_stages", 1)
    left = DistilledDataset(tmp_path / "last_good.safetensors")
    assert left.images.isfinite().all() and left.labels.shape == (6, 3)


class Watch(StageAdvance):
    """Remembers the images after each iteration, and what the stage would give."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        super().on_train_batch_end(trainer, pl_module, *args)
        self.seen = [*getattr(self, "seen", []), pl_module.images.detach().clone()]
        self.given = pl_module.distilled[0].clone()

    def on_train_epoch_end(self, trainer, pl_module):
        self.pending = self.given
        super().on_train_epoch_end(trainer, pl_module)


def test_the_union_gets_the_average_of_the_images(factory, tmp_path) -> None:
    for decay in (-0.5, 0.0, 1.0, 1.5):
        with pytest.raises(ConfigError, match="image_average"):
            FTD(factory, image_average=decay)
    stage = FTD(factory, 0.8, ipc=1, syn_steps=2, expert_epochs=1, max_start_epoch=2, lr_img=50.0)
    data = ProgressiveDataModule(Blobs())
    advance = Watch(1, 4, ExpertSettings(number=1, batch_size=16))
    trainer = Trainer(
        accelerator="cpu", max_epochs=-1, logger=False, default_root_dir=tmp_path, callbacks=[advance],
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    starts = []
    restart = stage.restart
    stage.restart = lambda generator: (restart(generator), starts.append(stage.images.detach().clone()))
    trainer.fit(stage, datamodule=data)
    (expected,) = starts
    for images in advance.seen:
        expected = 0.8 * expected + 0.2 * images
    assert len(advance.seen) == 4
    torch.testing.assert_close(data.union.images, expected)
    assert not torch.allclose(data.union.images, advance.seen[-1])
