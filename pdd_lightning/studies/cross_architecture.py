"""One distilled set, many kinds of networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import Path_fr

from pdd_lightning.errors import ConfigError
from pdd_lightning.results.plots import draw_rows
from pdd_lightning.studies.arms import Arm, Method, Scoring, own_arm
from pdd_lightning.studies.grid import GridSettings, GridStudy
from pdd_lightning.studies.recipe import readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


OWN = "own"
"""What the table calls the kind of network that the set was distilled with."""


class CrossArchitecture(GridStudy):
    """Networks of other kinds than the one that the set was distilled with.

    Args:
        method: The recipe.
        grid: What all such studies need to know; `evaluate` may name several protocols.
        networks: Kinds of networks, by the name that the table gives them: a class or a YAML file, as
            `pdd evaluate --network` takes it. The set's own kind is always among them.

    Raises:
        ConfigError: A network has the name of the set's own kind.
    """

    def __init__(self, method: Method, grid: GridSettings, networks: dict[str, Path_fr | str]) -> None:
        super().__init__(grid)
        self.method = method
        self.networks = networks
        if OWN in networks:
            raise ConfigError(f"{OWN!r} is the kind that the set was distilled with: give the network another name")

    def arms(self) -> list[Arm]:
        """The recipe as it is."""
        return [own_arm(self.method)]

    def scorings(self) -> list[Scoring]:
        """One evaluation per kind of network."""
        others = {name: {"network": _word(network)} for name, network in self.networks.items()}
        kinds: dict[str, dict[str, Any]] = {OWN: {}, **others}
        return [Scoring(f"on_{name}", {"network": name}, options) for name, options in kinds.items()]

    def plot(self, figure: Figure, rows: Sequence[dict[str, Any]]) -> None:
        """A mark per kind of network, training set and protocol."""
        draw_rows(figure, rows, "network")


def _word(network: Path_fr | str) -> str:
    """A class name as it is, a file as seen from the working directory."""
    return network if isinstance(network, str) else str(readable(Path(network.absolute)))
