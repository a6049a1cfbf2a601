"""Training and scoring the networks that were planned."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pdd_lightning import __version__
from pdd_lightning.data.splits import EncodedImages
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation.baselines import (
    check_counts,
    chosen_set,
    features_before_classifier,
    herding_choice,
    kmeans_set,
    random_choice,
)
from pdd_lightning.evaluation.plan import NetworkPlan, Subject
from pdd_lightning.evaluation.protocols import Phase
from pdd_lightning.evaluation.settings import EvaluationSettings
from pdd_lightning.experts import TrajectoryStore
from pdd_lightning.files import sha256_of_tensors
from pdd_lightning.networks.parameters import load_flat
from pdd_lightning.networks.spec import network_spec
from pdd_lightning.randomness import derive_seed, generator_for, seeded
from pdd_lightning.results.store import TaskResult
from pdd_lightning.training import Images, Score, score_network, train_network


class Evaluator:
    """What the networks of one evaluation share: sets, made when they are first needed, and what is known already.

    Args:
        subject: What is evaluated.
        settings: How.

    Raises:
        ConfigError: There are no experts, or experts of other networks, where their initialisations are asked for.
        DataError: A class has fewer real images than a baseline needs.
    """

    def __init__(self, subject: Subject, settings: EvaluationSettings) -> None:
        self.subject = subject
        self.settings = settings
        self._parts: dict[str, tuple[EncodedImages, Tensor]] = {}
        self._sets: dict[tuple[str, int], SyntheticSet] = {}
        # Found out now rather than after hours.
        if settings.baselines:
            check_counts(subject.real, subject.synthetic)
        for expert in self.experts()[:1]:
            self._network(0, expert)

    def experts(self) -> list[int]:
        """Experts in whose initialisations networks begin."""
        return [] if self._trajectories is None else list(self._trajectories.checksums())

    def kept(self, plan: NetworkPlan) -> TaskResult | None:
        """The result of a network that was evaluated before."""
        value = self.subject.store.get(self._depends_on(plan))
        return None if value is None else TaskResult.of_value(value)

    def evaluate(self, plan: NetworkPlan, on_steps: Callable[[int], None]) -> TaskResult:
        """Trains a network and scores it after each phase.

        Args:
            plan: The network.
            on_steps: Called after each epoch with its optimiser steps.
        """
        subject, begin = self.subject, time.perf_counter()
        network = self._network(plan.number, plan.expert)
        generator = generator_for(subject.seed, "evaluation", plan.row, plan.number)
        scores: list[Score] = []
        seconds: list[float] = []
        for phase in plan.phases:
            images, labels = self._training_data(plan, phase)
            counted = _counting(on_steps, phase, len(images))
            train_network(network, images, labels, phase.training, plan.augment, generator, counted, phase.steps)
            scores.append(score_network(network, *self._part(subject.part), subject.real.num_classes))
            seconds.append(time.perf_counter() - begin)
        result = TaskResult(self._about(plan), plan.number, scores, seconds)
        subject.store.put(self._depends_on(plan), result.value())
        return result

    def _about(self, plan: NetworkPlan) -> dict[str, Any]:
        """What a reader must know of the row."""
        subject = self.subject
        chosen_by = {"herding_epochs": self.settings.full_data_epochs} if plan.source == "herding" else {}
        return {
            **plan.about(),
            **chosen_by,
            "labels": "hard" if subject.synthetic.labels.ndim == 1 or plan.source != "distilled" else "soft",
            "part": subject.part,
            "scored": len(getattr(subject.real, subject.part)),
            "seed": subject.seed,
            "network": network_spec(subject.factory),
        }

    def _depends_on(self, plan: NetworkPlan) -> dict[str, Any]:
        expert = None
        if plan.expert is not None and self._trajectories is not None:
            expert = self._trajectories.checksums()[plan.expert]
        return {**self._fixed, "about": self._about(plan), "number": plan.number, "expert": expert}

    @cached_property
    def _fixed(self) -> dict[str, Any]:
        """What every result depends on."""
        subject = self.subject
        return {
            "package_version": __version__,
            "distilled": subject.synthetic.sha256(),
            "pixels": sha256_of_tensors(subject.pixels.tensors()),
            "data": subject.real.fingerprint,
        }

    @cached_property
    def _trajectories(self) -> TrajectoryStore | None:
        if not self.settings.expert_inits:
            return None
        if self.subject.experts is None:
            raise ConfigError("expert_inits needs the trajectories of a run: name their folder")
        store = TrajectoryStore.existing(self.subject.experts)
        if not store.checksums():
            raise ConfigError(f"{self.subject.experts} has no expert recorded yet: leave expert_inits out")
        return store

    def _network(self, number: int, expert: int | None) -> nn.Module:
        """Network `number`, fresh or as an expert began, on the device."""
        real = self.subject.real
        channels, size, _ = real.image_shape
        with seeded(self.subject.seed, "evaluation init", number):
            network = self.subject.factory(channels, real.num_classes, size)
        if expert is not None and self._trajectories is not None:
            load_flat(network, self._trajectories.segment(expert, 0, 0)[0])
        return network.to(self.subject.device)

    def _training_data(self, plan: NetworkPlan, phase: Phase) -> tuple[Images, Tensor]:
        if plan.source == "full":
            return self._part("train")
        # Random images are drawn anew for each network.
        key = (plan.source, plan.number if plan.source == "random" else 0)
        if key not in self._sets:
            self._sets[key] = self._make_set(*key).decoded(self.subject.pixels).to(self.subject.device)
        whole, (first, last) = self._sets[key], phase.stages
        chosen = (whole.stages >= first) & (whole.stages <= last)
        return whole.images[chosen], whole.labels[chosen]

    def _make_set(self, source: str, number: int) -> SyntheticSet:
        """A set as it is stored."""
        subject = self.subject
        real, pixels, like = subject.real, subject.pixels, subject.synthetic
        if source == "distilled":
            return like
        if source == "kmeans":
            return kmeans_set(real, pixels, like, subject.seed)
        if source == "herding":
            return chosen_set(real, pixels, like, self._herding_choice())
        seed = derive_seed(subject.seed, "random real", number)
        return chosen_set(real, pixels, like, random_choice(real, like, seed))

    def _herding_choice(self) -> Tensor:
        """Positions of the images that herding takes, by the features of one network trained on the full real set."""
        subject = self.subject
        training = replace(self.settings.training, epochs=self.settings.full_data_epochs)
        augment = self.settings.augmentation(subject.augment)
        about = {"training": training, "augment": vars(augment), "network": network_spec(subject.factory)}
        depends_on = {**self._fixed, "herding": about, "seed": subject.seed}
        if (kept := subject.store.get(depends_on)) is not None:
            return torch.tensor(kept)
        channels, size, _ = subject.real.image_shape
        with seeded(subject.seed, "herding init"):
            network = subject.factory(channels, subject.real.num_classes, size).to(subject.device)
        images, labels = self._part("train")
        train_network(network, images, labels, training, augment, generator_for(subject.seed, "herding"))
        chosen = herding_choice(subject.real, subject.synthetic, features_before_classifier(network, images))
        subject.store.put(depends_on, chosen.tolist())
        return chosen

    def _part(self, name: Literal["train", "val", "test"]) -> tuple[EncodedImages, Tensor]:
        if name not in self._parts:
            split = getattr(self.subject.real, name)
            images = EncodedImages(split.images, self.subject.pixels, self.subject.device)
            self._parts[name] = (images, split.labels.to(self.subject.device))
        return self._parts[name]


def _counting(on_steps: Callable[[int], None], phase: Phase, count: int) -> Callable[..., None]:
    """An `on_epoch` that tells how many steps each epoch took; the last one may be cut."""
    per_epoch = replace(phase.training, epochs=1).steps(count)

    def on_epoch(done: int, _: object) -> None:
        on_steps(min(done * per_epoch, phase.steps) - (done - 1) * per_epoch)

    return on_epoch
