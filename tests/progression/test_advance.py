"""The callback that runs the stages: begun anew, saved in a transition, and refused."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer

from pdd_lightning.callbacks.checkpoint import RollingCheckpoint
from pdd_lightning.data.progressive import ProgressiveDataModule
from pdd_lightning.errors import ConfigError
from pdd_lightning.experts import ExpertSettings
from pdd_lightning.networks import ConvNet
from pdd_lightning.progression import StageAdvance, StageObserver, TransitionSettings
from pdd_lightning.stages import DistributionMatching, GradientMatching
from tests.tiny import Blobs

NETWORK = partial(ConvNet, depth=2, width=4)


class Save(StageObserver):
    """Saves a checkpoint when the networks after a stage are ready, and counts iterations."""

    def __init__(self, path=None, after=1):
        self.path, self.after, self.iterations, self.history = path, after, 0, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.iterations += 1

    def on_experts_ready(self, trainer, stage_module, store, after_stage):
        if self.path is not None and after_stage == self.after:
            trainer.save_checkpoint(self.path, weights_only=False)
            raise InterruptedError

    def on_stage_end(self, trainer, stage_module, history):
        self.history = list(history)


def stages(number=2):
    return StageAdvance(number, 4, ExpertSettings(number=2), TransitionSettings(epochs=2))


def fit(folder, advance=None, watch=None, module=None, ckpt_path=None, seed=0, precision="32-true"):
    watch = watch or Save()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=-1,
        default_root_dir=folder, precision=precision,
        callbacks=[advance or stages(), RollingCheckpoint(folder / "checkpoints", 2), watch],
    )  # fmt: skip
    data = ProgressiveDataModule(Blobs(), seed)
    module = module or DistributionMatching(NETWORK, lr_img=0.1)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return data.union, watch


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("straight"))


def test_a_callback_that_is_used_again_begins_anew(tmp_path, straight):
    advance = stages()
    for folder in ("first", "second"):
        union, watch = fit(tmp_path / folder, advance)
        assert watch.iterations == 8 and [report.stage for report in watch.history] == [1, 2]
        assert torch.equal(union.images, straight[0].images)


@pytest.mark.parametrize("after", [1, 2])
def test_a_checkpoint_of_a_transition_continues_it(after, tmp_path, straight):
    """As batch systems save one when they take the machine away."""
    path = tmp_path / "transition.ckpt"
    with pytest.raises(InterruptedError):
        fit(tmp_path, watch=Save(path, after))
    union, watch = fit(tmp_path, ckpt_path=path)
    assert watch.iterations == (4 if after == 1 else 0)
    assert [report.stage for report in watch.history] == [1, 2]
    assert torch.equal(union.images, straight[0].images)
    reports = [(report.images, report.last_loss, report.val_accuracy) for report in watch.history]
    assert reports == [(report.images, report.last_loss, report.val_accuracy) for report in straight[1].history]


def test_another_precision_or_method_is_refused_in_words(tmp_path):
    path = tmp_path / "transition.ckpt"
    with pytest.raises(InterruptedError):
        fit(tmp_path, watch=Save(path))
    with pytest.raises(ConfigError, match="precision: '32-true' on disk, 'bf16-mixed' asked for"):
        fit(tmp_path, ckpt_path=path, precision="bf16-mixed")
    with pytest.raises(ConfigError, match="method: 'DistributionMatching' on disk, 'GradientMatching' asked for"):
        fit(tmp_path, ckpt_path=path, module=GradientMatching(NETWORK))


class Forgetful(DistributionMatching):
    def __init__(self, network, power=2.0):
        super().__init__(network)


class Power:
    def __init__(self, *args, power=2.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.power = power


class Mixed(Power, DistributionMatching):
    pass


def test_settings_have_every_argument_or_say_which_one_they_lack():
    assert Mixed(NETWORK, power=3.0, real_batch=7).settings.items() >= {"power": 3.0, "real_batch": 7}.items()
    with pytest.raises(ConfigError, match=r"Forgetful must keep its argument 'power' as self\.power"):
        _ = Forgetful(NETWORK).settings
    with pytest.raises(ConfigError, match="init must be one of real, noise, got 'reall'"):
        DistributionMatching(NETWORK, init="reall")
