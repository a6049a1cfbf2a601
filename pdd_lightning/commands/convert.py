"""`pdd convert` and `pdd join`: convert distilled sets to other formats, and join several to one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from pdd_lightning.augment import DSA
from pdd_lightning.commands.command import Command, check_outputs, device_of, settings_of
from pdd_lightning.data import RealDataModule, join_distilled
from pdd_lightning.data.formats import (
    FORMATS,
    ImportOptions,
    find_format,
    open_distilled,
    target_format,
    writable_formats,
)  # fmt: skip
from pdd_lightning.data.formats.trajectories import ReplayBuffers
from pdd_lightning.data.hub import local_file
from pdd_lightning.errors import ConfigError
from pdd_lightning.experts import ExpertRecorder, ExpertSettings
from pdd_lightning.files import replace_folder
from pdd_lightning.networks.spec import check_size
from pdd_lightning.typing import NetworkFactory


class Convert(Command):
    """Converts distilled sets and expert trajectories."""

    name = "convert"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the files, and what they do not state themselves."""
        parser.add_argument(
            "paths",
            type=str,
            nargs="+",
            help="A distilled set, or files of expert trajectories; and, last, the target. Formats:"
            f" {'; '.join(f'{name}: {kind.files}' for name, kind in FORMATS.items())}.",
        )
        parser.add_argument(
            "--format", choices=list(writable_formats()), help="Format of the target, if its name is not enough."
        )
        parser.add_argument("--overwrite", type=bool, default=False, help="Replace what the target holds.")
        parser.add_argument(
            "--decoded", type=bool, default=False, help="Write decoded images if stored ones stand for several."
        )
        data_help = "Real images that the set was distilled from: a class or a file."
        parser.add_subclass_arguments(RealDataModule, "data", required=False, help=data_help)
        parser.add_class_arguments(ImportOptions)
        network_help = "Trajectories: the kind of network: a class or a file."
        parser.add_argument("--network", type=NetworkFactory, sub_configs=True, help=network_help)
        parser.add_class_arguments(ExpertSettings, "experts", skip={"number", "epochs", "folder"})
        parser.add_argument(
            "--augment", type=str, default=DSA().strategy, help="Trajectories: the experts' augmentation."
        )
        parser.add_argument("--seed", type=int, default=0, help="Trajectories: seed_everything of the runs to come.")
        parser.add_argument("--device", type=str, default="auto", help="Trajectories: where to score the experts.")

    def run(self, options: Namespace) -> None:
        """Convert, and print what was written and what was lost."""
        *sources, target = map(Path, options["paths"])
        if not sources:
            raise ConfigError("name a source and a target")
        sources = [local_file(source) for source in sources]
        if find_format(sources[0]).name == "trajectories":
            _convert_trajectories(sources, target, options)
        elif len(sources) > 1:
            raise ConfigError(f"one distilled set at a time: got {len(sources)} sources for {target}")
        else:
            _convert_set(sources[0], target, options)


class Join(Command):
    """Joins sets to the stages of one."""

    name = "join"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the sets and the target."""
        parser.add_argument("paths", nargs="+", type=str, help="Distilled sets, .safetensors files.")
        parser.add_argument("--output", type=str, required=True, help="The .safetensors file to write.")

    def run(self, options: Namespace) -> None:
        """Write the set."""
        check_outputs(options, "output")
        print(f"Wrote {join_distilled(options['paths'], options['output'])}")


def _convert_set(source: Path, target: Path, options: Namespace) -> None:
    kind, source_kind = target_format(target, options["format"]), find_format(source)
    import_options = settings_of(ImportOptions, options)
    dataset = open_distilled(source, options.get("data"), import_options, stored=not options["decoded"])
    omissions = kind.save(target, dataset, options["overwrite"])
    stages = f"{dataset.num_stages} stage{'s' if dataset.num_stages > 1 else ''}"
    print(f"{target}: {len(dataset)} images of {len(dataset.class_names)} classes, {stages}, {kind.name} format")
    if source_kind.in_model_space:
        print(f"Note: images are taken to be in the {dataset.pixels.kind} space of {options['data'].name}")
    for omission in omissions:
        print(f"Note: {omission}")


def _convert_trajectories(sources: list[Path], target: Path, options: Namespace) -> None:
    factory, real = options["network"], options.get("data")
    if factory is None or real is None:
        raise ConfigError("expert trajectories name neither their network nor their data: give --network and --data")
    former = [path for pattern in ("manifest.json", "expert_*") for path in target.glob(pattern)]
    if former and not options["overwrite"]:
        raise ConfigError(f"{target} holds experts: choose another folder, or replace them with --overwrite true")
    real.prepare_data()
    real.setup()
    channels, size, _ = real.image_shape
    check_size(factory, real.image_shape, real.num_classes)
    experts = ReplayBuffers(sources, factory(channels, real.num_classes, size))
    settings = replace(options["experts"], number=len(experts), epochs=experts.epochs)
    augment, device = DSA(options["augment"]), device_of(options["device"])
    recorder = ExpertRecorder(factory, real, settings, augment, options["seed"], device)
    accuracies: list[float] = []

    def record(folder: Path) -> None:
        records = recorder.adopt(folder, experts, experts.epochs).records
        accuracies.extend(expert.end_accuracy for expert in records)

    replace_folder(target, record, keep=lambda path: path not in former)
    accuracy = sum(accuracies) / len(experts)
    print(f"{target}: {len(experts)} experts of {experts.epochs} epochs, validation accuracy {accuracy:.1%}")
    print("Note: elsewhere experts are usually trained on the images of the validation part, too")
    print(
        f"Distill from them with --seed_everything {options['seed']} --stages.experts.folder {target}"
        f" --stages.experts.number {len(experts)} --stages.experts.epochs {experts.epochs}"
    )
