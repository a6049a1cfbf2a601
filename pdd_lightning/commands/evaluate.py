"""`pdd evaluate`: scores a distilled file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from pdd_lightning.commands.base import Command, add_data_and_network, check_file_names, device_of, settings_of
from pdd_lightning.data.formats import ImportOptions
from pdd_lightning.evaluation import EvaluationSettings, evaluate_file, ranking_scores
from pdd_lightning.files import atomic_write_json
from pdd_lightning.results.tables import evaluation_table


class Evaluate(Command):
    """Trains networks on a distilled file; needs no run."""

    name = "evaluate"
    help = "Train networks on a distilled set and score them on real images."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Adds file, data, network, and the settings of the evaluation."""
        parser.add_argument("path", type=str, help="The distilled set, a .safetensors file or of another format.")
        add_data_and_network(parser)
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
        parser.add_argument("--seed", type=int, default=0, help="Seed of initialisations and batch orders.")
        parser.add_argument(
            "--output",
            type=str | None,
            default=None,
            help="JSON file for the rows; beside it, results of single networks are kept.",
        )

    def run(self, options: Namespace) -> None:
        """Prints the table, and writes the rows where asked to."""
        settings = settings_of(EvaluationSettings, options)
        device = device_of(options["device"])
        check_file_names(options, "output")
        if options["experts"]:
            settings = replace(settings, expert_inits=True)
        output = Path(options["output"]) if options["output"] else None
        rows = evaluate_file(
            options["path"],
            options["data"],
            options["network"],
            settings,
            part=options["part"],
            seed=options["seed"],
            device=device,
            experts=Path(options["experts"] or Path(options["path"]).parent / "experts" / "theta_0"),
            results=output and output.with_suffix(".networks.jsonl"),
            ranking=options["ranking"],
            options=settings_of(ImportOptions, options),
        )
        print(evaluation_table(rows).text())
        content = {"distilled": options["path"], "seed": options["seed"], "rows": rows}
        if options["ranking"]:
            content["ranking"] = ranking_scores(rows)
            for name, score in content["ranking"].items():
                print(f"{name.replace('_', ' ').capitalize()} (0 to 1): {score:.3f}")
        if output:
            atomic_write_json(output, content)
