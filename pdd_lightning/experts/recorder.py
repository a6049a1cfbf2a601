"""Recording expert trajectories: many independent networks trained on the real images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pdd_lightning import distributed
from pdd_lightning.augment import DSA
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.splits import EncodedImages, ImageSplit
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import DamagedFileError, NonFiniteLossError, check_at_least
from pdd_lightning.experts.trajectory_store import TrajectoryStore
from pdd_lightning.files import lock_file, sha256_of_tensors
from pdd_lightning.metrics import ForgettingScore
from pdd_lightning.networks.parameters import flatten, load_flat
from pdd_lightning.networks.spec import network_spec
from pdd_lightning.progress import progress_bar
from pdd_lightning.randomness import generator_for, seeded
from pdd_lightning.training import EpochRecord, TrainingSettings, score_network, train_network, train_networks
from pdd_lightning.typing import NetworkFactory


@dataclass(frozen=True)
class ExpertSettings:
    """How experts are trained on the real images.

    Attributes:
        number: Number of experts.
        epochs: Epochs recorded by the experts of the first stage; null records what the method needs, as later stages
            do. More are useful if several runs share a folder of trajectories.
        lr: Learning rate of SGD.
        batch_size: Images per step.
        images_per_epoch: Real images of an epoch, drawn anew for each, in several passes if there are fewer; null takes
            all. It gives segments the same number of steps whatever the size of the dataset. Experts trained like that
            have no forgetting scores.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty of SGD.
        rho: Radius of sharpness-aware steps, which give flatter trajectories at twice the time; 0 takes plain steps.
        alpha: Weight of the surrogate gap in sharpness-aware steps.
        inits: Where experts of later stages come from: `continue` trains each one's own start point of the former stage
            on the union, `fresh` trains other random initializations in every stage, through all unions so far.
        folder: Where the experts of the first stage are stored and found again; null keeps them in the run folder.

    Reference:
        Du et al., Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation (CVPR 2023, FTD),
        for experts on flat trajectories. As its authors' code does, every step is a sharpness-aware one with
        adaptive ascent, rho 0.01 and alpha 0.4, in all stages; see `pdd_lightning.training.sharpness`.
    """

    number: int = 100
    epochs: int | None = None
    lr: float = 0.01
    batch_size: int = 256
    images_per_epoch: int | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    rho: float = 0.0
    alpha: float = 0.0
    inits: Literal["continue", "fresh"] = "continue"
    folder: str | None = None

    def __post_init__(self) -> None:
        check_at_least(1, **{f"experts.{name}": getattr(self, name) for name in ("number", "images_per_epoch")})
        self.training(self.epochs or 0)  # refuses bad settings before anything is recorded

    def first_folder(self, root: Path) -> Path:
        """Return the folder of the first stage's experts; `root` is the folder of all experts of a run."""
        return Path(self.folder) if self.folder else root / "theta_0"

    def images_of_epoch(self, count: int) -> int:
        """Return how many of `count` real images an epoch sees."""
        return self.images_per_epoch or count

    def training(self, epochs: int) -> TrainingSettings:
        """Return the experts' training on real images, at a constant learning rate."""
        return TrainingSettings.of(self, epochs=epochs, milestones=())


@dataclass(frozen=True)
class StartPoint:
    """Where the experts of a later stage start: the former start points, trained on the union.

    Attributes:
        previous: Opens the trajectories of the former stage; expert j continues from its snapshot 0, or from its
            random initialization if there are none. Called only when an expert has to be recorded.
        phases: Unions that networks are trained on, decoded, in order, each with its settings; the last one holds all
            images distilled so far.
        at_once: Networks trained at once, see `train_networks`.
    """

    previous: Callable[[], TrajectoryStore | None]
    phases: tuple[tuple[SyntheticSet, TrainingSettings], ...]
    at_once: int = 1

    @property
    def num_stages(self) -> int:
        """Stages of the last union."""
        return self.phases[-1][0].num_stages

    @property
    def steps(self) -> int:
        """Optimizer steps of one network."""
        return sum(training.steps(len(union.labels)) for union, training in self.phases)

    def to(self, device: torch.device) -> StartPoint:
        """Return the same with all unions on `device`."""
        return replace(self, phases=tuple((union.to(device), training) for union, training in self.phases))

    def description(self) -> dict[str, Any]:
        """Return what the start points depend on, for the manifest; by more than rounding, so without `at_once`."""
        *earlier, last = ({"union": union.sha256(), "training": asdict(training)} for union, training in self.phases)
        return {**last, "earlier": earlier} if earlier else last


@dataclass(frozen=True)
class ExpertRecorder:
    """Trains experts and stores their trajectories; processes share the work.

    Attributes:
        factory: Builds the networks.
        real: Real images, set up.
        settings: Number of experts and their training.
        augment: Augmentation of real and union images.
        seed: Seed of the run: with the stage and the expert's number it determines each expert.
        device: Where the networks are trained.
        progress: Show a progress bar.
        first: Number of the first expert; experts of other numbers are other networks.
    """

    factory: NetworkFactory
    real: RealDataModule
    settings: ExpertSettings
    augment: DSA
    seed: int
    device: torch.device
    progress: bool = True
    first: int = 0

    def record(
        self,
        folder: Path,
        epochs: int,
        start: StartPoint | None = None,
        title: str = "Experts",
        examples: ImageSplit | None = None,
    ) -> TrajectoryStore:
        """Record the experts that `folder` lacks and return it; wait for another run that is recording into it.

        Args:
            folder: Folder of the trajectories.
            epochs: Epochs on the real images; 0 stores the start points only.
            start: Start points; `None` means random initialization.
            title: Title of the progress bar.
            examples: Real images to train on; `None` means the whole training part.

        Raises:
            ConfigError: The folder holds trajectories of other settings.
            DamagedFileError: A stored file is truncated or altered.
            NonFiniteLossError: A network diverged in training.
        """
        if examples is None or epochs == 0:
            examples = self.real.train
        store = TrajectoryStore(folder, self.settings.number, self.description(epochs, start, examples))
        if damaged := [str(store.file(expert)) for expert in store.damaged()]:
            raise DamagedFileError(
                f"expert files are truncated or altered: {', '.join(damaged)}. Restore them from a copy, or delete them"
                " to have these experts recorded again."
            )
        if distributed.broadcast(store.missing()):
            with lock_file(store.manifest) if distributed.rank() == 0 else nullcontext():
                # Another run may have recorded some in the meantime. All processes take the same list.
                missing = distributed.broadcast(store.missing())
                if missing and start is not None:
                    start.previous()  # on all processes, since it may have to record first
                self._record_missing(store, missing, epochs, start, title, examples)
                distributed.barrier()
                if distributed.rank() == 0:
                    store.seal()
            distributed.barrier()
            store.missing()
        return store

    def adopt(self, folder: Path, trajectories: Iterable[Tensor], epochs: int) -> TrajectoryStore:
        """Store trajectories of other code as if this had recorded them.

        A run with the same settings accepts the folder as `stages.experts.folder`. The networks are scored on the
        validation part, which shows whether they fit the data. If they were trained on all training images, as is
        usual elsewhere, they have seen that part.

        Args:
            folder: Where to store them; without trajectories of its own.
            trajectories: Parameters `[epochs + 1, P]` of each expert, as many as the settings say.
            epochs: Epochs that every expert was trained for.

        Returns:
            The complete folder.
        """
        store = TrajectoryStore(folder, self.settings.number, self.description(epochs))
        (network,) = self._fresh_networks([0])

        def accuracy(parameters: Tensor) -> float:
            load_flat(network, parameters)
            return self._val_accuracy(network)

        with progress_bar(self.settings.number, "Experts", "expert", self.progress) as bar:
            for expert, snapshots in enumerate(trajectories):
                scores = {"start_accuracy": accuracy(snapshots[0]), "end_accuracy": accuracy(snapshots[-1])}
                times = {"start_seconds": 0.0, "record_seconds": 0.0}
                store.write(expert, snapshots, losses=[], accuracies=[], **scores, **times)
                bar.update()
        store.seal()
        return store

    def description(
        self, epochs: int, start: StartPoint | None = None, examples: ImageSplit | None = None
    ) -> dict[str, Any]:
        """Return what trajectories depend on, for the manifest; arguments as for `record`."""
        # Only if they are used, so that folders recorded without stay valid.
        options: dict[str, Any] = {}
        if start is not None and self.settings.inits == "fresh":
            options["inits"] = "fresh"
        if self.settings.images_per_epoch is not None:
            options["images_per_epoch"] = self.settings.images_per_epoch
        if examples is not None and examples is not self.real.train:
            options["examples"] = sha256_of_tensors({"indices": examples.indices})
        return {
            "network": network_spec(self.factory),
            "data": self.real.fingerprint,
            "seed": self.seed,
            "augment": self.augment.strategy,
            "align_corners": self.augment.align_corners,
            "augment_together": self.augment.together,
            "training": asdict(self.settings.training(epochs)),
            "start": start.description() if start else None,
            **options,
        }

    def _groups(self, missing: list[int], start: StartPoint | None) -> list[list[int]]:
        """Return this process's share of the experts, in groups whose start points are trained at once.

        Groups do not depend on which experts are missing, since rounding may depend on the group.
        """
        size, number = start.at_once if start else 1, self.settings.number
        groups = [list(range(first, min(first + size, number))) for first in range(0, number, size)]
        wanted = [group for group in groups if set(group) & set(missing)]
        return wanted[distributed.rank() :: distributed.world_size()]

    def _record_missing(
        self,
        store: TrajectoryStore,
        missing: list[int],
        epochs: int,
        start: StartPoint | None,
        title: str,
        examples: ImageSplit,
    ) -> None:
        groups = self._groups(missing, start)
        if not groups:
            return
        data, start = self._encode(examples), start.to(self.device) if start else None
        mine = [expert for group in groups for expert in group if expert in missing]
        steps = sum(map(len, groups)) * start.steps if start else 0
        steps += len(mine) * self.settings.training(epochs).steps(self.settings.images_of_epoch(len(examples)))
        with progress_bar(steps, title, "step", self.progress) as bar:
            for group in groups:
                begin = time.perf_counter()
                wanted = [expert for expert in group if expert in missing]
                bar.set_description(f"{title} {mine.index(wanted[0]) + 1}/{len(mine)}", refresh=False)
                networks = dict(zip(group, self._start_networks(group, start, bar), strict=True))
                seconds = (time.perf_counter() - begin) / len(group)
                for expert in wanted:
                    key = start.num_stages if start else 0, self.first + expert
                    generator = generator_for(self.seed, "expert", *key)
                    self._record_expert(store, expert, networks[expert], epochs, generator, data, bar, seconds)

    def _record_expert(
        self,
        store: TrajectoryStore,
        expert: int,
        network: nn.Module,
        epochs: int,
        generator: torch.Generator,
        data: tuple[EncodedImages, Tensor],
        bar: tqdm[Any],
        start_seconds: float,
    ) -> None:
        images, labels = data
        snapshots = [_snapshot(network)]
        training, per_epoch = self.settings.training(epochs), self.settings.images_per_epoch
        steps = training.steps(self.settings.images_of_epoch(len(images))) // max(epochs, 1)
        # Each process records its own experts: nothing to gather.
        forgetting = ForgettingScore(len(images), max(epochs, 1), sync_on_compute=False)

        def on_epoch(done: int, epoch: EpochRecord) -> None:
            snapshots.append(_snapshot(network))
            forgetting.update(epoch.correct.cpu(), torch.arange(len(images)), done - 1)
            bar.update(steps)

        start_accuracy = self._val_accuracy(network)
        begin = time.perf_counter()
        curve = train_network(
            network, images, labels, training, self.augment, generator, on_epoch, images_per_epoch=per_epoch
        )
        record_seconds = time.perf_counter() - begin
        if not snapshots[-1].isfinite().all():
            raise NonFiniteLossError(
                f"expert {expert} diverged in training on real images: lower stages.experts.lr (now {training.lr:g}) or"
                f" weight_decay (now {training.weight_decay:g}), and begin anew in another folder"
            )
        store.write(
            expert,
            torch.stack(snapshots),
            forgetting.compute() if epochs and per_epoch is None else None,
            losses=[epoch.loss for epoch in curve],
            accuracies=[epoch.accuracy for epoch in curve],
            start_accuracy=start_accuracy,
            end_accuracy=self._val_accuracy(network) if epochs else start_accuracy,
            start_seconds=start_seconds,
            record_seconds=record_seconds,
        )

    def _start_networks(self, experts: list[int], start: StartPoint | None, bar: tqdm[Any]) -> list[nn.Module]:
        """Build the networks of a group of experts, and train them on the unions of the start point."""
        networks = self._fresh_networks(experts)
        if start is None:
            return networks
        previous = start.previous()
        if previous is not None:
            for network, expert in zip(networks, experts, strict=True):
                load_flat(network, previous.segment(expert, 0, 0)[0])
        for union, training in start.phases:
            steps = len(experts) * replace(training, epochs=1).steps(len(union.labels))
            keys = [(union.num_stages, self.first + expert) for expert in experts]
            generators = [generator_for(self.seed, "transition", *key) for key in keys]
            images, labels = [union.images] * len(experts), [union.labels] * len(experts)
            settings = training, self.augment, generators
            train_networks(networks, images, labels, *settings, lambda *_, steps=steps: bar.update(steps))
        if not all(_snapshot(network).isfinite().all() for network in networks):
            raise NonFiniteLossError(
                f"training on the distilled images of {start.num_stages} stages diverged, at a learning rate"
                f" of {training.lr:.3g} and weight decay {training.weight_decay:.3g}: begin anew in"
                " another folder with a lower stages.transition.weight_decay, momentum, or rate of the images"
            )
        return networks

    def _fresh_networks(self, experts: list[int]) -> list[nn.Module]:
        networks = []
        channels, size, _ = self.real.image_shape
        for expert in experts:
            with seeded(self.seed, "expert init", self.first + expert):
                networks.append(self.factory(channels, self.real.num_classes, size).to(self.device))
        return networks

    def _encode(self, part: ImageSplit) -> tuple[EncodedImages, Tensor]:
        """Return images in model space and their labels, on the device."""
        return EncodedImages(part.images, self.real.pixels, self.device), part.labels.to(self.device)

    @cached_property
    def _val(self) -> tuple[EncodedImages, Tensor]:
        return self._encode(self.real.val)

    def _val_accuracy(self, network: nn.Module) -> float:
        return score_network(network, *self._val, self.real.num_classes).accuracy


def _snapshot(network: nn.Module) -> Tensor:
    """Copy all parameters as one float32 CPU vector `[P]`."""
    return flatten(dict(network.named_parameters())).detach().to("cpu", torch.float32, copy=True)
