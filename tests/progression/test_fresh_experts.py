"""Experts from random initialisations of their own in every stage: where they start, and continued runs."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from pdd_lightning.callbacks.checkpoint import RollingCheckpoint
from pdd_lightning.data.progressive import ProgressiveDataModule
from pdd_lightning.errors import ConfigError
from pdd_lightning.experts import ExpertSettings, TrajectoryStore
from pdd_lightning.networks import flatten
from pdd_lightning.progression import StageAdvance, TransitionSettings
from pdd_lightning.randomness import generator_for, seeded
from pdd_lightning.stages import GradientMatching, TrajectoryMatching
from pdd_lightning.training import train_network
from tests.tiny import Blobs

SEED, STAGES, EXPERTS = 4, 3, 2
TRANSITION = TransitionSettings(epochs=3, batch_size=8)
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


def fit(folder, factory, method, *callbacks, inits="fresh"):
    """Three stages on blobs, continued where there is a checkpoint; the method's module."""
    kind, settings = METHODS[method]
    experts, last = ExpertSettings(number=EXPERTS, batch_size=16, inits=inits), folder / "checkpoints" / "last.ckpt"
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=-1,
        default_root_dir=folder,
        callbacks=[StageAdvance(STAGES, 3, experts, TRANSITION), RollingCheckpoint(last.parent, 1), *callbacks],
    )  # fmt: skip
    module = kind(factory, augment="color_crop", **settings)
    data = ProgressiveDataModule(Blobs(), seed=SEED)
    trainer.fit(module, datamodule=data, ckpt_path=last if last.exists() else None)
    return module


@pytest.fixture(scope="module")
def straight(tmp_path_factory, factory):
    """Of each method, the module after a whole run, and the folder."""
    folders = {method: tmp_path_factory.mktemp(method) for method in METHODS}
    return {method: (fit(folder, factory, method), folder) for method, folder in folders.items()}


@each_method
@pytest.mark.parametrize("stage", range(1, STAGES + 1))
def test_networks_are_others_in_each_stage_and_trained_through_all_unions(straight, factory, method, stage):
    module, folder = straight[method]
    store = TrajectoryStore.existing(folder / "experts" / f"theta_{stage}{'_final' if stage == STAGES else ''}")
    for expert in range(EXPERTS):
        number = stage * EXPERTS + expert
        with seeded(SEED, "expert init", number):
            network = factory(3, 3, 8)
        for union in map(module.data.union.union, range(1, stage + 1)):
            training = TRANSITION.training(union.learning_rates[-1] or module.default_lr)
            generator = generator_for(SEED, "transition", union.num_stages, number)
            train_network(network, union.images, union.labels, training, module.augment, generator)
        by_hand = flatten(dict(network.named_parameters())).detach()
        torch.testing.assert_close(store.segment(expert, 0, 0)[0], by_hand)


@each_method
def test_a_stopped_run_continues_to_the_same_images(straight, factory, method, tmp_path):
    with pytest.raises(InterruptedError):
        fit(tmp_path, factory, method, Stop())
    assert fit(tmp_path, factory, method).data.union.sha256() == straight[method][0].data.union.sha256()


def test_a_run_does_not_change_from_one_kind_to_the_other(factory, tmp_path):
    with pytest.raises(InterruptedError):
        fit(tmp_path, factory, "trajectories", Stop(), inits="continue")
    with pytest.raises(ConfigError, match=r"inits: 'continue' on disk, 'fresh' asked for"):
        fit(tmp_path, factory, "trajectories")
