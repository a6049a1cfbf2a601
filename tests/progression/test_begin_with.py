"""Runs that add stages to a distilled set."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from pdd_lightning.callbacks.checkpoint import RollingCheckpoint
from pdd_lightning.data.distilled import save_distilled
from pdd_lightning.data.progressive import ProgressiveDataModule
from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.experts import ExpertSettings
from pdd_lightning.progression import StageAdvance, TransitionSettings
from pdd_lightning.stages import GradientMatching, TrajectoryMatching
from tests.tiny import Blobs

STAGES = 3
METHODS = {
    "trajectories": (TrajectoryMatching, {"syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 1, "lr_img": 10.0}),
    "pool": (GradientMatching, {"outer": 1, "real_batch": 8}),
}
each_method = pytest.mark.parametrize("method", METHODS)


class Stop(Callback):
    """Ends the run in the middle of its last stage."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (pl_module.state.stage, pl_module.state.iteration) == (STAGES, 2):
            raise InterruptedError


def fit(folder, factory, method, *callbacks, begin_with=None, num_stages=STAGES, ipc=1, real=None):
    """A run on blobs, continued where there is a checkpoint; its union and the reports of its stages."""
    kind, settings = METHODS[method]
    experts, last = ExpertSettings(number=2, batch_size=16), folder / "checkpoints" / "last.ckpt"
    transition = TransitionSettings(epochs=3, batch_size=8)
    advance = StageAdvance(num_stages, 3, experts, transition, begin_with=begin_with)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=-1,
        default_root_dir=folder, callbacks=[advance, RollingCheckpoint(last.parent, 1), *callbacks],
    )  # fmt: skip
    data = ProgressiveDataModule(real or Blobs(), seed=4)
    module = kind(factory, ipc, augment="color_crop", **settings)
    trainer.fit(module, datamodule=data, ckpt_path=last if last.exists() else None)
    return data.union, advance.history


@pytest.fixture(scope="module")
def straight(tmp_path_factory, factory):
    """Of each method, the union of a whole run."""
    return {method: fit(tmp_path_factory.mktemp(method), factory, method)[0] for method in METHODS}


@pytest.fixture(scope="module")
def stored(straight, tmp_path_factory):
    """Stores the first stages of a whole run."""
    real = Blobs()
    real.setup()

    def store(method, stages, **changes):
        path = tmp_path_factory.mktemp("set") / "distilled.safetensors"
        save_distilled(path, replace(straight[method].union(stages), **changes), real.pixels, real.class_names, {})
        return str(path)

    return store


@each_method
@pytest.mark.parametrize("given", [1, 2])
def test_the_stages_added_are_those_of_a_whole_run(straight, stored, factory, method, given, tmp_path):
    union, history = fit(tmp_path, factory, method, begin_with=stored(method, given))
    assert union.sha256() == straight[method].sha256()
    assert [report.stage for report in history] == list(range(given + 1, STAGES + 1))


def test_stages_may_have_other_sizes_and_the_run_can_be_stopped(straight, stored, factory, tmp_path):
    given = stored("trajectories", 2)
    whole, _ = fit(tmp_path / "whole", factory, "trajectories", begin_with=given, ipc=2)
    assert whole.union(2).sha256() == straight["trajectories"].union(2).sha256()
    assert whole.stages.bincount().tolist() == [0, 3, 3, 6]
    with pytest.raises(InterruptedError):
        fit(tmp_path / "stopped", factory, "trajectories", Stop(), begin_with=given, ipc=2)
    assert fit(tmp_path / "stopped", factory, "trajectories", begin_with=given, ipc=2)[0].sha256() == whole.sha256()


def test_a_run_is_not_continued_with_another_set(stored, factory, tmp_path):
    with pytest.raises(InterruptedError):
        fit(tmp_path, factory, "trajectories", Stop(), begin_with=stored("trajectories", 2))
    other = stored("trajectories", 2, images=torch.ones(6, 3, 8, 8))
    with pytest.raises(ConfigError, match=r"begin_with: .* on disk"):
        fit(tmp_path, factory, "trajectories", begin_with=other)


@pytest.mark.parametrize(
    ("kind", "message", "changes", "options"),
    [
        (ConfigError, "has 3 stages already", {}, {}),
        (DataError, "another normalization", {}, {"num_stages": 4, "real": Blobs(content=7)}),
        (DataError, "stand for 2", {"decode_factor": 2}, {"num_stages": 4}),
        (ConfigError, "soft labels", {"labels": torch.full((9, 3), 1 / 3)}, {"num_stages": 4}),
    ],
)
def test_sets_that_do_not_fit_are_refused(kind, message, changes, options, stored, factory, tmp_path):
    with pytest.raises(kind, match=message):
        fit(tmp_path, factory, "trajectories", begin_with=stored("trajectories", 3, **changes), **options)
    assert not (tmp_path / "experts").exists()


def test_settings_of_the_first_experts_are_refused():
    with pytest.raises(ConfigError, match=r"stages\.experts\.folder"):
        StageAdvance(experts=ExpertSettings(folder="somewhere"), begin_with="set.safetensors")
