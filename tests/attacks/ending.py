"""Command lines that end early, and the sentence that they end with."""

from pathlib import Path

import pytest

from pdd_lightning.cli import main

SHORT = ("--stages.num_stages", "1", "--stages.iterations", "4", "--evaluation.num_networks", "1")


def words(*arguments: object) -> list[str]:
    return [str(argument) for argument in arguments]


def fit_words(recipe: Path, folder: Path, *more: object) -> list[str]:
    """A run of one short stage, begun or continued."""
    root = ("--trainer.default_root_dir", folder, "--ckpt_path", "last")
    return words("fit", "--config", recipe, *root, *SHORT, *more)


def sentence_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a command line ends with; anything else is a failure."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    shown = capsys.readouterr()
    assert stop.value.code not in (0, None)
    said = stop.value.code if isinstance(stop.value.code, str) else shown.err.splitlines()[-1]
    everything = said + shown.err + shown.out
    assert said.startswith("pdd: "), said
    assert "unexpected" not in said and "Traceback" not in everything, everything
    return said
