"""The callback that runs the stages: begun anew, saved in a transition, and refused."""

import json
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from pdd_lightning import distributed
from pdd_lightning.callbacks.checkpoint import RollingCheckpoint
from pdd_lightning.data.progressive import ProgressiveDataModule
from pdd_lightning.errors import ConfigError
from pdd_lightning.experts import ExpertSettings
from pdd_lightning.networks import ConvNet
from pdd_lightning.progression import PoolSettings, StageAdvance, StageObserver, TransitionSettings
from pdd_lightning.progression import advance as advance_module
from pdd_lightning.progression.checks import check_method, check_method_unchanged
from pdd_lightning.stages import DistributionMatching, GradientMatching, TrajectoryMatching
from tests.tiny import Blobs, DropoutNet

NETWORK = partial(ConvNet, depth=2, width=4)


class Save(StageObserver):
    """Saves a checkpoint when the networks after a stage are ready, and counts iterations."""

    def __init__(self, path=None, after=1):
        self.path, self.after, self.iterations, self.history = path, after, 0, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.iterations += 1
        self.rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_experts_ready(self, trainer, stage_module, store, after_stage):
        if self.path is not None and after_stage == self.after:
            trainer.save_checkpoint(self.path, weights_only=False)
            raise InterruptedError

    def on_stage_end(self, trainer, stage_module, history):
        self.history = list(history)


def stages(number=2, networks=2, at_once=1):
    return StageAdvance(number, 4, ExpertSettings(number=networks), TransitionSettings(epochs=2, at_once=at_once))


def fit(folder, advance=None, watch=None, module=None, ckpt_path=None, seed=0, precision="32-true", **options):
    watch = watch or Save()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=1,
        default_root_dir=folder, precision=precision, **options,
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


def test_rates_and_how_many_networks_are_trained_at_once_may_change(tmp_path, straight):
    path = tmp_path / "transition.ckpt"
    with pytest.raises(InterruptedError):
        fit(tmp_path, watch=Save(path))
    other = DistributionMatching(NETWORK, lr_img=0.3)
    union, watch = fit(tmp_path, stages(at_once=2), module=other, ckpt_path=path)
    assert (watch.rate, straight[1].rate) == (0.3, 0.1)
    assert torch.equal(union.stage(1).images, straight[0].stage(1).images)
    assert not torch.equal(union.stage(2).images, straight[0].stage(2).images)


def test_networks_that_cannot_be_trained_at_once_are_refused_at_the_beginning(tmp_path):
    with pytest.raises(ConfigError, match="DropoutNet cannot be trained at once"):
        fit(tmp_path, stages(at_once=2), module=DistributionMatching(DropoutNet))
    assert not (tmp_path / "experts").exists()
    fit(tmp_path, stages(1), module=DistributionMatching(DropoutNet))


def test_a_stage_that_is_cut_short_still_ends(tmp_path, capsys):
    """After two of its four iterations; with one network there is no spread. The table comes at the end."""
    begin = time.perf_counter()
    _, watch = fit(tmp_path, stages(networks=1), limit_train_batches=2)
    passed = time.perf_counter() - begin
    assert watch.iterations == 4 and [report.stage for report in watch.history] == [1, 2]
    assert [(report.val_networks, report.val_std) for report in watch.history] == [(1, 0.0)] * 2
    seconds = [report.seconds for report in watch.history]
    assert all(part["distil"] > 0 and part["transition"] > 0 and part["experts"] >= 0 for part in seconds)
    assert sum(sum(part.values()) for part in seconds) < passed
    assert "first loss" in capsys.readouterr().out


@pytest.mark.parametrize(("rank", "printed"), [(0, True), (1, False)])
def test_the_first_process_alone_prints(straight, monkeypatch, capsys, rank, printed):
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    callback = stages()
    callback.history = straight[1].history
    callback.on_fit_end(None, None)
    advance_module.print_above_bars("stage 1 is done")
    shown = capsys.readouterr().out
    assert ("first loss" in shown, "stage 1 is done" in shown) == (printed, printed)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")
def test_the_peak_of_memory_is_that_of_the_process_in_megabytes(straight):
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    assert 0.2 * peak < straight[1].history[-1].peak_memory_mb <= 1.01 * peak


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_stages": 0}, "num_stages must be >= 1"),
        ({"iterations": 0}, "iterations must be >= 1"),
        ({"experts": ExpertSettings(epochs=21)}, r"up to epoch 22 .* records only 21"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    """Of the run alone, and beside those of the method; the least that works does."""
    method = TrajectoryMatching(NETWORK)
    with pytest.raises(ConfigError, match=message):
        check_method(method, "32-true", StageAdvance(**settings).experts, PoolSettings())
    check_method(method, "bf16-mixed", ExpertSettings(epochs=22), PoolSettings())
    check_method(DistributionMatching(NETWORK), "16-mixed", ExpertSettings(), PoolSettings(1))
    with pytest.raises(ConfigError, match="precision 64-true is not supported"):
        check_method(method, "64-true", ExpertSettings(), PoolSettings())


def test_a_run_is_evaluated_with_the_method_it_was_distilled_with():
    stored = {"model": json.loads(json.dumps(TrajectoryMatching(NETWORK, lr_img=5.0).settings))}
    for name in (*TrajectoryMatching.rates, *TrajectoryMatching.equivalent):
        del stored["model"][name]
    check_method_unchanged(stored, TrajectoryMatching(NETWORK, lr_img=7.0))
    with pytest.raises(ConfigError, match=r"model\.syn_steps: 20 on disk, 3 asked for"):
        check_method_unchanged(stored, TrajectoryMatching(NETWORK, syn_steps=3))


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
