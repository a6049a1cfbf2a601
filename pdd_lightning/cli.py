"""The command line: `pdd fit`, `pdd test`, and the verbs of `pdd_lightning.commands`."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Read when jsonargparse is imported: Lightning's own parser still uses a name that it warns of.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_only

# The parser knows the classes that are imported by their short names.
import pdd_lightning.data.folder
import pdd_lightning.data.huggingface
import pdd_lightning.data.standard_sets
import pdd_lightning.data.subset
import pdd_lightning.networks  # noqa: F401
from pdd_lightning import distributed, endings
from pdd_lightning.callbacks import Evaluation, ExportRun, RunMessages, StageLogging
from pdd_lightning.callbacks.checkpoint import LAST, RollingCheckpoint, has_checkpoint, read_checkpoint
from pdd_lightning.callbacks.progress_bar import StageProgressBar
from pdd_lightning.callbacks.run_evaluation import evaluate_run
from pdd_lightning.commands import COMMANDS
from pdd_lightning.commands.command import Parser
from pdd_lightning.commands.listing import list_methods
from pdd_lightning.data.progressive import ProgressiveDataModule, RunState
from pdd_lightning.errors import ConfigError, PDDError, check_at_least, check_seed
from pdd_lightning.evaluation import EvaluationSettings
from pdd_lightning.files import atomic_write_bytes, has_token, lock_folder
from pdd_lightning.memory import keep_freed_memory
from pdd_lightning.progression import StageAdvance
from pdd_lightning.progression.advance import checkpointed_union
from pdd_lightning.progression.checks import check_method_unchanged
from pdd_lightning.shorthand import VERBS, long_form
from pdd_lightning.stages import DistillationStage


class _Parser(Parser, LightningArgumentParser):
    """Keep the action that holds the subcommands, so that more can be added."""

    commands: Any

    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        self.commands = super().add_subcommands(*args, **kwargs)
        return self.commands


class _SaveConfig(SaveConfigCallback):
    """Write the whole configuration as `config.yaml` into the run folder, once a run begins or continues."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Not yet: a checkpoint may still refuse the settings."""

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it."""
        self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it, whole or not at all."""
        text = self.parser.dump(self.config, skip_none=False)
        atomic_write_bytes(Path(trainer.default_root_dir) / "config.yaml", text.encode())


class _SharedFolder(Callback):
    """Make sure, before anything is trained, that all processes work in one and the same run folder.

    Args:
        token: What the first process owns the folder by, see `pdd_lightning.files.lock_folder`; None on others.
    """

    def __init__(self, token: str | None) -> None:
        self.token = token

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look for the first process's token in the folder.

        Raises:
            ConfigError: A process does not find it.
        """
        folder, token = Path(trainer.default_root_dir), distributed.broadcast(self.token)
        found = distributed.gather(token is None or trainer.is_global_zero or has_token(folder, token))
        if not all(found):
            raise ConfigError(
                f"process {found.index(False)} does not see the run folder {folder} of the first process: all machines"
                " must share one, under the same name (--trainer.default_root_dir)"
            )


class PDDCLI(LightningCLI):
    """`fit` distils, `test` evaluates a run; what else there is stands in `pdd_lightning.commands`."""

    def __init__(self, *args: Any, objects: Mapping[str, Any], **kwargs: Any) -> None:
        self._objects = dict(objects)
        super().__init__(*args, **kwargs)

    def setup_parser(self, add_subcommands: bool, main_kwargs: Any, subparser_kwargs: Any) -> None:
        """Add the commands that need neither model nor trainer; `main` runs them."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        assert isinstance(self.parser, _Parser)
        for verb, parser in self.parser.commands.choices.items():
            parser.usage = f"pdd {verb} [RECIPE | RUN FOLDER] [options]"
            parser.description = f"{VERBS[verb]} `pdd recipes` lists the recipes."
        for command in COMMANDS.values():
            self.parser.commands.add_subcommand(command.name, command.parser(), help=command.help)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse without Lightning's warning that arguments were given while the process has some, too."""
        self.config = parser.parse_args(args)
        options = self.config[self.config.subcommand]
        if not options.trainer.default_root_dir:
            raise ConfigError("trainer.default_root_dir must name the folder of the run")
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
        """Add the stages, the evaluation and what is written while a run goes on."""
        parser.add_lightning_class_args(StageAdvance, "stages")
        parser.add_class_arguments(EvaluationSettings, "evaluation")
        parser.add_lightning_class_args(StageLogging, "pictures")
        parser.add_argument(
            "--checkpoint_every",
            type=int,
            default=50,
            help="Iterations between two checkpoints (default: 50).",
        )
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_checked_seed)

    def before_instantiate_classes(self) -> None:
        """Find the run folder of a checkpoint that is to be tested."""
        config = self.config[self.subcommand]
        if self.subcommand == "test" and config.ckpt_path not in (None, "last"):
            config.trainer.default_root_dir = str(_run_folder(Path(config.ckpt_path)))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callbacks that every run has, and TensorBoard unless another logger is configured."""
        config = self._get(self.config_init, "trainer")
        root = Path(config["default_root_dir"])
        check_at_least(1, **{"trainer.accumulate_grad_batches": config["accumulate_grad_batches"]})
        if isinstance(config["max_time"], dict):
            check_at_least(0, **{f"trainer.max_time.{name}": value for name, value in config["max_time"].items()})
        if config["logger"] in (None, True) and "logger" not in self._objects:
            kwargs["logger"] = TensorBoardLogger(root, name="tensorboard", version="")
        every, callbacks = self._get(self.config_init, "checkpoint_every"), config["callbacks"] or []
        kwargs["callbacks"] = [
            *(callbacks if isinstance(callbacks, list) else [callbacks]),
            *self._objects.pop("callbacks", []),
            *([] if config["enable_progress_bar"] is False else [StageProgressBar()]),
            RollingCheckpoint(root / "checkpoints", every),
        ]
        try:
            trainer = super().instantiate_trainer(**kwargs, **self._objects)
        except (PDDError, OSError, MemoryError):
            raise
        except Exception as error:  # Lightning's are of many types
            raise ConfigError(f"the trainer cannot be made with these settings: {_brief(error)}") from error
        _check_processes(trainer, config["strategy"])
        # After `StageAdvance`, which Lightning's parser adds, so that the stages' table is printed first.
        evaluation = self._get(self.config_init, "evaluation")
        trainer.callbacks += [Evaluation(evaluation), ExportRun(), RunMessages()]  # type: ignore[attr-defined]
        return trainer

    def fit(self, model: DistillationStage, **kwargs: Any) -> None:
        """Distil; `--ckpt_path last` continues the run in the run folder, or begins it."""
        trainer = self.trainer
        root, last = Path(trainer.default_root_dir), _last_checkpoint(trainer)
        with self._locked(root) as token:
            if kwargs.get("ckpt_path") == "last":
                kwargs["ckpt_path"] = last if has_checkpoint(last) else None
                _check_checkpoint(kwargs["ckpt_path"])
            elif kwargs.get("ckpt_path") is None and has_checkpoint(last) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                raise ConfigError(
                    f"{root} already holds a run: continue it with `pdd resume {root}`, or choose another folder with"
                    " --folder"
                )
            advice = f"`pdd resume {root}` continues the run"
            endings.advise(f"What was finished is kept in {root}; {advice}.", root)
            trainer.callbacks.insert(0, _SharedFolder(token))  # type: ignore[attr-defined]
            trainer.fit(model, **kwargs)
            state = self._get(self.config_init, "stages").state
            if trainer.is_global_zero and not state.finished:
                print(f"Stopped in stage {state.stage} of {state.num_stages}; {advice}.")

    @contextmanager
    def _locked(self, root: Path) -> Iterator[str | None]:
        """Own the run folder, in the first process; remove it where a refused start left nothing in it."""
        if self.trainer.global_rank > 0:
            yield None
            return
        existed = root.exists()
        try:
            with lock_folder(root) as token:
                yield token
        finally:
            if not existed and {path.name for path in root.glob("*")} <= {".lock", "tensorboard"}:
                shutil.rmtree(root, ignore_errors=True)

    def test(self, model: DistillationStage, **kwargs: Any) -> None:
        """Evaluate the union of a checkpoint, by default the last one of the run folder, on the test part."""
        path = kwargs.get("ckpt_path")
        path = _last_checkpoint(self.trainer) if path in (None, "last") else Path(str(path))
        _check_checkpoint(path)
        endings.advise("The same command continues: the networks that are done are kept.")
        strategy = self.trainer.strategy

        def evaluate() -> None:
            strategy.setup_environment()
            self._evaluate(model, path)

        if strategy.launcher is None:
            evaluate()
            return
        try:
            strategy.launcher.launch(evaluate, trainer=self.trainer)
        finally:
            strategy.launcher.kill(signal.SIGTERM)  # what was started must not go on alone

    def _evaluate(self, model: DistillationStage, path: Path) -> None:
        """Evaluate a checkpoint, on every process."""
        trainer, data = self.trainer, self.datamodule
        model.trainer, trainer.datamodule = trainer, data  # type: ignore[attr-defined]
        with distributed.first_before_others():
            data.prepare_data()
        data.setup("test")
        checkpoint = read_checkpoint(path)
        data.load_state_dict(checkpoint[type(data).__name__])
        stored, stages = checkpoint["callbacks"][StageAdvance.__name__], self._get(self.config_init, "stages")
        data.state = RunState(checkpointed_union(stored), stages.num_stages, stages.iterations)
        check_method_unchanged(stored["settings"], model)
        evaluate_run(trainer, model, "test", self._get(self.config_init, "evaluation"))
        if not data.state.finished and trainer.is_global_zero:
            print(f"Note: the checkpoint has {data.union.num_stages} of {stages.num_stages} stages.")


class _ToStandardError(logging.Handler):
    """Print to what is standard error at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _show_log() -> None:
    """Print what the package says of its choices, once for all processes of a run."""
    logger = logging.getLogger("pdd_lightning")
    if not logger.handlers and getattr(rank_zero_only, "rank", 0) == 0:
        logger.addHandler(_ToStandardError())
        logger.setLevel(logging.INFO)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Bad input ends with one message on standard error and exit status 1 (or 2, from the parser).

    Args:
        args: Arguments after the program's name; by default those of the process.
    """
    keep_freed_memory()
    _show_log()
    endings.advise("Nothing was begun.")
    with endings.report_errors():
        arguments = long_form(sys.argv[1:] if args is None else args)
        if arguments[-1:] == ["--model.help"]:
            print(list_methods())
            return
        if arguments and arguments[0] in COMMANDS:
            COMMANDS[arguments[0]].main(arguments[1:])
            return
        try:
            run_cli(arguments)
        except MisconfigurationException as error:
            raise ConfigError(f"the settings of the trainer do not go together: {_brief(error)}") from error


def run_cli(args: Sequence[str], **trainer: Any) -> PDDCLI:
    """Run `fit` or `test`.

    Args:
        args: The command line, in its long form.
        trainer: Arguments of the trainer: settings, which options replace, and objects, such as loggers.

    Raises:
        PDDError: Bad input.
    """
    _show_log()
    _silence()
    settings = {name: value for name, value in trainer.items() if isinstance(value, bool | int | float | str | None)}
    return PDDCLI(
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
            **settings,
        },
        seed_everything_default=0,
        parser_class=_Parser,
        parser_kwargs={"prog": "pdd", "description": "Progressive dataset distillation."},
        auto_configure_optimizers=False,
        args=list(args),
        objects={name: value for name, value in trainer.items() if name not in settings},
    )


def _silence() -> None:
    """Leave out what libraries say that is of no use to the reader."""
    logging.raiseExceptions = False  # a log that cannot be written would be one traceback a line
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_wanted)
    # That a signal has arrived; the package says what follows from it.
    logging.getLogger("lightning.pytorch.trainer.connectors.signal_connector").setLevel(logging.WARNING)
    # A line of Lightning's that newer versions of torch deprecate.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")


def _checked_seed(seed: int) -> int:
    check_seed(seed_everything=seed)
    return seed


def _check_processes(trainer: Trainer, strategy: Any) -> None:
    """Refuse ways to run on several processes that do not work here."""
    launcher = trainer.strategy.launcher
    if isinstance(trainer.strategy, (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)) or isinstance(
        launcher, _MultiProcessingLauncher
    ):
        raise ConfigError(f"trainer.strategy {strategy} is not supported: choose auto or ddp")
    most = 8 * (os.cpu_count() or 1)
    if launcher is not None and trainer.strategy.root_device.type == "cpu" and trainer.num_devices > most:
        raise ConfigError(f"trainer.devices must be <= {most} on this machine's CPU, got {trainer.num_devices}")


def _brief(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _run_folder(checkpoint: Path) -> Path:
    """The run folder that a checkpoint lies in."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def _check_checkpoint(path: str | Path | None) -> None:
    """Refuse a checkpoint that is missing, damaged, or not one of ours, before anything else is done."""
    if path not in (None, "last"):
        read_checkpoint(Path(str(path)), say=False)


def _last_checkpoint(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints" / LAST


def _is_wanted(record: logging.LogRecord) -> bool:
    """Whether a line of Lightning's is neither an advertisement nor about hardware that the run does not use."""
    message = record.getMessage()
    return "litlogger" not in message and not message.startswith(
        ("GPU available: False", "TPU available", "HPU available")
    )
