"""Tasks whose values are computed once, stored, and shared by processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from pydantic import JsonValue
from tqdm.auto import tqdm

from pdd_lightning import distributed
from pdd_lightning.errors import PDDError
from pdd_lightning.progress import progress_bar
from pdd_lightning.results.result_store import ResultStore

OnSteps: TypeAlias = Callable[[int], object]
"""Receives the number of steps just taken."""


@dataclass(frozen=True, eq=False)
class Task:
    """Work whose value does not depend on when, where and in which order it is done.

    Attributes:
        label: Description for the progress bar.
        depends_on: All that the value depends on, as JSON.
        compute: Returns the value, as JSON other than null. It is called with a function that receives the steps
            taken, and with the values of `needs`.
        needs: Tasks whose values this one needs; they need none themselves.
        value_type: Type of a stored value, as pydantic knows it.
    """

    label: str
    steps: int
    depends_on: Mapping[str, Any]
    compute: Callable[..., Any]
    needs: Sequence[Task] = ()
    value_type: Any = JsonValue


def run_tasks(tasks: Sequence[Task], store: ResultStore, progress: bool = True) -> list[Any]:
    """Return the values of tasks; compute and store those that the store lacks.

    The processes of a process group share the work, which is done in float32 and with gradients whatever the context
    of the caller.

    Returns:
        The values, in the order of the tasks, on all processes.

    Raises:
        PDDError: A task raised it, on any process.
        DamagedFileError: A stored value is not of the type of its task.
    """
    values = _stored_values(tasks, store)
    missing = [task for task in tasks if task not in values]
    if len(missing) < len(tasks) and store.path is not None and distributed.rank() == 0:
        done = len(tasks) - len(missing)
        tqdm.write(f"{done} of {len(tasks)} results were computed before: they are kept in {store.path}")
    needs = list(dict.fromkeys(need for task in missing for need in task.needs))
    values |= _stored_values(needs, store)
    rounds = [[need for need in needs if need not in values], missing]
    steps = sum(task.steps for batch in rounds for task in _share_of_process(batch))
    with _float32_with_gradients(), progress_bar(steps, "Networks", "step", progress and steps > 0) as bar:
        for batch in rounds:
            values |= _compute(batch, values, store, bar)
    return [values[task] for task in tasks]


@contextmanager
def _float32_with_gradients() -> Iterator[None]:
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


def _stored_values(tasks: Sequence[Task], store: ResultStore) -> dict[Task, Any]:
    """Return the values that the first process finds in its store."""
    found = distributed.broadcast([store.get(task.depends_on, task.value_type) for task in tasks])
    return {task: value for task, value in zip(tasks, found, strict=True) if value is not None}


def _share_of_process(tasks: Sequence[Task]) -> Sequence[Task]:
    return tasks[distributed.rank() :: distributed.world_size()]


def _compute(tasks: Sequence[Task], values: Mapping[Task, Any], store: ResultStore, bar: tqdm[Any]) -> dict[Task, Any]:
    """Compute the share of this process, and return the values of all processes."""
    computed: list[Any] = []
    error: PDDError | None = None
    try:
        for task in _share_of_process(tasks):
            bar.set_description(task.label, refresh=False)
            computed.append(task.compute(bar.update, *(values[need] for need in task.needs)))
            store.put(task.depends_on, computed[-1])
    except PDDError as raised:
        error = raised
    shares, errors = zip(*distributed.gather((computed, error)), strict=True)
    for error in filter(None, errors):
        raise error
    return {task: shares[number % len(shares)][number // len(shares)] for number, task in enumerate(tasks)}
