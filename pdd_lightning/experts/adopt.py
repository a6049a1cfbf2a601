"""Expert trajectories that were recorded elsewhere, stored as if recorded here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor, nn

from pdd_lightning.data.splits import EncodedImages
from pdd_lightning.experts.recorder import ExpertRecorder
from pdd_lightning.experts.store import TrajectoryStore
from pdd_lightning.networks.parameters import load_flat
from pdd_lightning.progress import progress_bar
from pdd_lightning.training import score_network


def adopt_trajectories(
    folder: Path, epochs: int, trajectories: Iterable[Tensor], network: nn.Module, recorder: ExpertRecorder
) -> TrajectoryStore:
    """Stores trajectories in a folder that `stages.experts.folder` of a run with the recorder's settings accepts.

    The networks are scored on the validation part, which shows whether they fit the data. If they were trained on all
    training images, as is usual elsewhere, that part is not unseen by them.

    Args:
        folder: Where to store them; without trajectories of its own.
        epochs: Epochs that every expert was trained for.
        trajectories: Parameters `[epochs + 1, P]` of each expert, as many as the recorder's settings say.
        network: A network of the kind that was recorded, on the recorder's device.
        recorder: Says what the trajectories are taken to depend on: network, data, seed, augmentation and training.

    Returns:
        The complete folder.
    """
    store = TrajectoryStore(folder, recorder.settings.number, recorder.description(epochs))
    accuracy = _scorer(network, recorder)
    with progress_bar(recorder.settings.number, "Experts", "expert", recorder.progress) as bar:
        for expert, snapshots in enumerate(trajectories):
            store.write(
                expert,
                snapshots,
                losses=[],
                accuracies=[],
                start_accuracy=accuracy(snapshots[0]),
                end_accuracy=accuracy(snapshots[-1]),
                start_seconds=0.0,
                record_seconds=0.0,
            )
            bar.update()
    store.missing()
    store.seal()
    return store


def _scorer(network: nn.Module, recorder: ExpertRecorder) -> Callable[[Tensor], float]:
    """Validation accuracy of parameters `[P]`."""
    val = recorder.real.val
    images = EncodedImages(val.images, recorder.real.pixels, recorder.device)
    labels = val.labels.to(recorder.device)

    def score(parameters: Tensor) -> float:
        load_flat(network, parameters)
        return score_network(network, images, labels, recorder.real.num_classes).accuracy

    return score
