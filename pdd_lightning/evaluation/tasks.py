"""Tasks that are computed once, kept as soon as they are done, and shared by processes."""

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
"""Is told how many steps were just done."""


@dataclass(frozen=True, eq=False)
class Task:
    """Work whose value does not depend on when, where, or after what it is done.

    Attributes:
        label: What the progress bar says.
        steps: Steps of the work; the time that is left is estimated by them.
        depends_on: All that the value depends on, as JSON.
        compute: Does the work and returns the value, as JSON, which is never None. It is called with a function to be
            told of the steps, and with the values of `needs`.
        needs: Tasks whose values this one takes; they need none themselves.
        form: What the value must be where it is taken from a file, a type as pydantic knows them.
    """

    label: str
    steps: int
    depends_on: Mapping[str, Any]
    compute: Callable[..., Any]
    needs: Sequence[Task] = ()
    form: Any = JsonValue


def run_tasks(tasks: Sequence[Task], store: ResultStore, progress: bool = True) -> list[Any]:
    """Gets the values of tasks: from the store, or else by computing and storing them one by one.

    The processes of a process group share the work. It is done in float32 whatever the precision of a trainer or a
    caller, so that results do not depend on it, and with gradients.

    Args:
        tasks: The tasks, the same on all processes.
        store: Where values are taken from and kept.
        progress: Show a progress bar.

    Returns:
        The values, in the order of the tasks, on all processes.

    Raises:
        PDDError: A task raised it, on whichever process. What was computed before is in the store.
        DamagedFileError: A stored value is not what its task computes.
    """
    values = _stored(tasks, store)
    missing = [task for task in tasks if task not in values]
    if len(missing) < len(tasks) and store.path is not None and distributed.rank() == 0:
        done = len(tasks) - len(missing)
        tqdm.write(f"{done} of {len(tasks)} results were computed before: they are kept in {store.path}")
    needs = list(dict.fromkeys(need for task in missing for need in task.needs))
    values |= _stored(needs, store)
    rounds = [[need for need in needs if need not in values], missing]
    steps = sum(task.steps for each in rounds for task in _own_share(each))
    with _in_float32(), progress_bar(steps, "Networks", "step", progress and steps > 0) as bar:
        for each in rounds:
            values |= _computed(each, values, store, bar)
    return [values[task] for task in tasks]


@contextmanager
def _in_float32() -> Iterator[None]:
    """Leaves autocast and inference mode."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


def _stored(tasks: Sequence[Task], store: ResultStore) -> dict[Task, Any]:
    """Values that were computed before; all processes go by what the first one finds."""
    found = distributed.broadcast([store.get(task.depends_on, task.form) for task in tasks])
    return {task: value for task, value in zip(tasks, found, strict=True) if value is not None}


def _own_share(tasks: Sequence[Task]) -> Sequence[Task]:
    return tasks[distributed.rank() :: distributed.world_size()]


def _computed(tasks: Sequence[Task], values: Mapping[Task, Any], store: ResultStore, bar: tqdm[Any]) -> dict[Task, Any]:
    """Computes tasks; every process does its share, and gets all values."""
    own: list[Any] = []
    error: PDDError | None = None
    try:
        for task in _own_share(tasks):
            bar.set_description(task.label, refresh=False)
            own.append(task.compute(bar.update, *(values[need] for need in task.needs)))
            store.put(task.depends_on, own[-1])
    except PDDError as raised:
        error = raised
    shares, errors = zip(*distributed.gather((own, error)), strict=True)
    for error in filter(None, errors):
        raise error
    return {task: shares[number % len(shares)][number // len(shares)] for number, task in enumerate(tasks)}
