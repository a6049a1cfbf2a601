"""Settings that nobody names: the defaults, which are the published values where there are some."""

import dataclasses
import importlib
import inspect
import pkgutil
from functools import partial

import pytest

import pdd_lightning
from pdd_lightning.evaluation import EvaluationSettings, evaluate
from pdd_lightning.evaluation.continual import ContinualSettings, learn_tasks
from pdd_lightning.evaluation.describe import describe_stages
from pdd_lightning.evaluation.tasks import run_tasks
from pdd_lightning.experts import ExpertRecorder, ExpertSettings
from pdd_lightning.networks import ConvNet
from pdd_lightning.progression import PoolSettings, StageAdvance, TransitionSettings
from pdd_lightning.stages import DATM, FTD, IDC, DistributionMatching, GradientMatching, TrajectoryMatching
from pdd_lightning.training import TrainingSettings

DSA_OPERATIONS = "color_crop_cutout_flip_scale_rotate"
PLAIN_STEPS = {"rho": 0.0, "alpha": 0.0, "cutmix": 0.0}
SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 256, "milestones": (0.5,), "gamma": 0.1}
MATCHING = {"ipc": 1, "momentum": 0.5, "init": "real", "augment": DSA_OPERATIONS, "augment_together": False}
MTT = {
    **MATCHING, "align_corners": True, "syn_steps": 20, "expert_epochs": 2, "max_start_epoch": 20, "batch_syn": None,
    "lr_img": 1000.0, "lr_lr": 1e-5, "lr_teacher": 0.01, "unroll_mode": "auto",
}  # fmt: skip


def without(settings, *names):
    return {name: value for name, value in settings.items() if name not in names}


@pytest.mark.parametrize(
    ("settings", "defaults"),
    [
        (TrainingSettings(epochs=3), {"epochs": 3, **SGD, **PLAIN_STEPS}),
        (TransitionSettings(), {**without(SGD, "lr"), "epochs": 1000, "cutmix": 0.0, "at_once": 1}),
        (
            ExpertSettings(),
            {
                "number": 100, "epochs": None, "lr": 0.01, "batch_size": 256, "momentum": 0.0, "weight_decay": 0.0,
                "rho": 0.0, "alpha": 0.0, "folder": None, "inits": "continue", "images_per_epoch": None,
            },
        ),
        (PoolSettings(), {"renew_every": None}),
        (
            EvaluationSettings(),
            {
                **SGD, "num_networks": 5, "random_sets": 10, "epochs": 500, "protocols": ("progressive",),
                "baselines": ("random",),
                "full_data_epochs": 0, "cutmix": 0.0, "augment": None, "expert_inits": False, "every_stage": False,
            },
        ),
        (
            ContinualSettings(),
            {
                "protocols": ("gdumb", "replay"), "memories": ("distilled", "random", "herding", "none"),
                "num_networks": 5, "gdumb": {"epochs": 1000, **SGD, **PLAIN_STEPS},
                "replay": {"epochs": 50, **SGD, **PLAIN_STEPS, "batch_size": 64},
            },
        ),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_defaults_of_training(settings, defaults):
    assert dataclasses.asdict(settings) == defaults


@pytest.mark.parametrize(
    ("method", "defaults"),
    [
        (TrajectoryMatching, MTT),
        (
            DATM,
            {
                **MTT, "min_start_epoch": 0, "first_max_start_epoch": None, "window_growth": 1.0, "lr_label": 2.0,
                "momentum_label": 0.9,
            },
        ),
        (FTD, {**MTT, "image_average": 0.9995}),
        (DistributionMatching, {**MATCHING, "align_corners": False, "real_batch": 256, "lr_img": 1.0}),
        (
            GradientMatching,
            {
                **MATCHING, "align_corners": False, "metric": "ours", "outer": None, "inner": None, "real_batch": 256,
                "lr_net": 0.01, "batch_net": 256, "lr_img": 0.1,
            },
        ),
        (
            IDC,
            {
                "ipc": 1, "factor": 2, "lr_img": 0.0005, "momentum": 0.5, "init": "mix", "metric": "mse", "inner": 100,
                "batch_real": 64, "batch_syn": 128, "net_images": 2000, "lr_net": 0.01, "batch_net": 64, "cutmix": 0.5,
                "match_augment": "color_crop_cutout", "net_augment": "color_crop",
                "augment": "color_crop_flip_scale_rotate", "align_corners": False,
                "augment_together": True,
            },
        ),
    ],
)  # fmt: skip
def test_defaults_of_methods(method, defaults):
    assert without(method(partial(ConvNet, depth=2, width=4)).settings, "network", "method") == defaults


def test_the_rate_of_idc_grows_with_the_images():
    assert IDC(ConvNet, ipc=10).lr_img == pytest.approx(5e-3)


def test_defaults_of_a_run():
    advance = StageAdvance()
    assert (advance.num_stages, advance.iterations) == (5, 5000)
    assert (advance.experts, advance.transition, advance.pool) == (
        ExpertSettings(), TransitionSettings(), PoolSettings()
    )  # fmt: skip


@pytest.mark.parametrize("work", [ExpertRecorder, evaluate, learn_tasks, describe_stages, run_tasks])
def test_long_work_shows_a_bar_unless_told_otherwise(work):
    assert inspect.signature(work).parameters["progress"].default is True


def test_what_was_checked_stays_as_it_was():
    """All dataclasses are frozen, except what the end of the process depends on."""
    found = {}
    for module in pkgutil.walk_packages(pdd_lightning.__path__, "pdd_lightning."):
        if module.name.endswith("__main__"):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.name:
                found[value.__name__] = value.__dataclass_params__.frozen
    assert {"TrainingSettings", "Subject", "StartPoint"} <= set(found)
    assert {name for name, frozen in found.items() if not frozen} == {"_State"}
