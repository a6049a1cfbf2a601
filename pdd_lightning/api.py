"""Distil and evaluate from Python, by the same path as `pdd fit` and `pdd evaluate`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from lightning import Trainer

from pdd_lightning import data
from pdd_lightning.cli import run_cli
from pdd_lightning.commands.command import device_of
from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation import EvaluationSettings, Part, subject_of
from pdd_lightning.evaluation import evaluate as evaluate_subject
from pdd_lightning.networks.spec import argument_names, factory_from_spec, network_spec
from pdd_lightning.results.tables import evaluation_table
from pdd_lightning.shorthand import did_you_mean, long_form, shipped, shipped_file
from pdd_lightning.typing import NetworkFactory

if TYPE_CHECKING:
    from pandas import DataFrame


class EvaluatedRows(list[dict[str, Any]]):
    """Rows of an evaluation, which print as a table."""

    def __repr__(self) -> str:
        return evaluation_table(self).text()

    def to_pandas(self) -> DataFrame:
        """Convert to a data frame; needs pandas."""
        from pandas import DataFrame

        return DataFrame(list(self))


def distill(
    real: RealDataModule | str,
    method: str = "idc",
    stages: int = 3,
    ipc: int | None = None,
    iterations: int | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    network: NetworkFactory | str | None = None,
    options: dict[str, Any] | None = None,
    **trainer: Any,
) -> DistilledDataset:
    """Distil real images in stages; a run that is already in the folder is continued.

    What is not given is as in a recipe of the package: the one called `method`, or the one of that method for these
    images, or for image folders. `pdd recipes` lists them.

    Args:
        real: Real images; a name, such as "digits", stands for one of the package's data sets.
        method: Name of a method (datm, dc, dm, dsa, idc, mtt, ..) or of a recipe (digits_mtt, ..).
        stages: Number of stages.
        ipc: New images per class in each stage.
        iterations: Iterations of a stage.
        folder: Run folder, as `pdd fit` writes it; by default a temporary one, which stays.
        seed: Seed of the whole run.
        network: Makes the networks; a name, such as "convnet3", stands for one of the package's.
        options: Further options of `pdd fit` by dotted name, such as `{"stages.experts.number": 4}`.
        trainer: Arguments of `lightning.Trainer`, such as `accelerator="gpu"`.

    Returns:
        The distilled set of all stages.

    Raises:
        ConfigError: There is no such recipe, or a setting cannot work.
        DataError: The real images are missing or too few.

    Examples:
        >>> distilled = distill("digits", method="dm", stages=2)  # doctest: +SKIP
    """
    _check_names("distill", trainer, {*signature(distill).parameters, *signature(Trainer).parameters})
    folder = Path(tempfile.mkdtemp(prefix="pdd_") if folder is None else folder)
    settings = {
        "seed_everything": seed,
        "data.real": real if isinstance(real, str) else _spec_of(real),
        "model.network": network if network is None or isinstance(network, str) else network_spec(network),
        "model.ipc": ipc,
        "stages.num_stages": stages,
        "stages.iterations": iterations,
        "trainer.default_root_dir": str(folder),
        "ckpt_path": "last",
        **(options or {}),
    }
    args = [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in settings.items()
        if value is not None
    ]
    run_cli(long_form(["fit", _recipe(method, real), *args]), **trainer)
    return DistilledDataset(folder / "distilled.safetensors")


def evaluate(
    distilled: DistilledDataset | str | Path,
    real: RealDataModule | str,
    network: NetworkFactory | str | None = None,
    part: Part = "test",
    seed: int = 0,
    device: str = "auto",
    **settings: Any,
) -> EvaluatedRows:
    """Train networks on a distilled set, and on as many random real images, and score them on real ones.

    Args:
        distilled: The set, or where it is: a file, a run folder, `zoo:name` or `hub:owner/name`.
        real: Real images; a name, such as "digits", stands for one of the package's data sets.
        network: Makes the networks, by default the kind that the set was distilled with; a name, such as "resnet18",
            stands for one of the package's.
        part: Real images to score on.
        seed: Seed of initializations and batch orders.
        device: cpu, cuda, cuda:1, ..; auto takes a GPU if there is one.
        settings: See `pdd_lightning.evaluation.EvaluationSettings`.

    Returns:
        A dictionary for each row, see `pdd_lightning.evaluation.evaluate`.

    Raises:
        DataError: The set is missing, or does not belong to the real images.
        ConfigError: A setting cannot work.
    """
    names = {field.name for field in fields(EvaluationSettings)}
    _check_names("evaluate", settings, {*signature(evaluate).parameters, *names})
    chosen = EvaluationSettings(**settings)
    real = _images(real) if isinstance(real, str) else real
    real.prepare_data()
    real.setup()
    subject = subject_of(
        distilled if isinstance(distilled, DistilledDataset) else DistilledDataset.load(distilled),
        real,
        _factory(network) if isinstance(network, str) else network,
        part=part,
        seed=seed,
        device=device_of(device),
    )
    return EvaluatedRows(evaluate_subject(subject, chosen))


def _check_names(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"{function} has no argument {name}: {did_you_mean(name, known) or 'see its help'}")


def _recipe(method: str, real: RealDataModule | str) -> str:
    """Return the name of the recipe that a method begins from."""
    recipes, images = shipped("recipe"), real if isinstance(real, str) else type(real).__name__.lower()
    names = [method, f"{images}_{method}", f"folder_{method}_small", f"digits_{method}"]
    if found := next((name for name in names if name in recipes), None):
        return found
    methods = sorted({name.split("_")[1] for name in recipes})
    raise ConfigError(f"there is no method {method}: choose from {', '.join(methods)}, or name one of the recipes")


def _spec_of(real: RealDataModule) -> dict[str, Any]:
    """Return class and arguments of real images, as a recipe states them."""
    kind = type(real)
    try:
        arguments = {name: getattr(real, name) for name in argument_names(kind)}
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": json.loads(json.dumps(arguments))}
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{kind.__name__} must keep its arguments as attributes of their names ({error})") from error


def _factory(name: str) -> NetworkFactory:
    """Return the package's network of a name."""
    return factory_from_spec(_content("network", name))


def _images(name: str) -> RealDataModule:
    """Make the package's real images of a name."""
    content = _content("data", name)
    kind = getattr(data, content["class_path"].rpartition(".")[2])
    real: RealDataModule = kind(**content.get("init_args", {}))
    return real


def _content(kind: str, name: str) -> dict[str, Any]:
    """Read one of the package's YAML files."""
    content: dict[str, Any] = yaml.safe_load(shipped_file(kind, name).read_text())
    return content
