"""Pools of trained networks that are renewed in the course of a stage: what is drawn, continued, and left on disk."""

import json
import logging
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from pdd_lightning.callbacks.checkpoint import RollingCheckpoint
from pdd_lightning.data.progressive import ProgressiveDataModule
from pdd_lightning.errors import ConfigError
from pdd_lightning.experts import ExpertRecorder, ExpertSettings
from pdd_lightning.networks import flatten
from pdd_lightning.progression import PoolSettings, StageAdvance, TransitionSettings
from pdd_lightning.progression.transition import StageNetworks
from pdd_lightning.stages import GradientMatching, TrajectoryMatching
from tests.tiny import Blobs, started

ITERATIONS, EVERY, STAGES = 10, 4, 3


class Watch(Callback):
    """Notes the network of each iteration and the pool that it was drawn from; can stop the run."""

    def __init__(self, stop=None):
        self.stop = stop
        self.networks, self.pools = {}, {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        state = pl_module.state
        position = state.stage, state.iteration
        self.networks[position] = tuple(flatten(dict(pl_module._network[0].named_parameters())).tolist())
        if state.trajectories is not None:
            pool = [state.trajectories.segment(number, 0, 0)[0] for number in range(state.trajectories.number)]
            self.pools[position] = {tuple(network.tolist()) for network in pool}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.stop == (pl_module.state.stage, pl_module.state.iteration):
            raise InterruptedError


def fit(folder, factory, stop=None, pool=PoolSettings(EVERY)):  # noqa: B008  (frozen)
    """Three stages on blobs; every network lives for one iteration, so that it is one of the pool's."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    watch, last = Watch(stop), folder / "checkpoints" / "last.ckpt"
    transition = TransitionSettings(epochs=2, batch_size=8)
    advance = StageAdvance(STAGES, ITERATIONS, ExpertSettings(number=2), transition, pool=pool)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=-1,
        default_root_dir=folder, callbacks=[advance, RollingCheckpoint(last.parent, 3), watch],
    )  # fmt: skip
    data = ProgressiveDataModule(Blobs(), seed=4)
    stage = GradientMatching(factory, outer=1, real_batch=8, augment="color_crop")
    trainer.fit(stage, datamodule=data, ckpt_path=last if last.exists() else None)
    return data.union, watch


@pytest.fixture(scope="module")
def straight(tmp_path_factory, factory):
    folder = tmp_path_factory.mktemp("straight")
    return (*fit(folder, factory), folder)


def test_networks_are_those_of_a_pool_that_changes_when_it_should(straight):
    _, watch, _ = straight
    for stage in (2, 3):
        pools = [watch.pools[stage, iteration] for iteration in range(ITERATIONS)]
        assert all(watch.networks[stage, iteration] in pools[iteration] for iteration in range(ITERATIONS))
        changes = [i for i in range(1, ITERATIONS) if pools[i] != pools[i - 1]]
        assert changes == list(range(EVERY, ITERATIONS, EVERY))
        assert len(set.union(*pools)) == 3 * 2  # no network returns
    assert not any(stage == 1 for stage, _ in watch.pools)


def test_only_the_last_renewed_pool_and_those_of_transitions_stay(straight):
    folders = {path.name for path in (straight[2] / "experts").iterdir()}
    assert folders == {"theta_1", "theta_2", "theta_3_final", "theta_2_pool_2"}


def test_renewed_networks_go_through_all_unions(straight, factory):
    """Network number 4 of the run: it could as well have been trained with the first ones."""
    union, watch, folder = straight
    manifest = json.loads((folder / "experts" / "theta_2_pool_2" / "manifest.json").read_text())
    assert manifest["settings"]["start"]["union"] == union.union(2).sha256()
    experts = ExpertSettings(number=6)
    stage = GradientMatching(factory, outer=1, real_batch=8, augment="color_crop")
    data = started(Blobs(), union=union)
    data.seed = 4
    stage.__class__ = type("Held", (GradientMatching,), {"data": data})
    transition = TransitionSettings(epochs=2, batch_size=8)
    trainer = Trainer(default_root_dir=folder, accelerator="cpu", logger=False)
    networks = StageNetworks(trainer, stage, STAGES, experts, transition)
    recorder = ExpertRecorder(factory, data.real, experts, stage.augment, 4, torch.device("cpu"), progress=False)
    first = recorder.record(folder / "long_1", 0, networks.start_point(1, lambda: None))
    second = recorder.record(folder / "long_2", 0, networks.start_point(2, lambda: first))
    drawn = {tuple(second.segment(number, 0, 0)[0].tolist()) for number in (4, 5)}
    assert drawn == watch.pools[3, ITERATIONS - 1]


@pytest.mark.parametrize("stop", [(2, 3), (2, 4), (2, 5), (3, 9)], ids=["before", "at", "after", "last pool"])
def test_a_stopped_run_continues_to_the_same_images(stop, straight, factory, tmp_path):
    """Also where the checkpoint needs the pool that has just been deleted."""
    with pytest.raises(InterruptedError):
        fit(tmp_path, factory, stop)
    assert fit(tmp_path, factory)[0].sha256() == straight[0].sha256()


def test_an_interrupted_renewal_goes_on_where_it_was(straight, factory, tmp_path, monkeypatch):
    record, made = ExpertRecorder._record_expert, []

    def stop_at(limit):
        def watched(self, store, expert, *rest):
            if len(made) == limit:
                raise InterruptedError
            made.append((store.folder.name, expert))
            record(self, store, expert, *rest)

        monkeypatch.setattr(ExpertRecorder, "_record_expert", watched)

    done = 2 + 2 * 2 + 2 + 3  # after stage 1, in stage 2, after stage 2, and three of the four of the next renewal
    stop_at(done)
    with pytest.raises(InterruptedError):
        fit(tmp_path, factory)
    assert made[-3:] == [("theta_1_pool_1", 0), ("theta_1_pool_1", 1), ("theta_2_pool_1", 0)]
    stop_at(None)
    assert fit(tmp_path, factory)[0].sha256() == straight[0].sha256()
    assert made[done] == ("theta_2_pool_1", 1)


def test_a_renewed_pool_makes_other_images(straight, factory, tmp_path):
    images = fit(tmp_path, factory, pool=PoolSettings())[0]
    assert torch.equal(images.stage(1).images, straight[0].stage(1).images)
    assert not torch.equal(images.stage(2).images, straight[0].stage(2).images)


def test_another_interval_is_refused_when_a_run_is_continued(factory, tmp_path):
    with pytest.raises(InterruptedError):
        fit(tmp_path, factory, (1, 5))
    with pytest.raises(ConfigError, match=r"stages\.pool\.renew_every: 4 on disk, 5 asked for"):
        fit(tmp_path, factory, pool=PoolSettings(5))


def test_settings_that_cannot_work_are_refused(factory):
    with pytest.raises(ConfigError, match="renew_every must be >= 1"):
        PoolSettings(0)
    stage = TrajectoryMatching(partial(factory))
    trainer = type("T", (), {"fast_dev_run": True, "precision": "32-true"})()
    stage.__class__ = type("Held", (TrajectoryMatching,), {"data": ProgressiveDataModule(Blobs())})
    with pytest.raises(ConfigError, match=r"leave out\s+stages\.pool\.renew_every"):
        StageAdvance(pool=PoolSettings(3)).setup(trainer, stage, "fit")
