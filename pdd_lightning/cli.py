"""The command line: `pdd fit`, `pdd test`, and the verbs of `pdd_lightning.commands`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Read when jsonargparse is imported: Lightning's own parser still uses a name that it warns of.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

# The parser knows the classes that are imported by their short names.
import pdd_lightning.data.folder
import pdd_lightning.data.standard_sets
import pdd_lightning.data.subset
import pdd_lightning.networks  # noqa: F401
from pdd_lightning import distributed
from pdd_lightning.callbacks import Evaluation, ExportRun, TensorBoardImages
from pdd_lightning.callbacks.checkpoint import RollingCheckpoint
from pdd_lightning.callbacks.progress_bar import StageProgressBar
from pdd_lightning.callbacks.run_evaluation import evaluate_run
from pdd_lightning.commands import COMMANDS, ShortHelp
from pdd_lightning.data.progressive import ProgressiveDataModule, RunState
from pdd_lightning.errors import ConfigError, DamagedFileError, PDDError, differences
from pdd_lightning.evaluation import EvaluationSettings
from pdd_lightning.memory import keep_freed_memory
from pdd_lightning.progression import StageAdvance
from pdd_lightning.progression.advance import checkpointed_union
from pdd_lightning.progression.checks import check_method_unchanged
from pdd_lightning.progression.observer import stage_module
from pdd_lightning.results.tables import flatten
from pdd_lightning.stages import DistillationStage


class _Parser(ShortHelp, LightningArgumentParser):
    """Keeps the action that holds the subcommands, so that more can be added."""

    commands: Any

    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        self.commands = super().add_subcommands(*args, **kwargs)
        return self.commands


_WITHOUT_EFFECT = ("model.unroll_mode", "stages.num_stages", "stages.experts.folder", "stages.transition.at_once")
"""Settings that the images of a finished run depend on by no more than rounding."""


class _SaveConfig(SaveConfigCallback):
    """Writes the whole configuration as `config.yaml` into the run folder, once a run begins or continues."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Not yet: a checkpoint may still refuse the settings."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses other settings for a run that is finished: they would have no effect.

        Raises:
            ConfigError: There are some; the message lists them.
        """
        path = Path(trainer.default_root_dir) / "config.yaml"
        if not stage_module(pl_module).state.finished or not path.is_file():
            return
        stored, wanted = map(_result_settings, (path.read_text(), self.parser.dump(self.config, skip_none=False)))
        both = stored.keys() & wanted.keys()  # another version of the package may have others
        if changes := differences({name: stored[name] for name in both}, {name: wanted[name] for name in both}):
            listed = "\n  ".join(changes)
            raise ConfigError(
                f"the run in {path.parent} is finished, with other settings:\n  {listed}\nRestore them, or begin a new"
                " run in another folder."
            )

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, folder / "config.yaml", skip_none=False, overwrite=True, multifile=False)


class PDDCLI(LightningCLI):
    """`fit` distils, `test` evaluates a run; what else there is stands in `pdd_lightning.commands`."""

    def setup_parser(self, add_subcommands: bool, main_kwargs: Any, subparser_kwargs: Any) -> None:
        """Adds the commands that need neither model nor trainer; `main` runs them."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        assert isinstance(self.parser, _Parser)
        for command in COMMANDS.values():
            self.parser.commands.add_subcommand(command.name, command.parser(), help=command.help)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses without Lightning's warning that arguments were given while the process has some, too."""
        self.config = parser.parse_args(args)
        options = self.config[self.config.subcommand]
        _check_checkpoint(options.ckpt_path)
        if options.trainer.max_epochs != -1:
            raise ConfigError("trainer.max_epochs has no effect: set stages.num_stages, and stages.iterations")

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
        every, callbacks = self._get(self.config_init, "checkpoint_every"), config["callbacks"] or []
        kwargs["callbacks"] = [
            *(callbacks if isinstance(callbacks, list) else [callbacks]),
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
            _check_checkpoint(kwargs["ckpt_path"])
        elif kwargs.get("ckpt_path") is None and last.is_file() and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise ConfigError(
                f"{self.trainer.default_root_dir} already holds a run: continue it with --ckpt_path last, or choose"
                " another folder with --trainer.default_root_dir"
            )
        try:
            self.trainer.fit(model, **kwargs)
        except SIGTERMException:
            sys.exit(128 + signal.SIGTERM)
        finally:
            self._say_how_to_continue()

    def _say_how_to_continue(self) -> None:
        """Says so where a run that was begun is not finished."""
        advance = self._get(self.config_init, "stages")
        begun = [_last_checkpoint(self.trainer), Path(self.trainer.default_root_dir) / "experts"]
        state = advance.state
        if not advance.started or state.finished or not any(path.exists() for path in begun):
            return
        if self.trainer.is_global_zero:
            print(f"Stopped in stage {state.stage} of {state.num_stages}; --ckpt_path last continues the run.")

    def test(self, model: DistillationStage, **kwargs: Any) -> None:
        """Evaluates the union of a checkpoint, by default the last one of the run folder, on the test part."""
        path = kwargs.get("ckpt_path")
        path = _last_checkpoint(self.trainer) if path in (None, "last") else Path(str(path))
        _check_checkpoint(path)
        strategy = self.trainer.strategy

        def evaluate() -> None:
            strategy.setup_environment()
            self._evaluate(model, path)

        if strategy.launcher is None:
            evaluate()
            return
        former = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        try:
            strategy.launcher.launch(evaluate, trainer=self.trainer)
        finally:
            strategy.launcher.kill(signal.SIGTERM)  # what was started must not go on alone
            signal.signal(signal.SIGTERM, former)

    def _evaluate(self, model: DistillationStage, path: Path) -> None:
        """Evaluates a checkpoint, on every process."""
        trainer, data = self.trainer, self.datamodule
        model.trainer, trainer.datamodule = trainer, data  # type: ignore[attr-defined]
        with distributed.first_before_others():
            data.prepare_data()
        data.setup("test")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        data.load_state_dict(checkpoint[type(data).__name__])
        stored, stages = checkpoint["callbacks"][StageAdvance.__name__], self._get(self.config_init, "stages")
        data.state = RunState(checkpointed_union(stored), stages.num_stages, stages.iterations)
        check_method_unchanged(stored["settings"], model)
        evaluate_run(trainer, model, "test", self._get(self.config_init, "evaluation"))
        if not data.state.finished and trainer.is_global_zero:
            print(f"Note: the checkpoint has {data.union.num_stages} of {stages.num_stages} stages.")


class _ToStandardError(logging.Handler):
    """Prints to what is standard error at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _show_log() -> None:
    """Prints what the package says of its choices, once for all processes of a run."""
    logger = logging.getLogger("pdd_lightning")
    if not logger.handlers and getattr(rank_zero_only, "rank", 0) == 0:
        logger.addHandler(_ToStandardError())
        logger.setLevel(logging.INFO)


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Bad input ends with one message on standard error and exit status 1 (or 2, from the parser).

    Args:
        args: Arguments after the program's name; by default those of the process.
    """
    keep_freed_memory()
    _show_log()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_not_advertisement)
    # Of no use to the reader: a line of Lightning's that newer versions of torch deprecate.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        if arguments and arguments[0] in COMMANDS:
            COMMANDS[arguments[0]].main(arguments[1:])
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
            args=None if args is None else arguments,
        )
    except (ValueError, SystemExit) as error:
        cause = _user_error(error)
        if cause is None:
            raise
        sys.exit(f"pdd: error: {cause}")


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


def _check_checkpoint(path: str | Path | None) -> None:
    """Refuses a checkpoint that is missing, damaged, or not one of ours, before anything else is done."""
    if path in (None, "last"):
        return
    if not Path(str(path)).is_file():
        raise ConfigError(f"there is no checkpoint {path}: run `pdd fit` first, or correct --ckpt_path")
    try:
        known = "ProgressiveDataModule" in torch.load(str(path), map_location="cpu", weights_only=True)
    except Exception as error:  # many unrelated types on damaged files
        raise DamagedFileError(f"the checkpoint {path} is damaged: {str(error).splitlines()[0]}") from error
    if not known:
        raise ConfigError(f"{path} is not a checkpoint of a distillation: correct --ckpt_path")


def _last_checkpoint(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"


def _result_settings(config: str) -> dict[str, str]:
    """Settings in a configuration that a run's images depend on, as text by dotted name; seed and data are checked."""
    settings = flatten(yaml.safe_load(config))
    parts = ("model", "stages.", "trainer.precision")
    return {name: value for name, value in settings.items() if name.startswith(parts) and name not in _WITHOUT_EFFECT}


def _is_not_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()
