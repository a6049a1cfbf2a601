"""Expert trajectories of the official code of trajectory matching, `replay_buffer_*.pt`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from pdd_lightning.data.formats.registry import Format, ImportOptions, register
from pdd_lightning.errors import DataError
from pdd_lightning.stored import load_tensors

if TYPE_CHECKING:
    from pdd_lightning.data.real import RealDataModule


@register
class TrajectoryFiles(Format):
    """Files of expert trajectories rather than a distilled set; `ReplayBuffers` reads them."""

    name, files = "trajectories", "replay_buffer_*.pt (expert trajectories of MTT)"

    def sniff(self, path: Path, content: Any) -> bool:
        """Return whether it is a file of a list (experts) of lists (epochs) of lists (parameters)."""
        return _is_nested(content)

    def read(self, path: Path, real: RealDataModule | None, options: ImportOptions) -> NoReturn:
        """Raise `DataError`: there are no images."""
        raise DataError(f"{path} holds expert trajectories, not a distilled set: `pdd convert` makes experts of it")


class ReplayBuffers:
    """Experts of one or more files, all of one architecture; they stay on disk until they are used.

    Args:
        paths: Files, each a list (experts) of lists (epochs) of the parameters in `network.parameters()` order.
        network: A network of the recorded architecture.

    Attributes:
        epochs: Number of epochs of every expert's training.

    Raises:
        DataError: A file holds anything else, or parameters of another network, or experts differ in length.
    """

    def __init__(self, paths: Sequence[Path], network: nn.Module) -> None:
        self._experts: list[tuple[str, Any]] = []
        shapes = [tuple(parameter.shape) for parameter in network.parameters()]
        for path in paths:
            content = load_tensors(path)
            if not _is_nested(content):
                raise DataError(
                    f"{path} holds no expert trajectories: expected a list of experts, each a list of epochs"
                )
            for number, expert in enumerate(content):
                self._experts.append((f"{path}, expert {number}", expert))
                _check_expert(*self._experts[-1], shapes)
        lengths = {len(expert) - 1 for _, expert in self._experts}
        if len(lengths) > 1:
            raise DataError(f"experts differ in their number of epochs ({sorted(lengths)}): convert them separately")
        self.epochs = lengths.pop()

    def __len__(self) -> int:
        return len(self._experts)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the parameters `[epochs + 1, P]` of one expert after another.

        Raises:
            DataError: Parameters are infinite or not a number.
        """
        for where, expert in self._experts:
            snapshots = torch.stack([torch.cat([value.detach().reshape(-1) for value in epoch]) for epoch in expert])
            if not bool(snapshots.isfinite().all()):
                raise DataError(f"{where}: parameters are infinite or not a number; leave that file out")
            yield snapshots


def _is_nested(content: Any) -> bool:
    """Return whether it is a list of lists of lists of tensors."""
    for _ in range(3):
        if not isinstance(content, list | tuple) or not content:
            return False
        content = content[0]
    return isinstance(content, Tensor)


def _check_expert(where: str, expert: Any, shapes: list[tuple[int, ...]]) -> None:
    if not isinstance(expert, list | tuple) or len(expert) < 2:
        raise DataError(f"{where} is no trajectory: expected its parameters before the first and after every epoch")
    for epoch, values in enumerate(expert):
        values = values if isinstance(values, list | tuple) else [values]
        found = [tuple(value.shape) if isinstance(value, Tensor) else "no tensor" for value in values]
        for number, (shape, expected) in enumerate(zip_longest(found, shapes, fillvalue="none")):
            if shape != expected:
                raise DataError(
                    f"{where}, epoch {epoch}: parameter {number} is {shape}, the network's {expected}: name the network"
                    " and the data that it was recorded with"
                )
        if any(value.dtype != torch.float32 for value in values):
            raise DataError(f"{where}, epoch {epoch}: parameters must be float32")
