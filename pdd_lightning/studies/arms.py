"""The arms of a study: what is distilled, and how it is evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pdd_lightning.errors import ConfigError
from pdd_lightning.stored import MAX_STAGES, FileName
from pdd_lightning.studies.engine import Step
from pdd_lightning.studies.recipe import Recipe, dotted, option_args, overridden, readable

Budget = Literal["total", "per_stage"]
"""What runs with other numbers of stages have in common: iterations of all stages together, or of each."""

AS_RECIPE = "the recipe's stages"
"""What the table says of the iterations where the number of stages is the recipe's."""

SEEDS_APART = 1000
"""Distance of the seeds of an arm's independent sets; the first has the run's own, so that its stage 1 is the same."""


class Part(BaseModel):
    """A part of a study's YAML file; what is unknown is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Method(Part):
    """A recipe to study, and what to change in it.

    Attributes:
        recipe: The YAML file of the recipe.
        name: What tables call it; by default the name of the file.
        fit: Options of `pdd fit` in place of the recipe's, nested or by dotted names. In their values, `{seed}` stands
            for the run's seed and `{folder}` for the study's folder: runs of one seed share their first experts with
            `stages.experts.folder: "{folder}/experts/{seed}"`, where they need as many epochs of them.
        one_stage: Further options of runs with a single stage, which is the base method with its own settings.
    """

    recipe: Path
    name: FileName | None = None
    fit: dict[str, Any] = {}
    one_stage: dict[str, Any] = {}


class Arm(Part):
    """One of the things that are compared, with each method.

    Attributes:
        stages: Number of stages; by default the recipe's.
        ipc: Images per class and stage; by default as many as make the recipe's images in all stages together.
        budget: What of the recipe's iterations is kept: those of all stages together (`total`) or of each stage.
        independent: Whether stages do not know of each other: each is a set of its own seed, and the sets are joined.
        fit: Further options of `pdd fit`.
        evaluate: Further options of `pdd evaluate`; arms that differ in these alone share their runs.
    """

    stages: Annotated[int, Field(ge=1, le=MAX_STAGES)] | None = None
    ipc: Annotated[int, Field(ge=1)] | None = None
    budget: Budget | None = None
    independent: bool = False
    fit: dict[str, Any] = {}
    evaluate: dict[str, Any] = {}


@dataclass(frozen=True)
class Run:
    """An arm with one method; a run folder for each seed.

    Attributes:
        name: Name of its folders; arms that are distilled alike share them.
        result: Name of the file with the rows.
        labels: Columns that tell it from the others.
        recipe: What is distilled.
        stages: Number of stages.
        ipc: Images per class and stage.
        iterations: Iterations of a stage.
        fit: Further options of `pdd fit`, by dotted name.
        arm: What it is made of.
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
    """Every arm with a method; where several are alike, the first.

    Args:
        method: The recipe and its changes.
        arms: Arms by name.
        column: Column that holds the arms' names, if any.

    Raises:
        ConfigError: A number of stages does not divide the recipe's images.
    """
    recipe, runs = Recipe(method.recipe, method.fit), dict[tuple[str, str], Run]()
    for name, arm in arms.items():
        run = _run(method, recipe, arm, name, {column: name} if column else {})
        runs.setdefault((run.name, run.result), run)
    return list(runs.values())


def _run(method: Method, recipe: Recipe, arm: Arm, name: str, labels: dict[str, str]) -> Run:
    own, iterations = recipe.number("stages.num_stages"), recipe.number("stages.iterations")
    stages, images = arm.stages or own, own * recipe.number("model.ipc")
    if arm.ipc is None and images % stages:
        raise ConfigError(f"{images} images per class cannot be made in {stages} stages of the same size")
    ipc, label = arm.ipc or images // stages, method.name or method.recipe.stem
    labels = {"method": label, **labels}
    if arm.budget:
        labels["budget"] = AS_RECIPE if stages == own else f"same {arm.budget.replace('_', ' ')}"
    if arm.budget == "total":
        iterations = max(1, iterations * own // stages)
    folder = f"{label}/{stages}x{ipc}_{iterations}" + (f"_{name}" if arm.fit or arm.independent else "")
    fit = dotted({**(method.one_stage if stages == 1 else {}), **arm.fit})
    result = f"evaluation_{name}" if arm.evaluate else "evaluation"
    return Run(folder, result, labels, recipe, stages, ipc, iterations, fit, arm)


def distil_steps(run: Run, seed: int, folder: Path) -> list[Step]:
    """Makes the distilled set of a run in its folder, which is `runs/<name>/seed_<seed>` in that of the study."""
    name = f"{run.name}/seed_{seed}"
    if not run.arm.independent:
        return [fit_step(run, name, seed, folder, {})]
    fits = [
        fit_step(run, f"{name}/set_{stage + 1}", seed + SEEDS_APART * stage, folder, {"stages.num_stages": 1})
        for stage in range(run.stages)
    ]
    sets = [distilled(folder, f"{name}/set_{stage + 1}") for stage in range(run.stages)]
    args = ("join", *sets, "--output", distilled(folder, name))
    return [*fits, Step(f"{name}/join", args, after=tuple(fit.name for fit in fits))]


def fit_step(run: Run, name: str, seed: int, folder: Path, changes: Mapping[str, Any]) -> Step:
    """One `pdd fit`, which begins or continues a run.

    Args:
        run: What to distil.
        name: Name of the run folder, below `runs`.
        seed: Seed of the run.
        folder: Folder of the study.
        changes: Options in place of the run's, by dotted name.
    """
    options: dict[str, Any] = {
        # The study evaluates by itself; one network shows in the log that the run went well.
        "evaluation.num_networks": 1,
        "trainer.enable_progress_bar": False,
        **run.recipe.changes,
        "stages.num_stages": run.stages,
        "stages.iterations": run.iterations,
        "model.ipc": run.ipc,
        **run.fit,
    }
    own = {
        "seed_everything": seed,
        "trainer.default_root_dir": str(readable(folder / "runs" / name)),
        "ckpt_path": "last",
    }
    args = filled(option_args({**overridden(options, changes), **own}), seed, folder)
    return Step(f"{name}/fit", ("fit", "--config", str(run.recipe.path), *args))


def distilled(folder: Path, name: str) -> str:
    """The distilled set in the run folder of a name."""
    return str(readable(folder / "runs" / name / "distilled.safetensors"))


def filled(args: Sequence[str], seed: int, folder: Path) -> list[str]:
    """Arguments with the seed of the run and the study's folder in place of `{seed}` and `{folder}`."""
    return [arg.replace("{seed}", str(seed)).replace("{folder}", str(readable(folder))) for arg in args]
