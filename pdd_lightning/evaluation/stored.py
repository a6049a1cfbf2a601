"""Evaluating a distilled set that is stored in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from pdd_lightning.augment import DSA
from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.formats import ImportOptions, open_distilled
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.errors import DataError
from pdd_lightning.evaluation.plan import Part, Subject
from pdd_lightning.evaluation.ranking import ranking_tasks
from pdd_lightning.evaluation.settings import EvaluationSettings
from pdd_lightning.evaluation.tasks import evaluation_tasks, run_tasks, say_kept
from pdd_lightning.networks.spec import factory_from_spec
from pdd_lightning.results.store import ResultStore, rows_from_results
from pdd_lightning.typing import NetworkFactory


def evaluate_file(
    path: str | Path,
    real: RealDataModule,
    factory: NetworkFactory | None,
    settings: EvaluationSettings,
    part: Part = "test",
    seed: int = 0,
    device: torch.device | str = "cpu",
    experts: Path | None = None,
    results: Path | None = None,
    ranking: bool = False,
    options: ImportOptions = ImportOptions(),  # noqa: B008  (frozen)
) -> list[dict[str, Any]]:
    """Trains fresh networks on a stored set and scores them on real images.

    Real images are brought into the stored set's model space.

    Args:
        path: A distilled set of any format, see `open_distilled`.
        real: Real images of the same classes.
        factory: Makes the networks; `None` takes the kind of network that the set was distilled with.
        settings: See `EvaluationSettings`.
        part: Real images to score on.
        seed: Seed of initialisations, batch orders, augmentation and baselines.
        device: Where to train.
        experts: Folder of expert trajectories, where `settings` ask for networks that begin as they did.
        results: File that keeps the results of single networks, and from which they are taken.
        ranking: Evaluate what `ranking_scores` needs, too.
        options: What files of other formats do not say.

    Returns:
        Rows as `rows_from_results` gives them.

    Raises:
        DataError: The file is missing, or its images or classes are not those of the real data.
        DamagedFileError: The file is truncated or altered.
        ConfigError: An option is missing or contradicts the file.
    """
    distilled = open_distilled(path, real, options, stored=True)
    real.prepare_data()
    real.setup()
    check_match(path, distilled, real)
    say_other_data(path, distilled, real)
    subject = Subject(
        synthetic=distilled.synthetic,
        real=real,
        pixels=distilled.pixels,
        factory=factory or stored_network(path, distilled),
        augment=stored_augmentation(distilled),
        part=part,
        seed=seed,
        device=torch.device(device),
        experts=experts,
        store=ResultStore(results),
    )
    tasks = ranking_tasks(subject, settings) if ranking else evaluation_tasks(subject, settings)
    say_kept(tasks, subject)
    return rows_from_results(run_tasks(tasks), real.class_names, settings.every_stage)


def stored_augmentation(distilled: DistilledDataset) -> DSA:
    """The augmentation that a set was distilled with, or the default one."""
    stored: dict[str, Any] = distilled.metadata.get("settings", {})
    names = {"augment": "strategy", "align_corners": "align_corners", "augment_together": "together"}
    return DSA(**{argument: stored[name] for name, argument in names.items() if name in stored})


def stored_network(path: str | Path, distilled: DistilledDataset) -> NetworkFactory:
    """The kind of network that a set was distilled with.

    Raises:
        DataError: The set does not say.
    """
    if "network" not in distilled.metadata:
        raise DataError(f"{path} does not say what network it was distilled with: name one with --network")
    return factory_from_spec(distilled.metadata["network"])


def check_match(path: str | Path, distilled: DistilledDataset, real: RealDataModule) -> None:
    """Refuses a set of other images or classes than the real ones.

    Raises:
        DataError: Image shapes or class names differ.
    """
    facts: dict[str, tuple[Any, Any]] = {
        "image shape": (tuple(distilled.images.shape[1:]), real.image_shape),
        "class names": (distilled.class_names, real.class_names),
    }
    for what, (stored, given) in facts.items():
        if stored != given:
            raise DataError(f"{path} does not belong to {real.name}: its {what}: {stored}, the data's: {given}")


def say_other_data(path: str | Path, distilled: DistilledDataset, real: RealDataModule) -> None:
    """Says so where a set was not distilled from these very images, cut into these parts.

    Its images may then come from those that are scored. Sets of other code do not tell.
    """
    source = distilled.metadata.get("dataset", {}).get("fingerprint", real.fingerprint)
    if source != real.fingerprint:
        tqdm.write(
            f"Note: {path} was distilled from other images, another split of them, or with another normalization than"
            " --data gives. If the split differs, it may have been distilled from images that are scored here."
        )
