"""Expert trajectories in trajectory matching's form: `replay_buffer_*.pt`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdd_lightning.data.formats.tensor_files import load_tensors
from pdd_lightning.errors import DataError


class Trajectories:
    """Experts of one or more files, for networks of one kind.

    Args:
        paths: Files, each a list (experts) of lists (epochs) of the parameters in `network.parameters()` order.
        network: A network of the kind that was recorded.

    Attributes:
        epochs: Epochs that every expert was trained for.

    Raises:
        DataError: A file holds anything else, or parameters of another network, or experts differ in length.
    """

    def __init__(self, paths: Sequence[Path], network: nn.Module) -> None:
        self._experts: list[tuple[str, Any]] = []
        shapes = [tuple(parameter.shape) for parameter in network.parameters()]
        for path in paths:
            for number, expert in enumerate(read_trajectories(path)):
                where = f"{path}, expert {number}"
                _check_expert(where, expert, shapes)
                self._experts.append((where, expert))
        lengths = {len(expert) - 1 for _, expert in self._experts}
        if len(lengths) > 1:
            raise DataError(f"experts differ in their number of epochs ({sorted(lengths)}): convert them apart")
        self.epochs = lengths.pop()

    def __len__(self) -> int:
        return len(self._experts)

    def __iter__(self) -> Iterator[Tensor]:
        """Parameters `[epochs + 1, P]` of one expert after another.

        Raises:
            DataError: Parameters are infinite or not a number.
        """
        for where, expert in self._experts:
            snapshots = torch.stack([torch.cat([value.detach().reshape(-1) for value in epoch]) for epoch in expert])
            if not bool(snapshots.isfinite().all()):
                raise DataError(f"{where}: parameters are infinite or not a number; leave that file out")
            yield snapshots


def is_trajectories(content: Any) -> bool:
    """Whether a file's content is a list of lists of lists."""
    for _ in range(3):
        if not isinstance(content, list | tuple) or not content:
            return False
        content = content[0]
    return isinstance(content, Tensor)


def read_trajectories(path: Path) -> list[list[list[Tensor]]]:
    """Read a file of trajectories; its tensors stay on the disk until they are used.

    Raises:
        DataError: The file is missing, holds code, or no trajectories.
        DamagedFileError: The file is truncated or altered.
    """
    content = load_tensors(path)
    if not is_trajectories(content):
        raise DataError(f"{path} holds no expert trajectories: expected a list of experts, each a list of epochs")
    return list(content)


def _check_expert(where: str, expert: Any, shapes: list[tuple[int, ...]]) -> None:
    if not isinstance(expert, list | tuple) or len(expert) < 2:
        raise DataError(f"{where} is no trajectory: expected its parameters before the first and after every epoch")
    for epoch, values in enumerate(expert):
        values = values if isinstance(values, list | tuple) else [values]
        found = [tuple(value.shape) if isinstance(value, Tensor) else None for value in values]
        if found != shapes:
            raise DataError(
                f"{where}, epoch {epoch}: {_first_difference(found, shapes)}: name the network and the data that it was"
                " recorded with"
            )
        if any(value.dtype != torch.float32 for value in values):
            raise DataError(f"{where}, epoch {epoch}: parameters must be float32")


def _first_difference(found: list[Any], shapes: list[tuple[int, ...]]) -> str:
    for number, (one, other) in enumerate(zip(found, shapes, strict=False)):
        if one != other:
            return f"parameter {number} is {one}, the network's {other}"
    return f"it has {len(found)} parameters, the network {len(shapes)}"
