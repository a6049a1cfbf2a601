"""The arms of a study: what is distilled, and how it is evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pdd_lightning.errors import ConfigError
from pdd_lightning.results.tables import flatten
from pdd_lightning.stored import MAX_STAGES, FileName
from pdd_lightning.studies.engine import Step
from pdd_lightning.studies.recipe import Recipe, override, relative_path, to_arguments

Budget = Literal["total", "per_stage"]
"""Which iterations are equal to the recipe's if the number of stages differs: those in total, or of each stage."""
OWN_STAGES = "the recipe's stages"
"""Budget of runs with as many stages as the recipe."""
SEED_STEP = 1000
"""Difference between the seeds of an arm's independent sets; the first has the seed of the run."""


class StudyPart(BaseModel):
    """A part of a study's YAML file; unknown entries are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Method(StudyPart):
    """A recipe to study with changes.

    Attributes:
        recipe: The YAML file of the recipe.
        name: Name in tables; by default that of the file.
        fit: Options of `pdd fit` in place of the recipe's, nested or by dotted names. In their values, `{seed}` stands
            for the seed of the run and `{folder}` for the folder of the study: runs of a seed share their first experts
            with `stages.experts.folder: "{folder}/experts/{seed}"` if they need the same number of epochs of them.
        one_stage: Further options of runs with a single stage, which is the base method with its own settings.
    """

    recipe: Path
    name: FileName | None = None
    fit: dict[str, Any] = {}
    one_stage: dict[str, Any] = {}


class Arm(StudyPart):
    """One of the things that are compared, with each method.

    Attributes:
        stages: Number of stages; by default the recipe's.
        ipc: Images per class and stage; by default as many as make the recipe's images in all stages together.
        budget: Which of the recipe's iterations are kept: those of all stages together (`total`) or of each stage.
        independent: Whether each stage is distilled by itself, with a seed of its own; the sets are then joined.
        fit: Further options of `pdd fit`.
        evaluate: Further options of `pdd evaluate`; arms that differ in these only share their runs.
    """

    stages: Annotated[int, Field(ge=1, le=MAX_STAGES)] | None = None
    ipc: Annotated[int, Field(ge=1)] | None = None
    budget: Budget | None = None
    independent: bool = False
    fit: dict[str, Any] = {}
    evaluate: dict[str, Any] = {}


@dataclass(frozen=True)
class Run:
    """An arm with a method.

    Attributes:
        name: Name of its run folders, one per seed, which arms that are distilled alike share.
        result: Name of the file with its rows.
        labels: Columns that identify it.
        fit: Further options of `pdd fit`, by dotted name.
    """

    name: str
    result: str
    labels: dict[str, str]
    recipe: Recipe
    stages: int
    ipc: int
    iterations: int
    fit: dict[str, Any]
    arm: Arm


def runs_of(method: Method, arms: Mapping[str, Arm], column: str | None) -> list[Run]:
    """Combine a method with each arm, whose name becomes a column if there is one; of equal runs, keep the first.

    Raises:
        ConfigError: The recipe's images cannot be divided into a number of stages.
    """
    recipe, runs = Recipe(method.recipe, method.fit), dict[tuple[str, str], Run]()
    for name, arm in arms.items():
        run = _make_run(method, recipe, arm, name, {column: name} if column else {})
        runs.setdefault((run.name, run.result), run)
    return list(runs.values())


def _make_run(method: Method, recipe: Recipe, arm: Arm, name: str, labels: dict[str, str]) -> Run:
    own_stages, iterations = recipe.count("stages.num_stages"), recipe.count("stages.iterations")
    stages, images = arm.stages or own_stages, own_stages * recipe.count("model.ipc")
    if arm.ipc is None and images % stages:
        raise ConfigError(f"{images} images per class cannot be made in {stages} stages of the same size")
    ipc, method_name = arm.ipc or images // stages, method.name or method.recipe.stem
    labels = {"method": method_name, **labels}
    if arm.budget:
        labels["budget"] = OWN_STAGES if stages == own_stages else budget_label(arm.budget)
    if arm.budget == "total":
        iterations = max(1, iterations * own_stages // stages)
    folder = f"{method_name}/{stages}x{ipc}_{iterations}" + (f"_{name}" if arm.fit or arm.independent else "")
    fit = flatten({**(method.one_stage if stages == 1 else {}), **arm.fit})
    result = f"evaluation_{name}" if arm.evaluate else "evaluation"
    return Run(folder, result, labels, recipe, stages, ipc, iterations, fit, arm)


def budget_label(budget: Budget) -> str:
    """Return the text of a budget in tables."""
    return f"same {budget.replace('_', ' ')}"


def distill_steps(run: Run, seed: int, folder: Path) -> list[Step]:
    """Return the steps that make the distilled set of a run, in `runs/<name>/seed_<seed>` of the study's folder."""
    name = f"{run.name}/seed_{seed}"
    if not run.arm.independent:
        return [fit_step(run, name, seed, folder, {})]
    names = [f"{name}/set_{stage}" for stage in range(1, run.stages + 1)]
    fits = [
        fit_step(run, set_name, seed + SEED_STEP * index, folder, {"stages.num_stages": 1})
        for index, set_name in enumerate(names)
    ]
    sets = [set_path(folder, set_name) for set_name in names]
    join = ("join", *sets, "--output", set_path(folder, name))
    return [*fits, Step(f"{name}/join", join, after=tuple(fit.name for fit in fits))]


def fit_step(run: Run, name: str, seed: int, folder: Path, changes: Mapping[str, Any]) -> Step:
    """Return the step of `pdd fit` in the run folder of a name, with changes of options by dotted name."""
    options: dict[str, Any] = {
        "evaluation.num_networks": 1,  # for the log only: the study has steps of its own for the evaluation
        "trainer.enable_progress_bar": False,
        **run.recipe.changes,
        "stages.num_stages": run.stages,
        "stages.iterations": run.iterations,
        "model.ipc": run.ipc,
        **run.fit,
    }
    fixed = {
        "seed_everything": seed,
        "trainer.default_root_dir": str(relative_path(folder / "runs" / name)),
        "ckpt_path": "last",
    }
    arguments = to_arguments({**override(options, changes), **fixed})
    return Step(f"{name}/fit", ("fit", "--config", str(run.recipe.path), *fill(arguments, seed, folder)))


def set_path(folder: Path, name: str) -> str:
    """Return the path of the distilled set in a run folder."""
    return str(relative_path(folder / "runs" / name / "distilled.safetensors"))


def fill(arguments: list[str], seed: int, folder: Path) -> list[str]:
    """Replace `{seed}` and `{folder}` by the seed of the run and the folder of the study."""
    return [text.replace("{seed}", str(seed)).replace("{folder}", str(relative_path(folder))) for text in arguments]
