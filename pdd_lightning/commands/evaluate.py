"""`pdd evaluate`, `pdd describe` and `pdd continual`: commands that train networks to assess distilled sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class _TrainingCommand(Command):
    """A command whose networks are stored one by one, so that it can be continued."""

    def advice(self, options: Namespace) -> str:
        """Return how to continue after an interruption."""
        if options["output"]:
            return "The same command continues: the networks that are done are kept."
        return "Nothing is kept because --output was not given; start the same command again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the arguments that all these commands have."""
        parser.add_subclass_arguments(
            RealDataModule, "data", required=True, help="Real images: a class or a YAML file."
        )
        network_help = "Kind of network: a class or a YAML file; by default the kind that the set was distilled with."
        parser.add_argument("--network", type=NetworkFactory, sub_configs=True, help=network_help)
        trust_help = (
            "Use the network that the set names even if its class is in another package than this one or torchvision."
            " Importing a class can run code: for files from people that you trust."
        )
        parser.add_argument("--trust", action="store_true", help=trust_help)
        parser.add_argument(
            "--device", type=str, default="auto", help="cpu, cuda, cuda:1, ..; auto takes a GPU if any."
        )
        processes_help = "Processes that share the networks, and the GPUs or else the threads."
        parser.add_argument("--processes", type=int, default=1, help=processes_help)
        parser.add_argument("--seed", type=int, default=0, help="Seed of initializations and batch orders.")
        output_help = "JSON file for the rows; results of single networks are kept beside it, from which to continue."
        parser.add_argument("--output", type=str | None, default=None, help=output_help)

    def subject_options(self, options: Namespace) -> dict[str, Any]:
        """Return what these arguments mean for a subject, and check the output files."""
        check_outputs(options, "output", "figure")
        check_seed(seed=options["seed"])
        store = options["output"] and Path(options["output"]).with_suffix(".networks.jsonl")
        return {
            "real": options["data"],
            "factory": options["network"],
            "trust": options["trust"],
            "part": options.get("part", "val"),
            "seed": options["seed"],
            "device": device_of(options["device"]),
            "store": ResultStore(store or None),
        }

    def report(
        self, options: Namespace, text: str, content: Any, draw: Callable[[Figure], object] | None = None
    ) -> None:
        """Print a text, and write output file and figure if asked to, in the first process."""
        if distributed.rank() > 0:
            return
        print(text)
        if options["output"]:
            atomic_write_json(options["output"], content)
        if draw and options["figure"]:
            atomic_write_bytes(options["figure"], render_figure(draw))


class Evaluate(_TrainingCommand):
    """Evaluates a distilled set; needs no run."""

    name = "evaluate"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the set, and the settings of the evaluation."""
        parser.add_argument("path", type=str, help="The distilled set, a .safetensors file or of another format.")
        super().add_arguments(parser)
        parser.add_class_arguments(EvaluationSettings)
        parser.add_class_arguments(ImportOptions)
        parser.add_argument("--part", choices=["val", "test"], default="test", help="Real images to score on.")
        experts_help = (
            "Folder of expert trajectories: also evaluate networks with their initializations (expert_inits);"
            " by default experts/theta_0 beside the distilled set."
        )
        parser.add_argument("--experts", type=str | None, default=None, help=experts_help)
        parser.add_argument("--ranking", type=bool, default=False, help="Compute DD-Ranking's two scores.")

    def run(self, options: Namespace) -> None:
        """Evaluate the set."""
        settings, path = settings_of(EvaluationSettings, options), options["path"]
        if options["experts"]:
            settings = replace(settings, expert_inits=True)
        experts = Path(options["experts"] or Path(path).parent / "experts" / "theta_0")
        import_options = settings_of(ImportOptions, options)
        subject = stored_subject(path, **self.subject_options(options), options=import_options, experts=experts)
        rows = evaluate(subject, settings, options["ranking"])
        lines = [evaluation_table(rows).text()]
        content = {"distilled": path, "seed": options["seed"], "rows": rows}
        if options["ranking"]:
            content["ranking"] = ranking_scores(rows)
            for name, score in content["ranking"].items():
                lines.append(f"{name.replace('_', ' ').capitalize()} (0 to 1): {score:.3f}")
        self.report(options, "\n".join(lines), content)


class Describe(_TrainingCommand):
    """Compares the images of each stage with each other and with real ones."""

    name = "describe"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the set, and the networks that are applied to its images."""
        parser.add_argument("path", type=str, help="The distilled set, a .safetensors file or of another format.")
        super().add_arguments(parser)
        parser.add_class_arguments(ImportOptions)
        parser.add_argument("--num_networks", type=int, default=3, help="Networks to average over.")
        parser.add_class_arguments(TrainingSettings, "training", help="Their training on the real images.")
        parser.set_defaults({"training.epochs": 50})
        parser.add_argument("--figure", type=str | None, default=None, help="PNG file for images and statistics.")

    def run(self, options: Namespace) -> None:
        """Describe the stages of the set."""
        path, training = options["path"], options["training"]
        import_options = settings_of(ImportOptions, options)
        subject = stored_subject(path, **self.subject_options(options), options=import_options)
        rows = describe_stages(subject, training, options["num_networks"])
        content = {
            "distilled": path,
            "network": network_spec(subject.factory),
            "num_networks": options["num_networks"],
            "training": asdict(training),
            "augment": subject.augment.strategy,
            "seed": options["seed"],
            "rows": rows,
        }

        def draw(figure: Figure) -> None:
            draw_stages(figure, rows, example_images(subject), f"{subject.method} on {subject.real.name}")

        self.report(options, description_table(rows).text(), content, draw)


class Continual(_TrainingCommand):
    """Learns classes task by task with a memory of earlier tasks."""

    name = "continual"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the sets of the tasks, and the settings."""
        memory_help = "Distilled sets in the order of learning, each distilled from the classes of its task alone."
        parser.add_argument("memory", type=str, nargs="+", help=memory_help)
        super().add_arguments(parser)
        parser.add_class_arguments(ContinualSettings)
        parser.add_argument("--part", choices=["val", "test"], default="val", help="Real images to score on.")
        parser.add_argument("--figure", type=str | None, default=None, help="PNG file for a plot of the rows.")

    def run(self, options: Namespace) -> None:
        """Learn the tasks."""
        settings = settings_of(ContinualSettings, options)
        tasks = stored_tasks(options["memory"], **self.subject_options(options))
        rows = learn_tasks(tasks, settings)
        content = {
            "memory": options["memory"],
            "tasks": [task.real.class_names for task in tasks],
            "network": network_spec(tasks[0].factory),
            "augment": tasks[0].augment.strategy,
            "seed": options["seed"],
            "settings": asdict(settings),
            "rows": rows,
        }
        title = f"{options['data'].name}: {tasks[-1].seen} classes in {len(tasks)} tasks"
        draw = partial(draw_continual, rows=rows, title=title)
        self.report(options, continual_table(rows).text(), content, draw)
