"""`pdd evaluate`, `pdd describe` and `pdd continual`: networks are trained, to see what distilled sets are worth."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from pdd_lightning import distributed
from pdd_lightning.commands.command import Command, check_outputs, device_of, settings_of
from pdd_lightning.data.formats import ImportOptions
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.errors import check_seed
from pdd_lightning.evaluation import EvaluationSettings, evaluate, ranking_scores, stored_subject
from pdd_lightning.evaluation.continual import ContinualSettings, learn_tasks
from pdd_lightning.evaluation.describe import describe_stages, example_images
from pdd_lightning.evaluation.learning_tasks import stored_tasks
from pdd_lightning.files import atomic_write_bytes, atomic_write_json
from pdd_lightning.networks.spec import network_spec
from pdd_lightning.results.plots import draw_continual, draw_stages, render_figure
from pdd_lightning.results.result_store import ResultStore
from pdd_lightning.results.tables import continual_table, description_table, evaluation_table
from pdd_lightning.training import TrainingSettings
from pdd_lightning.typing import NetworkFactory


class _TrainsNetworks(Command):
    """A verb whose networks are kept one by one."""

    def advice(self, options: Namespace) -> str:
        """How to go on where the verb was interrupted."""
        if options["output"]:
            return "The same command continues: the networks that are done are kept."
        return "Nothing is kept, for lack of --output; start the same command again."


class Evaluate(_TrainsNetworks):
    """Trains networks on a distilled file; needs no run."""

    name = "evaluate"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Adds file, data, network, and the settings of the evaluation."""
        parser.add_argument("path", type=str, help="The distilled set, a .safetensors file or of another format.")
        _add_common(parser)
        parser.add_class_arguments(EvaluationSettings)
        parser.add_class_arguments(ImportOptions)
        parser.add_argument("--part", choices=["val", "test"], default="test", help="Real images to score on.")
        parser.add_argument(
            "--experts",
            type=str | None,
            default=None,
            help="Folder of expert trajectories: evaluate networks with their initialisations, too (expert_inits);"
            " by default experts/theta_0 beside the distilled set.",
        )
        parser.add_argument("--ranking", type=bool, default=False, help="Compute DD-Ranking's two scores.")

    def run(self, options: Namespace) -> None:
        """Prints the table, and writes the rows where asked to."""
        settings, path = settings_of(EvaluationSettings, options), options["path"]
        if options["experts"]:
            settings = replace(settings, expert_inits=True)
        experts = Path(options["experts"] or Path(path).parent / "experts" / "theta_0")
        given = settings_of(ImportOptions, options)
        subject = stored_subject(path, **_common(options), part=options["part"], experts=experts, options=given)
        rows = evaluate(subject, settings, options["ranking"])
        if distributed.rank() > 0:
            return
        print(evaluation_table(rows).text())
        content = {"distilled": path, "seed": options["seed"], "rows": rows}
        if options["ranking"]:
            content["ranking"] = ranking_scores(rows)
            for name, score in content["ranking"].items():
                print(f"{name.replace('_', ' ').capitalize()} (0 to 1): {score:.3f}")
        if options["output"]:
            atomic_write_json(options["output"], content)


class Describe(_TrainsNetworks):
    """Compares the images of each stage with each other and with real ones."""

    name = "describe"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Adds file, data, and the networks that judge the images."""
        parser.add_argument("path", type=str, help="The distilled set, a .safetensors file or of another format.")
        _add_common(parser)
        parser.add_class_arguments(ImportOptions)
        parser.add_argument("--num_networks", type=int, default=3, help="Networks that judge, to average over.")
        parser.add_class_arguments(TrainingSettings, "training", help="Their training on the real images.")
        parser.set_defaults({"training.epochs": 50})
        parser.add_argument("--figure", type=str | None, default=None, help="PNG file for images and statistics.")

    def run(self, options: Namespace) -> None:
        """Prints the table, and writes rows and picture where asked to."""
        path, training = options["path"], options["training"]
        subject = stored_subject(path, **_common(options), part="val", options=settings_of(ImportOptions, options))
        rows = describe_stages(subject, training, options["num_networks"])
        if distributed.rank() > 0:
            return
        print(description_table(rows).text())
        if options["output"]:
            facts = {
                "distilled": path,
                "network": network_spec(subject.factory),
                "num_networks": options["num_networks"],
                "training": asdict(training),
                "augment": subject.augment.strategy,
                "seed": options["seed"],
            }
            atomic_write_json(options["output"], {**facts, "rows": rows})
        if options["figure"]:
            title, examples = f"{subject.method} on {subject.real.name}", example_images(subject)
            picture = render_figure(lambda figure: draw_stages(figure, rows, examples, title))
            atomic_write_bytes(options["figure"], picture)


class Continual(_TrainsNetworks):
    """Learns classes task by task with a memory of those that are gone."""

    name = "continual"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Adds the tasks' sets, data, and settings."""
        parser.add_argument(
            "memory",
            type=str,
            nargs="+",
            help="Distilled sets in the order of learning, one per task, each distilled from its task's classes alone.",
        )
        _add_common(parser)
        parser.add_class_arguments(ContinualSettings)
        parser.add_argument("--part", choices=["val", "test"], default="val", help="Real images to score on.")
        parser.add_argument("--figure", type=str | None, default=None, help="PNG file for a picture of the rows.")

    def run(self, options: Namespace) -> None:
        """Prints the table, and writes rows and picture where asked to."""
        settings = settings_of(ContinualSettings, options)
        tasks = stored_tasks(options["memory"], **_common(options), part=options["part"])
        rows = learn_tasks(tasks, settings)
        if distributed.rank() > 0:
            return
        print(continual_table(rows).text())
        if options["output"]:
            facts = {
                "memory": options["memory"],
                "tasks": [task.real.class_names for task in tasks],
                "network": network_spec(tasks[0].factory),
                "augment": tasks[0].augment.strategy,
                "seed": options["seed"],
                "settings": asdict(settings),
            }
            atomic_write_json(options["output"], {**facts, "rows": rows})
        if options["figure"]:
            title = f"{options['data'].name}: {tasks[-1].seen} classes in {len(tasks)} tasks"
            picture = render_figure(lambda figure: draw_continual(figure, rows, title))
            atomic_write_bytes(options["figure"], picture)


def _add_common(parser: ArgumentParser) -> None:
    """Adds the arguments that all have."""
    parser.add_subclass_arguments(RealDataModule, "data", required=True, help="Real images: a class or a YAML file.")
    parser.add_argument(
        "--network",
        type=NetworkFactory,
        sub_configs=True,
        help="Kind of network: a class or a YAML file; by default the kind that the set was distilled with.",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="Make the network that the set names also where its class lies outside of this package and torchvision."
        " Importing a class can run code: for files from people that you trust.",
    )
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, cuda:1, ..; auto takes a GPU if any.")
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="Processes that share the networks: they divide the GPUs, or else the threads, among them.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of initialisations and batch orders.")
    parser.add_argument(
        "--output",
        type=str | None,
        default=None,
        help="JSON file for the rows; beside it, results of single networks are kept, from which to continue.",
    )


def _common(options: Namespace) -> dict[str, Any]:
    """What these arguments mean; output options that name a folder are refused."""
    check_outputs(options, "output", "figure")
    check_seed(seed=options["seed"])
    output = options["output"] and Path(options["output"]).with_suffix(".networks.jsonl")
    return {
        "real": options["data"],
        "factory": options["network"],
        "trust": options["trust"],
        "seed": options["seed"],
        "device": device_of(options["device"]),
        "store": ResultStore(output or None),
    }
