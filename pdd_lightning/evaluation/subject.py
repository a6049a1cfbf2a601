"""The subject of an evaluation: a distilled set with real images and networks to be trained on both."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pdd_lightning import __version__, distributed
from pdd_lightning.augment import DSA
from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.formats import ImportOptions, open_distilled
from pdd_lightning.data.pixels import PixelSpace
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.splits import EncodedImages
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import DataError
from pdd_lightning.evaluation.tasks import OnSteps
from pdd_lightning.files import sha256_of_tensors
from pdd_lightning.networks.features import Outputs, features_and_logits
from pdd_lightning.networks.spec import check_size, factory_from_spec
from pdd_lightning.randomness import seeded
from pdd_lightning.results.result_store import ResultStore
from pdd_lightning.stored import one_line
from pdd_lightning.training import Images, TrainingSettings, train_network
from pdd_lightning.typing import NetworkFactory

Part: TypeAlias = Literal["val", "test"]


@dataclass(frozen=True)
class Subject:
    """A distilled set to evaluate.

    Attributes:
        synthetic: The distilled set as it is stored. Networks are trained on decoded images; baselines have as many
            images as are stored.
        real: Real images, set up.
        pixels: The model space of the distilled set, to which real images are encoded.
        factory: Makes the networks.
        augment: The augmentation that the set was distilled with.
        part: The real images that networks are scored on.
        seed: Seed of initializations, batch orders, augmentation and baselines.
        device: Device of the training.
        experts: Folder of the experts' trajectories, for networks with their initializations.
        store: Stores what is computed.
        method: Name of the method that made the set.
    """

    synthetic: SyntheticSet
    real: RealDataModule
    pixels: PixelSpace
    factory: NetworkFactory
    augment: DSA
    part: Part = "test"
    seed: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (immutable)
    experts: Path | None = None
    store: ResultStore = field(default_factory=ResultStore)
    method: str = "distilled"
    _parts: dict[str, tuple[EncodedImages, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Return what every result depends on, as JSON."""
        return {
            "package_version": __version__,
            "distilled": self.synthetic.sha256(),
            "pixels": sha256_of_tensors(self.pixels.tensors()),
            "data": self.real.fingerprint,
        }

    def real_images(self, part: Literal["train", "val", "test"]) -> tuple[EncodedImages, Tensor]:
        """Return real images in the model space of the set, and their classes `[N]`, on the device."""
        if part not in self._parts:
            split = getattr(self.real, part)
            self._parts[part] = EncodedImages(split.images, self.pixels, self.device), split.labels.to(self.device)
        return self._parts[part]

    def network(self, *purpose: str | int, num_classes: int | None = None) -> nn.Module:
        """Make a network on the device, whose initialization depends on the seed and the purpose only."""
        channels, size, _ = self.real.image_shape
        with seeded(self.seed, *purpose):
            return self.factory(channels, num_classes or self.real.num_classes, size).to(self.device)


def train_with_progress(
    network: nn.Module,
    images: Images,
    labels: Tensor,
    training: TrainingSettings,
    augment: DSA,
    generator: torch.Generator,
    on_steps: OnSteps,
    max_steps: int | None = None,
) -> None:
    """Train a network, see `train_network`, and report the optimizer steps of each epoch."""
    per_epoch = replace(training, epochs=1).steps(len(images))
    total = training.steps(len(images)) if max_steps is None else max_steps

    def on_epoch(done: int, _: object) -> None:
        on_steps(min(done * per_epoch, total) - (done - 1) * per_epoch)

    train_network(network, images, labels, training, augment, generator, on_epoch, max_steps)


@torch.no_grad()
def outputs_of(network: nn.Module, images: Images, batch_size: int = 512) -> Outputs:
    """Return features and logits of all images in evaluation mode, see `features_and_logits`."""
    network.eval()
    batches = torch.arange(len(images)).split(batch_size)
    outputs = [features_and_logits(network, images[indices]) for indices in batches]
    return Outputs(*map(torch.cat, zip(*outputs, strict=True)))


def stored_subject(
    path: str | Path,
    real: RealDataModule,
    factory: NetworkFactory | None = None,
    options: ImportOptions = ImportOptions(),  # noqa: B008  (frozen)
    trust: bool = False,
    **others: Any,
) -> Subject:
    """Open a distilled set, and load the real images.

    Args:
        path: A distilled set of any format, see `open_distilled`.
        real: Real images of the same classes.
        factory: Makes the networks; by default the kind of network that the set was distilled with.
        options: What files of other formats do not state.
        trust: Import the class of the set's network from any package.
        others: Other attributes of the subject.

    Raises:
        DataError: The file is missing, does not name its network, or does not match the real images.
        DamagedFileError: The file is truncated or altered.
        ConfigError: An option is missing or contradicts the file.
    """
    with distributed.first_before_others():
        distilled = open_distilled(path, real, options, stored=True)
        real.prepare_data()
    real.setup()
    return subject_of(distilled, real, factory, str(path), trust, **others)


def subject_of(
    distilled: DistilledDataset,
    real: RealDataModule,
    factory: NetworkFactory | None = None,
    name: str = "the distilled set",
    trust: bool = False,
    **others: Any,
) -> Subject:
    """Return a distilled set beside real images that are set up.

    Args:
        distilled: The set.
        real: Real images of the same classes.
        factory: Makes the networks; `None` takes the kind of network that the set was distilled with.
        name: What messages call the set.
        trust: Import the class of the network that the set names wherever it lies.
        others: Other attributes of the subject.

    Raises:
        DataError: The set does not name its network, or its images or classes are not those of the real data.
    """
    check_match(name, distilled, real)
    print_note_on_source(name, distilled, real)
    factory, augment = network_and_augmentation(name, distilled, real, factory, trust)
    others = {"method": distilled.metadata.get("method", "distilled"), **others}
    return Subject(distilled.stored, real, distilled.pixels, factory, augment, **others)


def network_and_augmentation(
    path: str | Path, distilled: DistilledDataset, real: RealDataModule, factory: NetworkFactory | None, trust: bool
) -> tuple[NetworkFactory, DSA]:
    """Return a given kind of network or that of a set, and the set's augmentation or the default one.

    Raises:
        DataError: No network is given, and the set does not name its own.
    """
    if factory is None and "network" not in distilled.metadata:
        raise DataError(f"{path} does not name the network that it was distilled with: name one with --network")
    factory = factory or factory_from_spec(distilled.metadata["network"], trust)
    check_size(factory, real.image_shape, real.num_classes)
    stored: dict[str, Any] = distilled.metadata.get("settings", {})
    names = {"augment": "strategy", "align_corners": "align_corners", "augment_together": "together"}
    return factory, DSA(**{argument: stored[name] for name, argument in names.items() if name in stored})


def check_match(path: str | Path, distilled: DistilledDataset, real: RealDataModule) -> None:
    """Check a set against the real images.

    Raises:
        DataError: Image shapes or class names differ.
    """
    stored = {"image shape": tuple(distilled.images.shape[1:]), "class names": distilled.class_names}
    for name, expected in {"image shape": real.image_shape, "class names": real.class_names}.items():
        if stored[name] != expected:
            raise DataError(
                f"{path} does not belong to {real.name}: its {name}: {one_line(stored[name])}, the data's:"
                f" {one_line(expected)}"
            )


def print_note_on_source(path: str | Path, distilled: DistilledDataset, real: RealDataModule) -> None:
    """Print a note if a set was distilled from other images or another split, which may contain scored images."""
    source = distilled.metadata.get("dataset", {}).get("fingerprint", real.fingerprint)
    if source != real.fingerprint and distributed.rank() == 0:
        tqdm.write(
            f"Note: {path} was distilled from other images, another split of them, or with another normalization than"
            " --data gives. If the split differs, it may have been distilled from images that are scored here."
        )
