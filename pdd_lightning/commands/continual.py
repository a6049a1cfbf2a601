"""`pdd continual`: distilled sets as memory for learning tasks one after another."""

from __future__ import annotations

from dataclasses import asdict

from jsonargparse import ArgumentParser, Namespace

from pdd_lightning.commands.base import Command, add_data_and_network, check_file_names, device_of, settings_of
from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.evaluation.continual import ContinualSettings, learn_tasks
from pdd_lightning.evaluation.memory import tasks_of
from pdd_lightning.evaluation.stored import say_other_data, stored_augmentation, stored_network
from pdd_lightning.files import atomic_write_bytes, atomic_write_json
from pdd_lightning.networks.spec import network_spec
from pdd_lightning.results.plots import draw_continual, figure_png
from pdd_lightning.results.tables import continual_table


class Continual(Command):
    """Learns classes task by task with a memory of those that are gone."""

    name = "continual"
    help = "Learn classes task by task, with distilled images, random or chosen real ones as memory of earlier tasks."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Adds the tasks' sets, data, and settings."""
        parser.add_argument(
            "memory",
            type=str,
            nargs="+",
            help="Distilled sets in the order of learning, one per task, each distilled from its task's classes alone.",
        )
        add_data_and_network(parser)
        parser.add_class_arguments(ContinualSettings)
        parser.add_argument("--part", choices=["val", "test"], default="test", help="Real images to score on.")
        parser.add_argument("--seed", type=int, default=0, help="Seed of initialisations and batch orders.")
        parser.add_argument("--output", type=str | None, default=None, help="JSON file for the rows.")
        parser.add_argument("--figure", type=str | None, default=None, help="PNG file for a picture of the rows.")

    def run(self, options: Namespace) -> None:
        """Prints the table, and writes rows and picture where asked to."""
        check_file_names(options, "output", "figure")
        paths, real, device = options["memory"], options["data"], device_of(options["device"])
        settings = settings_of(ContinualSettings, options)
        distilled = [DistilledDataset(path, stored=True) for path in paths]
        real.prepare_data()
        real.setup()
        tasks = tasks_of(paths, distilled, real)
        for path, memory, task in zip(paths, distilled, tasks.tasks, strict=True):
            say_other_data(path, memory, task.real)
        factory = options["network"] or stored_network(paths[0], distilled[0])
        augment = stored_augmentation(distilled[0])
        rows = learn_tasks(tasks, factory, settings, augment, options["part"], options["seed"], device)
        print(continual_table(rows).text())
        if options["output"]:
            facts = {
                "memory": paths,
                "tasks": [task.real.class_names for task in tasks.tasks],
                "network": network_spec(factory),
                "augment": augment.strategy,
                "seed": options["seed"],
                "settings": asdict(settings),
            }
            atomic_write_json(options["output"], {**facts, "rows": rows})
        if options["figure"]:
            title = f"{real.name}: {tasks.num_classes} classes in {len(paths)} tasks"
            picture = figure_png(lambda figure: draw_continual(figure, rows, title))
            atomic_write_bytes(options["figure"], picture)
