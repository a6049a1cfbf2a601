"""What a study is: a YAML file that says what is compared, steps to run, and a table and a plot of their results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, create_model

from pdd_lightning import __version__
from pdd_lightning.errors import ConfigError
from pdd_lightning.files import atomic_write_bytes
from pdd_lightning.results.plots import figure_png
from pdd_lightning.results.schema import StudyResult, StudyStep, write_stored
from pdd_lightning.results.tables import csv_table, markdown_table
from pdd_lightning.stored import MAX_STAGES, FileName, Name, Stored, damaged_error, read_stored
from pdd_lightning.studies.arms import Arm, Budget, Method, Part, Run, distil_steps, distilled, filled, runs_of
from pdd_lightning.studies.engine import Step
from pdd_lightning.studies.recipe import option_args, readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
_REMEDY = "delete it, and start the study again"
OUTPUTS = ("study.json", "table.csv", "table.md", "plot.png")


class Study(Part, ABC):
    """A comparison that one command makes: every arm is distilled with every method and seed, and evaluated.

    Attributes:
        title: What the study shows.
        methods: Recipes.
        seeds: Distillation seeds; each also seeds the evaluation of its sets.
        arms: What is compared, by name; by default the recipes as they are.
        column: Column of the table that holds the arms' names, if any.
        stages: In place of arms: numbers of stages for the recipe's images, each with every one of the budgets.
        budgets: Whether iterations are the same in `total`, or in each stage (`per_stage`).
        notes: Further sentences that a reader of the table must know.
    """

    title: str
    methods: tuple[Method, ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field((0, 1, 2), min_length=1, max_length=1000)
    arms: dict[Literal[""] | FileName, Arm] = Field({"": Arm()}, min_length=1)
    column: Name | None = None
    stages: tuple[Annotated[int, Field(ge=1, le=MAX_STAGES)], ...] = ()
    budgets: tuple[Budget, ...] = ()
    notes: tuple[str, ...] = ()

    command: ClassVar[str]
    """The verb of `pdd` that evaluates distilled sets."""
    kind: ClassVar[type[Stored]]
    """What it writes, row by row."""
    explanations: ClassVar[tuple[str, ...]]
    """What the numbers are."""

    @abstractmethod
    def options(self, run: Run) -> Row:
        """Options of the command for the sets of a run."""

    @abstractmethod
    def row(self, run: Run, same: Sequence[Row], folder: Path) -> Row:
        """One row of each seed's results, the same in all, as a row over seeds."""

    @abstractmethod
    def plot(self, figure: Figure, rows: Sequence[Row]) -> None:
        """Draws the rows."""

    def remarks(self, rows: Sequence[Row]) -> list[str]:
        """Sentences that a reader of the table must know."""
        return [*self.explanations, *self.notes]

    @cached_property
    def runs(self) -> list[Run]:
        """Every arm with every method."""
        grid = {f"{n} {kept}": Arm(stages=n, budget=kept) for n in self.stages for kept in self.budgets}
        return [run for method in self.methods for run in runs_of(method, grid or self.arms, self.column)]

    def check(self) -> None:
        """Refuses what cannot be studied.

        Raises:
            ConfigError: It cannot.
        """
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"a seed counts once, got {list(self.seeds)}")
        if bool(self.stages) != bool(self.budgets):
            raise ConfigError("there is nothing to compare: give numbers of stages, and budgets total or per_stage")

    def steps(self, folder: Path) -> list[Step]:
        """Command lines, each after those whose output it needs; all output goes below `folder`.

        Raises:
            ConfigError: Two different steps have the same name, or see `check`.
        """
        self.check()
        steps: dict[str, Step] = {}
        for step in [step for run in self.runs for seed in self.seeds for step in self.steps_of(run, seed, folder)]:
            if steps.setdefault(step.name, step) != step:
                raise ConfigError(f"two different steps would be called {step.name}: give the methods other names")
        return list(steps.values())

    def steps_of(self, run: Run, seed: int, folder: Path) -> list[Step]:
        """Distils and evaluates a run with a seed."""
        made = distil_steps(run, seed, folder)
        return [*made, self.evaluate_step(run, seed, folder, [f"{run.name}/seed_{seed}"], made[-1:])]

    def evaluate_step(self, run: Run, seed: int, folder: Path, names: Sequence[str], made: Sequence[Step]) -> Step:
        """The step that evaluates the distilled sets of these names, once they are made."""
        output = {"seed": seed, "output": str(readable(self._results(run, seed, folder)))}
        args = filled(option_args({**run.recipe.data(), **self.options(run), **output}), seed, folder)
        sets = [distilled(folder, name) for name in names]
        after = tuple(step.name for step in made)
        return Step(f"{run.name}/seed_{seed}/{run.result}", (self.command, *sets, *args), after)

    def rows(self, folder: Path) -> list[Row]:
        """Rows of the table, by name of the column, from the output of the steps.

        Raises:
            DamagedFileError: An output is not what a step writes.
        """
        rows = []
        for run in self.runs:
            per_seed = [self._read(self._results(run, seed, folder)) for seed in self.seeds]
            if len({len(one) for one in per_seed}) > 1:
                raise damaged_error(
                    folder / "runs" / run.name, f"{run.result}.json has other rows for some seeds", _REMEDY
                )
            rows += [self.row(run, same, folder) for same in zip(*per_seed, strict=True)]
        return rows

    def _read(self, path: Path) -> list[Row]:
        """The rows that a step wrote."""
        output = create_model("Output", __base__=Stored, rows=(list[self.kind], ...))  # type: ignore[name-defined]
        stored: Any = read_stored(output, path, _REMEDY)
        return [row.model_dump() for row in stored.rows]

    def make(self, folder: Path, run_steps: Callable[[Sequence[Step]], dict[str, float]]) -> str:
        """Has all steps run, and writes the results; without all of them there are none.

        Args:
            folder: Folder of the study.
            run_steps: Runs steps, and says how many seconds each took, see `pdd_lightning.studies.engine.run_steps`.

        Returns:
            The table with its title and remarks, as Markdown.

        Raises:
            StudyError: A step failed.
        """
        steps = self.steps(folder)
        for name in OUTPUTS:
            (folder / name).unlink(missing_ok=True)
        seconds = run_steps(steps)
        rows = self.rows(folder)
        remarks = self.remarks(rows)
        table = "\n".join([f"# {self.title}", "", markdown_table(rows), "", *(f"- {one}" for one in remarks), ""])
        result = StudyResult(
            study=type(self).__name__,
            title=self.title,
            notes=remarks,
            package_version=__version__,
            rows=rows,
            steps=[StudyStep(name=step.name, command=step.command, seconds=seconds[step.name]) for step in steps],
        )
        atomic_write_bytes(folder / "table.csv", csv_table(rows).encode())
        atomic_write_bytes(folder / "table.md", table.encode())
        atomic_write_bytes(folder / "plot.png", figure_png(lambda figure: self.plot(figure, rows)))
        write_stored(folder / "study.json", result)
        return table

    def _results(self, run: Run, seed: int, folder: Path) -> Path:
        """The file with a run's rows."""
        return folder / "runs" / run.name / f"seed_{seed}" / f"{run.result}.json"
