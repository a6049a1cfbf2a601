"""The base class of studies: their YAML file, their steps, and the table and plot of the results."""

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
from pdd_lightning.results.plots import render_figure
from pdd_lightning.results.schema import StudyResult, StudyStep, write_stored
from pdd_lightning.results.tables import csv_table, make_table
from pdd_lightning.stored import MAX_STAGES, FileName, Name, Stored, damaged_error, read_stored
from pdd_lightning.studies.arms import Arm, Budget, Method, Run, StudyPart, distill_steps, fill, runs_of, set_path
from pdd_lightning.studies.engine import Step
from pdd_lightning.studies.recipe import relative_path, to_arguments

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
OUTPUTS = ("study.json", "table.csv", "table.md", "plot.png")
_REMEDY = "delete it, and start the study again"


class Study(StudyPart, ABC):
    """A comparison: every arm is distilled with every method and seed, and evaluated.

    Attributes:
        title: Title of the table and the page.
        methods: Recipes.
        seeds: Distillation seeds, which are also those of the evaluation.
        arms: What is compared, by name; by default the recipes as they are.
        column: Column of the table for the names of the arms, if any.
        stages: In place of arms: numbers of stages for the recipe's images, each with every one of the budgets.
        budgets: Whether iterations are the same in `total`, or in each stage (`per_stage`).
        notes: Further remarks on the table.
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
    """The `pdd` command that evaluates distilled sets."""
    row_model: ClassVar[type[Stored]]
    """Rows that it writes."""
    explanations: ClassVar[tuple[str, ...]]
    """Remarks on the numbers in the table."""

    @abstractmethod
    def options(self, run: Run) -> Row:
        """Return options of the command for the sets of a run."""

    @abstractmethod
    def row(self, run: Run, seed_rows: Sequence[Row], folder: Path) -> Row:
        """Summarize a row over seeds."""

    @abstractmethod
    def plot(self, figure: Figure, rows: Sequence[Row]) -> None:
        """Draw the rows."""

    def remarks(self, rows: Sequence[Row]) -> list[str]:
        """Return the remarks below the table."""
        return [*self.explanations, *self.notes]

    @cached_property
    def runs(self) -> list[Run]:
        """Every arm with every method."""
        grid = {f"{n} {budget}": Arm(stages=n, budget=budget) for n in self.stages for budget in self.budgets}
        return [run for method in self.methods for run in runs_of(method, grid or self.arms, self.column)]

    def check(self) -> None:
        """Check entries against each other.

        Raises:
            ConfigError: They do not fit together.
        """
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"a seed counts once, got {list(self.seeds)}")
        if bool(self.stages) != bool(self.budgets):
            raise ConfigError("there is nothing to compare: give numbers of stages, and budgets total or per_stage")

    def steps(self, folder: Path) -> list[Step]:
        """Return the steps of the study, whose output is in `folder`; each comes after those that it needs.

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
        """Return the steps that distill and evaluate a run with a seed."""
        steps = distill_steps(run, seed, folder)
        return [*steps, self.evaluate_step(run, seed, folder, [f"{run.name}/seed_{seed}"], steps[-1:])]

    def evaluate_step(self, run: Run, seed: int, folder: Path, names: Sequence[str], after: Sequence[Step]) -> Step:
        """Return the step that evaluates the distilled sets in run folders of these names."""
        output = {"seed": seed, "output": str(relative_path(self._output(run, seed, folder)))}
        arguments = fill(to_arguments({**run.recipe.data(), **self.options(run), **output}), seed, folder)
        args = (self.command, *(set_path(folder, name) for name in names), *arguments)
        return Step(f"{run.name}/seed_{seed}/{run.result}", args, tuple(step.name for step in after))

    def rows(self, folder: Path) -> list[Row]:
        """Return the rows of the table from the output of the steps.

        Raises:
            DamagedFileError: The output is not that of the steps.
        """
        output = create_model("Output", __base__=Stored, rows=(list[self.row_model], ...))  # type: ignore[name-defined]
        rows = []
        for run in self.runs:
            stored: list[Any] = [read_stored(output, self._output(run, seed, folder), _REMEDY) for seed in self.seeds]
            if len({len(content.rows) for content in stored}) > 1:
                raise damaged_error(
                    folder / "runs" / run.name, f"{run.result}.json has other rows for some seeds", _REMEDY
                )
            for seed_rows in zip(*(content.rows for content in stored), strict=True):
                rows.append(self.row(run, [row.model_dump() for row in seed_rows], folder))
        return rows

    def make(self, folder: Path, run_steps: Callable[[Sequence[Step]], dict[str, float]]) -> str:
        """Run all steps by a function, which returns their seconds, and write the results once all have succeeded.

        Returns:
            The table with title and remarks as Markdown.

        Raises:
            StudyError: A step failed.
        """
        steps = self.steps(folder)
        for name in OUTPUTS:
            (folder / name).unlink(missing_ok=True)
        seconds = run_steps(steps)
        rows = self.rows(folder)
        remarks = self.remarks(rows)
        lines = [f"# {self.title}", "", make_table(rows).markdown(), "", *(f"- {text}" for text in remarks), ""]
        table = "\n".join(lines)
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
        atomic_write_bytes(folder / "plot.png", render_figure(lambda figure: self.plot(figure, rows)))
        write_stored(folder / "study.json", result)
        return table

    def _output(self, run: Run, seed: int, folder: Path) -> Path:
        return folder / "runs" / run.name / f"seed_{seed}" / f"{run.result}.json"
