"""`pdd describe`: how the stages of a distilled file differ, in numbers."""

from __future__ import annotations

from dataclasses import asdict

from jsonargparse import ArgumentParser, Namespace

from pdd_lightning.commands.base import Command, add_data_and_network, check_file_names, device_of, settings_of
from pdd_lightning.data.formats import ImportOptions, open_distilled
from pdd_lightning.evaluation.describe import describe_stages, example_images
from pdd_lightning.evaluation.stored import check_match, stored_augmentation, stored_network
from pdd_lightning.files import atomic_write_bytes, atomic_write_json
from pdd_lightning.networks.spec import network_spec
from pdd_lightning.results.plots import draw_stages, figure_png
from pdd_lightning.results.tables import description_table
from pdd_lightning.training import TrainingSettings


class Describe(Command):
    """Compares the images of each stage with each other and with real ones."""

    name = "describe"
    help = "Describe the images of each stage in numbers: colour, spectrum, separability, distance to real images."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Adds file, data, and the networks that judge the images."""
        parser.add_argument("path", type=str, help="The distilled set, a .safetensors file or of another format.")
        add_data_and_network(parser)
        parser.add_class_arguments(ImportOptions)
        parser.add_argument("--num_networks", type=int, default=3, help="Networks that judge, to average over.")
        parser.add_class_arguments(TrainingSettings, "training", help="Their training on the real images.")
        parser.set_defaults({"training.epochs": 50})
        parser.add_argument("--seed", type=int, default=0, help="Seed of their initialisations and batch orders.")
        parser.add_argument("--output", type=str | None, default=None, help="JSON file for the rows.")
        parser.add_argument("--figure", type=str | None, default=None, help="PNG file for images and numbers.")

    def run(self, options: Namespace) -> None:
        """Prints the table, and writes rows and picture where asked to."""
        check_file_names(options, "output", "figure")
        real, training = options["data"], options["training"]
        given = settings_of(ImportOptions, options)
        distilled = open_distilled(options["path"], real, given)
        real.prepare_data()
        real.setup()
        check_match(options["path"], distilled, real)
        factory = options["network"] or stored_network(options["path"], distilled)
        augment, device = stored_augmentation(distilled), device_of(options["device"])
        settings = {
            "distilled": options["path"],
            "network": network_spec(factory),
            "num_networks": options["num_networks"],
            "training": asdict(training),
            "augment": augment.strategy,
            "seed": options["seed"],
        }
        rows = describe_stages(
            distilled, real, factory, training, augment, options["num_networks"], options["seed"], device
        )
        print(description_table(rows).text())
        if options["output"]:
            atomic_write_json(options["output"], {**settings, "rows": rows})
        if options["figure"]:
            title = f"{distilled.metadata.get('method', 'distilled')} on {real.name}"
            examples = example_images(distilled, real)
            picture = figure_png(lambda figure: draw_stages(figure, rows, examples, title))
            atomic_write_bytes(options["figure"], picture)
