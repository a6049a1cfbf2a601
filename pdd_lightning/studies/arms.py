"""The arms of a study: what is distilled, and how it is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import Path_fr

from pdd_lightning.errors import ConfigError
from pdd_lightning.studies.recipe import Recipe, dotted, readable
from pdd_lightning.studies.step import Step, option_words

Budget = Literal["total", "per_stage"]
"""What runs with other numbers of stages have in common: iterations of all stages together, or of each."""

AS_RECIPE = "the recipe's stages"

NO_BASELINES: dict[str, Any] = {"baselines": [], "full_data_epochs": 0}
"""Options of `pdd evaluate` where the same real images are evaluated in another arm."""


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared.

    Attributes:
        run: Name of its run folders; arms that are distilled alike share them.
        labels: Columns that tell it from the others.
        recipe: What is distilled.
        stages: Number of stages.
        ipc: Images per class and stage.
        iterations: Iterations of a stage.
        options: Further options of `pdd fit`, by dotted name.
        evaluate: Further options of `pdd evaluate`.
    """

    run: str
    labels: dict[str, Any]
    recipe: Recipe
    stages: int
    ipc: int
    iterations: int
    options: dict[str, Any] = field(default_factory=dict)
    evaluate: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scoring:
    """One of the ways in which a distilled set is evaluated.

    Attributes:
        name: Name of the file with the rows.
        labels: Columns that tell it from the others.
        options: Options of `pdd evaluate`.
    """

    name: str = "evaluation"
    labels: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A recipe to study, and what to change in it.

    Attributes:
        recipe: The YAML file of the recipe.
        name: What tables call it; by default the name of the file.
        fit: Options of `pdd fit` in place of the recipe's, nested or by dotted names. In their values, `{seed}` stands
            for the run's seed and `{folder}` for the study's folder: runs of one seed share their first experts with
            `stages.experts.folder: "{folder}/experts/{seed}"`, where they need as many epochs of them.
        one_stage: Further options of runs with a single stage, which is the base method with its own settings.
    """

    recipe: Path_fr
    name: str | None = None
    fit: dict[str, Any] = field(default_factory=dict)
    one_stage: dict[str, Any] = field(default_factory=dict)

    def read(self) -> Recipe:
        """The recipe with its changes."""
        return Recipe(Path(self.recipe.absolute), self.fit)


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuses an empty list of seeds, and one that counts a seed twice.

    Raises:
        ConfigError: It is one of these.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"a study needs at least one seed and none twice, got {list(seeds)}")


def check_methods(methods: Sequence[Method]) -> None:
    """Refuses an empty list of methods.

    Raises:
        ConfigError: It is empty.
    """
    if not methods:
        raise ConfigError("a study needs at least one recipe: name it in methods")


def own_arm(method: Method) -> Arm:
    """The recipe as it is, with its changes."""
    recipe = method.read()
    return staged_arm(method, int(recipe["stages.num_stages"]), int(recipe["model.ipc"]))


def staged_arm(method: Method, stages: int, ipc: int, budget: Budget = "per_stage") -> Arm:
    """An arm with another number of stages than the recipe's, and the iterations that this gives it.

    Args:
        method: The recipe, whose iterations count, and its changes.
        stages: Number of stages.
        ipc: Images per class and stage.
        budget: `total` keeps the recipe's iterations of all stages together, `per_stage` those of each stage.
    """
    recipe = method.read()
    name = method.name or recipe.name
    per_stage, own = int(recipe["stages.iterations"]), int(recipe["stages.num_stages"])
    labels = {"method": name, "budget": AS_RECIPE if stages == own else f"same {budget.replace('_', ' ')}"}
    if budget == "total":
        per_stage = max(1, per_stage * own // stages)
    run = f"{name}/{stages}x{ipc}_{per_stage}"
    options = dotted(method.one_stage) if stages == 1 else {}
    return Arm(run, labels, recipe, stages, ipc, per_stage, options)


def stage_arms(method: Method, stages: Sequence[int], budgets: Sequence[Budget]) -> list[Arm]:
    """Arms of one size, divided into stages in several ways; real images are evaluated beside the first.

    Raises:
        ConfigError: A number of stages does not divide the images, or there is none, or no budget.
    """
    if not stages or not budgets:
        raise ConfigError("there is nothing to compare: give numbers of stages, and budgets total or per_stage")
    recipe = method.read()
    total = int(recipe["stages.num_stages"]) * int(recipe["model.ipc"])
    for count in stages:
        if count < 1 or total % count:
            raise ConfigError(f"{total} images per class cannot be made in {count} stages of the same size")
    pairs = dict.fromkeys((count, budget) for count in stages for budget in budgets)
    arms = [staged_arm(method, count, total // count, budget) for count, budget in pairs]
    distinct = list({arm.run: arm for arm in arms}.values())
    return [distinct[0], *(replace(arm, evaluate=NO_BASELINES) for arm in distinct[1:])]


def fit_step(name: str, arm: Arm, seed: int, folder: Path, stages: int) -> Step:
    """One `pdd fit`, which begins or continues the run `name`.

    Args:
        name: Name of the run's folder below `runs`, and of the step.
        arm: What to distil.
        seed: Seed of the run.
        folder: Folder of the study.
        stages: Number of stages.
    """
    options: dict[str, Any] = {
        # The study evaluates by itself; one network shows in the log that the run went well.
        "evaluation.num_networks": 1,
        "trainer.enable_progress_bar": False,
        **arm.recipe.changes,
        "stages.num_stages": stages,
        "stages.iterations": arm.iterations,
        "model.ipc": arm.ipc,
        **arm.options,
        "seed_everything": seed,
        "trainer.default_root_dir": str(readable(folder / "runs" / name)),
        "ckpt_path": "last",
    }
    return Step(f"{name}/fit", ("fit", "--config", str(arm.recipe.path), *filled(option_words(options), seed, folder)))


def filled(words: Sequence[str], seed: int, folder: Path) -> list[str]:
    """Words with the seed of the run and the study's folder in the places of `{seed}` and `{folder}`."""
    return [word.replace("{seed}", str(seed)).replace("{folder}", str(readable(folder))) for word in words]
