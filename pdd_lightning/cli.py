"""The command line: `pdd fit`, `pdd test` and `pdd evaluate`."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Read when jsonargparse is imported: Lightning's own parser still uses a name that it warns of.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from pdd_lightning.callbacks import Evaluation, ExportRun, StageAdvance, TensorBoardImages
from pdd_lightning.callbacks.checkpoint import RollingCheckpoint
from pdd_lightning.callbacks.progress import StageProgressBar
from pdd_lightning.data.progressive import ProgressiveDataModule
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.errors import ConfigError, PDDError
from pdd_lightning.evaluation import EvaluationSettings, evaluate_file, rows_table
from pdd_lightning.files import atomic_write_json
from pdd_lightning.stages import DistillationStage
from pdd_lightning.typing import NetworkFactory


class _ShortHelp(ArgumentParser):
    """Help without the list of every network class that happens to be imported, which is several pages long."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        return re.sub(r",\s+known\s+subclasses:[^)]*\)", ")", super().format_help(*args, **kwargs))


class _Parser(_ShortHelp, LightningArgumentParser):
    """Keeps the action that holds the subcommands, so that one more can be added."""

    commands: Any

    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        self.commands = super().add_subcommands(*args, **kwargs)
        return self.commands


class _SaveConfig(SaveConfigCallback):
    """Writes the whole configuration as `config.yaml` into the run folder."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, folder / "config.yaml", skip_none=False, overwrite=True, multifile=False)


class PDDCLI(LightningCLI):
    """`fit` distils, `test` evaluates a run, `evaluate` evaluates a distilled file."""

    def setup_parser(self, add_subcommands: bool, main_kwargs: Any, subparser_kwargs: Any) -> None:
        """Adds `evaluate`, which needs neither model nor trainer; `main` runs it."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        assert isinstance(self.parser, _Parser)
        self.parser.commands.add_subcommand(
            "evaluate",
            _evaluate_parser(),
            help="Train networks on a distilled set and score them on real images.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses without Lightning's warning that arguments were given while the process has some, too."""
        self.config = parser.parse_args(args)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's subcommands that make sense here, and their arguments that do not."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "test": {"model", "dataloaders", "datamodule", "weights_only", "verbose"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the stages, the evaluation and what is written while a run goes on."""
        parser.add_lightning_class_args(StageAdvance, "stages")
        parser.add_class_arguments(EvaluationSettings, "evaluation")
        parser.add_lightning_class_args(TensorBoardImages, "pictures")
        parser.add_argument(
            "--checkpoint_every",
            type=int,
            default=50,
            help="Iterations between two checkpoints (default: 50).",
        )
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_run_seed)

    def before_instantiate_classes(self) -> None:
        """Finds the run folder of a checkpoint that is to be tested."""
        config = self.config[self.subcommand]
        if self.subcommand == "test" and config.ckpt_path not in (None, "last"):
            config.trainer.default_root_dir = str(_run_folder(Path(config.ckpt_path)))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the callbacks that every run has, and TensorBoard unless another logger is configured."""
        config = self._get(self.config_init, "trainer")
        root = Path(config["default_root_dir"])
        if config["logger"] in (None, True):
            kwargs["logger"] = TensorBoardLogger(root, name="tensorboard", version="")
        every = self._get(self.config_init, "checkpoint_every")
        kwargs["callbacks"] = [
            *(config["callbacks"] or []),
            *([] if config["enable_progress_bar"] is False else [StageProgressBar()]),
            RollingCheckpoint(root / "checkpoints", every),
        ]
        trainer = super().instantiate_trainer(**kwargs)
        # After `StageAdvance`, which Lightning's parser adds, so that the stages' table is printed first.
        evaluation = self._get(self.config_init, "evaluation")
        trainer.callbacks += [Evaluation(evaluation), ExportRun()]  # type: ignore[attr-defined]
        return trainer

    def fit(self, model: DistillationStage, **kwargs: Any) -> None:
        """Distils; `--ckpt_path last` continues the run in the run folder, or begins it."""
        last = _last_checkpoint(self.trainer)
        if kwargs.get("ckpt_path") == "last":
            kwargs["ckpt_path"] = last if last.is_file() else None
        elif kwargs.get("ckpt_path") is None and last.is_file() and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise ConfigError(
                f"{self.trainer.default_root_dir} already holds a run: continue it with --ckpt_path last, or choose"
                " another folder with --trainer.default_root_dir"
            )
        self.trainer.fit(model, **kwargs)

    def test(self, model: DistillationStage, **kwargs: Any) -> None:
        """Evaluates the union of a checkpoint, by default the last one of the run folder."""
        if kwargs.get("ckpt_path") in (None, "last"):
            kwargs["ckpt_path"] = _last_checkpoint(self.trainer)
        if not Path(kwargs["ckpt_path"]).is_file():
            raise ConfigError(
                f"there is no checkpoint {kwargs['ckpt_path']}: run `pdd fit` first, or correct --ckpt_path"
            )
        kwargs["verbose"] = False
        self.trainer.test(model, **kwargs)


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Bad input ends with one message on standard error and exit status 1 (or 2, from the parser).

    Args:
        args: Arguments after the program's name; by default those of the process.
    """
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_not_advertisement)
    # Of no use to the reader: a line of Lightning's that newer versions of torch deprecate.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    words = list(sys.argv[1:] if args is None else args)
    try:
        if words[:1] == ["evaluate"]:
            _evaluate(words[1:])
            return
        PDDCLI(
            DistillationStage,
            ProgressiveDataModule,
            subclass_mode_model=True,
            save_config_callback=_SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={
                "default_root_dir": "runs/latest",
                "max_epochs": -1,
                "log_every_n_steps": 10,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
            },
            seed_everything_default=0,
            parser_class=_Parser,
            parser_kwargs={"prog": "pdd", "description": "Progressive dataset distillation."},
            auto_configure_optimizers=False,
            args=None if args is None else words,
        )
    except ValueError as error:
        cause = _user_error(error)
        if cause is None:
            raise
        sys.exit(f"pdd: error: {cause}")


def _evaluate_parser() -> ArgumentParser:
    parser = _ShortHelp(
        prog="pdd evaluate", description="Train networks on a distilled set and score them on real images."
    )
    parser.add_argument("path", type=str, help="The distilled set, a .safetensors file.")
    parser.add_subclass_arguments(RealDataModule, "data", required=True, help="Real images: a class or a YAML file.")
    parser.add_argument(
        "--network",
        type=NetworkFactory | None,
        default=None,
        help="Kind of network: a class or a YAML file; by default the kind that the set was distilled with.",
    )
    parser.add_class_arguments(EvaluationSettings)
    parser.add_argument("--part", choices=["val", "test"], default="test", help="Real images to score on.")
    parser.add_argument("--baselines", type=bool, default=True, help="Evaluate random real images too.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of initialisations and batch orders.")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, cuda:1, ..; auto takes a GPU if any.")
    parser.add_argument("--output", type=str | None, default=None, help="JSON file for the rows.")
    return parser


def _evaluate(words: Sequence[str]) -> None:
    parser = _evaluate_parser()
    config = parser.parse_args(words)
    options = parser.instantiate(config).as_dict()
    names = EvaluationSettings.__dataclass_fields__
    settings = EvaluationSettings(**{name: options[name] for name in names})
    device = options["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = evaluate_file(
        options["path"],
        options["data"],
        options["network"],
        settings,
        part=options["part"],
        baselines=options["baselines"],
        seed=options["seed"],
        device=device,
    )
    print(rows_table(rows))
    if options["output"]:
        atomic_write_json(options["output"], {"distilled": options["path"], "seed": options["seed"], "rows": rows})


def _user_error(error: BaseException | None) -> PDDError | None:
    """The error that is meant for the user, which the parser may have wrapped in its own."""
    while error is not None and not isinstance(error, PDDError):
        error = error.__cause__ or error.__context__
    return error


def _run_seed(seed: bool | int) -> int:
    if isinstance(seed, bool):
        raise ConfigError("seed_everything must be a number: it is the seed of the whole run")
    return seed


def _run_folder(checkpoint: Path) -> Path:
    """The run folder that a checkpoint lies in."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def _last_checkpoint(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"


def _is_not_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()
