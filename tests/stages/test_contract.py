"""What every distillation stage keeps, whatever its method: checked for each class found in the package."""

import functools
import importlib
import inspect
import io
import json
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor

import pdd_lightning.stages
from pdd_lightning import DistilledDataset, distributed
from pdd_lightning.callbacks.checkpoint import RollingCheckpoint
from pdd_lightning.data.progressive import ProgressiveDataModule
from pdd_lightning.errors import ConfigError
from pdd_lightning.experts import ExpertSettings
from pdd_lightning.networks import ConvNet
from pdd_lightning.progression import StageAdvance, StageObserver, TransitionSettings
from pdd_lightning.stages import DistillationStage
from tests.cli.conftest import run_pdd, write_folder
from tests.tiny import Blobs

# What each method's shortest sensible run needs; a new method adds a line.
TRAJECTORIES = {"ipc": 1, "syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 2, "lr_img": 10.0}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "CharacteristicFunctionMatching": {
        "ipc": 1,
        "frequencies": 16,
        "epochs": 2,
        "real_batch": 8,
        "lr_img": 1.0,
        "width": 4,
    },
    "DATM": {**TRAJECTORIES, "max_start_epoch": 3, "first_max_start_epoch": 2, "lr_label": 5.0},
    "DistributionMatching": {"ipc": 1, "lr_img": 0.1},
    "FTD": {**TRAJECTORIES, "image_average": 0.9},
    "IDC": {"ipc": 1, "metric": "l1", "inner": 2, "net_images": 20, "batch_real": 8, "lr_img": 0.05},
    "GradientMatching": {"ipc": 1, "outer": 3, "inner": 2, "lr_net": 0.1},
    "TrajectoryMatching": TRAJECTORIES,
}
ITERATIONS = 5
# Another value of each argument that is no number; a new one that is none adds a line.
OTHERS: dict[str, Any] = {
    "network": functools.partial(ConvNet, depth=1, width=4),
    "init": "noise",
    "augment": "crop",
    "match_augment": "crop",
    "net_augment": "crop",
    "metric": "mse",
    "unroll_mode": "constant",
    "batch_syn": 2,
    "first_max_start_epoch": 1,
    "image_average": 0.9,
    "lr_label": 0.5,
}


def found_stages() -> list[type[DistillationStage]]:
    """Every concrete stage in any module of the package's stages."""
    found = set()
    for module in pkgutil.iter_modules(pdd_lightning.stages.__path__, "pdd_lightning.stages."):
        for value in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(value) and issubclass(value, DistillationStage) and not inspect.isabstract(value):
                found.add(value)
    return sorted(found, key=lambda stage: stage.__name__)


STAGES = found_stages()
every_stage = pytest.mark.parametrize("kind", STAGES, ids=lambda kind: kind.__name__)


def arguments(kind: type[DistillationStage]) -> dict[str, Any]:
    assert kind.__name__ in ARGUMENTS, f"{kind.__name__} is a new method: add its shortest run to ARGUMENTS"
    return ARGUMENTS[kind.__name__]


class Remember(StageObserver):
    """Remembers what each iteration and each stage left; can interrupt the run."""

    def __init__(self, stop: tuple[int, int] | None = None) -> None:
        self.stop = stop
        self.images: list[Tensor] = []
        self.distilled: list[Tensor] = []
        self.gradients: list[dict[str, bool]] = []
        self.losses: list[float] = []
        self.frozen: list[Tensor] = []
        self.batches: list[tuple[bytes, list[bytes]]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append((as_bytes(batch), [drawn_by(rank, pl_module.data) for rank in (0, 1, 2)]))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.before.append((pl_module.images.detach().clone(), pl_module.images.grad.clone()))
        self.gradients.append(
            {name: p.grad is not None and bool(p.grad.abs().sum() > 0) for name, p in pl_module.named_parameters()}
        )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.images.append(pl_module.images.detach().clone())
        self.distilled.append(pl_module.distilled[0].clone())
        self.losses.append(float(outputs["loss"]))
        self.frozen.append(pl_module.data.union.images.clone())
        if self.stop == (pl_module.state.stage, pl_module.state.iteration):
            raise InterruptedError("the run is interrupted here")


def as_bytes(batch: Any) -> bytes:
    """All that is in a batch."""
    buffer = io.BytesIO()
    torch.save(batch, buffer)
    return buffer.getvalue()


def drawn_by(rank: int, data: ProgressiveDataModule) -> bytes:
    """The batch that a process gets next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "rank", lambda: rank)
        return as_bytes(next(iter(data.train_dataloader())))


def fit(kind: type[DistillationStage], folder: Path, resume: bool = False, stop: Any = None) -> tuple[Any, Remember]:
    """A run of two stages on blobs; the module and what was remembered."""
    seed_everything(0, verbose=False)
    module = kind(functools.partial(ConvNet, depth=2, width=4), **arguments(kind))  # type: ignore[arg-type]
    remember = Remember(stop)
    experts = ExpertSettings(number=2, batch_size=16)
    callbacks: list[Callback] = [
        StageAdvance(2, ITERATIONS, experts, TransitionSettings(epochs=3)),
        RollingCheckpoint(folder / "checkpoints", 2),
        remember,
    ]
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=callbacks,
        accelerator="cpu",
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    data = ProgressiveDataModule(Blobs())
    trainer.fit(module, datamodule=data, ckpt_path=folder / "checkpoints" / "last.ckpt" if resume else None)
    return module, remember


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives each method's uninterrupted run, made once."""
    return functools.cache(lambda kind: fit(kind, tmp_path_factory.mktemp(kind.__name__)))


def test_the_table_has_no_strangers() -> None:
    assert set(ARGUMENTS) == {kind.__name__ for kind in STAGES}


@every_stage
def test_two_stages_are_made(kind: type[DistillationStage], straight: Any) -> None:
    module, seen = straight(kind)
    union = module.data.union
    assert len(seen.losses) == 2 * ITERATIONS
    assert torch.tensor(seen.losses).isfinite().all()
    assert union.stages.tolist() == [1, 1, 1, 2, 2, 2]
    labels = union.labels if union.labels.ndim == 1 else union.labels.argmax(1)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
    # Checkpoints come before the observer, so the union still is that of the iteration.
    assert not torch.equal(seen.images[0], seen.images[ITERATIONS - 1])


@every_stage
def test_gradients_reach_the_learned_quantities_and_nothing_else(kind: type[DistillationStage], straight: Any) -> None:
    module, seen = straight(kind)
    learned = {name for group in module.parameter_groups() for name in names_of(module, group["params"])}
    assert "images" in learned
    assert {name for name, _ in module.named_parameters()} == learned
    for reached in seen.gradients:
        assert set(reached) == learned and reached["images"]
    assert not module.data.union.images.requires_grad


def names_of(module: torch.nn.Module, params: list[Tensor]) -> list[str]:
    return [name for name, parameter in module.named_parameters() for wanted in params if parameter is wanted]


@every_stage
def test_the_first_step_of_a_stage_has_no_momentum(kind: type[DistillationStage], straight: Any) -> None:
    module, seen = straight(kind)
    black, white = (module.data.real.pixels.level(shade) for shade in (0.0, 1.0))
    for step in range(2 * ITERATIONS):
        (images, gradient), after = seen.before[step], seen.images[step]
        inside = (after > black) & (after < white)  # a method may clamp its images
        plain = torch.allclose(after[inside], (images - module.lr_img * gradient)[inside], rtol=1e-4, atol=1e-6)
        assert inside.any() and plain == (step in (0, ITERATIONS))


@every_stage
def test_each_process_draws_batches_of_its_own(kind: type[DistillationStage], straight: Any) -> None:
    _, seen = straight(kind)
    assert len(seen.batches) == 2 * ITERATIONS
    for batch, by_rank in seen.batches:
        assert batch == by_rank[0]
        assert len(set(by_rank)) == len(by_rank)


def build(kind: type[DistillationStage], **changes: Any) -> DistillationStage:
    return kind(**{"network": functools.partial(ConvNet, depth=2, width=4), **arguments(kind), **changes})


def another(name: str, value: Any) -> Any:
    """Another value of a setting, near the one that it has."""
    if name in OTHERS and OTHERS[name] != value:
        return OTHERS[name]
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value / 2


def argument_names(kind: type[DistillationStage]) -> set[str]:
    """Arguments of a method's constructor, and of those that it hands others on to."""
    signatures = [inspect.signature(base.__init__) for base in kind.__mro__ if issubclass(base, DistillationStage)]
    return {name for signature in signatures for name in signature.parameters} - {"self", "args", "kwargs"}


@every_stage
def test_each_argument_is_a_setting_of_its_own(kind: type[DistillationStage]) -> None:
    """What is not in `settings` could be changed when a run is continued."""
    hard = {"lr_label": None} if "lr_label" in argument_names(kind) else {}  # soft labels refuse to begin from noise
    plain = build(kind, **hard).settings
    for name in argument_names(kind):
        assert name in plain, f"the argument {name} of {kind.__name__} is not among its settings"
        changed = build(kind, **{**hard, name: another(name, plain[name])}).settings
        assert {key for key, value in changed.items() if value != plain[key]} == {name}
        assert name == "network" or changed[name] == another(name, plain[name])


@pytest.mark.parametrize("bad", [{"ipc": 0}, {"lr_img": -1.0}, {"momentum": 1.0}, {"augment": "colour"}])
@every_stage
def test_settings_that_cannot_work_are_refused(kind: type[DistillationStage], bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="colour" if "augment" in bad else next(iter(bad))):
        build(kind, **bad)


@every_stage
def test_frozen_images_stay_as_they_are(kind: type[DistillationStage], straight: Any) -> None:
    module, seen = straight(kind)
    first_stage = seen.distilled[ITERATIONS - 1]
    for frozen in seen.frozen[ITERATIONS:]:
        assert torch.equal(frozen, first_stage)
    assert torch.equal(module.data.union.stage(1).images, first_stage)
    assert torch.equal(module.data.union.stage(2).images, seen.distilled[-1])


@every_stage
@pytest.mark.parametrize("stop", [(1, 3), (2, 4)], ids=["stage 1", "stage 2"])
def test_a_continued_run_equals_the_straight_one(
    kind: type[DistillationStage], stop: tuple[int, int], straight: Any, tmp_path: Path
) -> None:
    with pytest.raises(InterruptedError):
        fit(kind, tmp_path, stop=stop)
    module, seen = fit(kind, tmp_path, resume=True)
    whole, _ = straight(kind)
    assert len(seen.losses) < 2 * ITERATIONS, "the run was not continued but made again"
    assert torch.equal(module.data.union.images, whole.data.union.images)
    assert module.data.union.learning_rates == whole.data.union.learning_rates


CALLBACK = """
from pathlib import Path

import torch

from pdd_lightning.progression import StageObserver


class StoreRanks(StageObserver):
    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_stage_end(self, trainer, stage_module, history):
        union = stage_module.data.union
        torch.save(union.images, self.folder / f"stage_{union.num_stages}_{trainer.global_rank}.pt")
"""


@pytest.mark.slow
@every_stage
def test_two_processes_hold_equal_images(
    kind: type[DistillationStage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store_ranks.py").write_text(CALLBACK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    images = write_folder(tmp_path / "images")
    network = {"class_path": "pdd_lightning.networks.ConvNet", "init_args": {"depth": 2, "width": 4}}
    recipe = {
        "model": {
            "class_path": f"{kind.__module__}.{kind.__qualname__}",
            "init_args": {"network": network, **arguments(kind)},
        },
        "data": {
            "real": {"class_path": "pdd_lightning.data.ImageFolder", "init_args": {"root": str(images)}},
        },
        "stages": {
            "num_stages": 2,
            "iterations": ITERATIONS,
            "experts": {"number": 2, "batch_size": 16},
            "transition": {"epochs": 3},
        },
        "evaluation": {"num_networks": 2, "epochs": 2},
        "checkpoint_every": 2,
        "trainer": {"accelerator": "cpu", "strategy": "ddp", "devices": 2, "default_root_dir": str(tmp_path / "run")},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    words = ["--trainer.callbacks", "store_ranks.StoreRanks", "--trainer.callbacks.folder", tmp_path]
    result = run_pdd("fit", "--config", tmp_path / "recipe.yaml", *words)
    assert result.returncode == 0, result.stdout
    for stage in (1, 2):
        first, second = (torch.load(tmp_path / f"stage_{stage}_{rank}.pt") for rank in (0, 1))
        assert torch.equal(first, second)
    assert DistilledDataset(tmp_path / "run" / "distilled.safetensors").num_stages == 2
