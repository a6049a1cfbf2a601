"""`pdd`, and `python -m pdd_lightning`: sees to an orderly end before anything heavy is imported."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

from pdd_lightning import __version__, endings
from pdd_lightning.errors import ConfigError
from pdd_lightning.shorthand import VERBS

_SUPERVISED = "PDD_SUPERVISED"
_MIN_ADDRESS_SPACE = 4 << 30
"""Bytes that torch and its threads need; with less, its libraries abort or wait forever."""


def main() -> None:
    """Run the command line of this process; ends with one sentence if it fails or is asked to end."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    if (text := _answer(sys.argv[1:])) is not None:
        print(text)
        return
    _check_address_space()
    if _memory_is_limited() and _SUPERVISED not in os.environ:
        sys.exit(_supervised())
    endings.watch_signals()
    threading.excepthook = endings.ignore_write_errors
    with endings.report_errors():
        _check_working_directory()
        sys.path.append(str(Path.cwd()))  # for classes of the user's own; last, so that no library is replaced
        from pdd_lightning.cli import main as command_line

        command_line()


def _answer(arguments: list[str]) -> str | None:
    """What can be said at once, without torch and Lightning: the version, and what there is to do."""
    if arguments == ["--version"]:
        return f"pdd {__version__}"
    if arguments not in ([], ["-h"], ["--help"]):
        return None
    verbs = "\n".join(f"  {verb:10} {sentence}" for verb, sentence in VERBS.items())
    return f"Progressive dataset distillation.\n\n{verbs}\n\n`pdd VERB --help` shows the options of a verb."


def _check_working_directory() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise ConfigError("the working directory no longer exists: change to another one and start again") from error


def _check_address_space() -> None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < _MIN_ADDRESS_SPACE:
        least = _MIN_ADDRESS_SPACE >> 10
        sys.exit(f"pdd: error: the address space is limited to {limit >> 10} kB, too little: `ulimit -v` needs {least}")


def _memory_is_limited() -> bool:
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return any(limit != resource.RLIM_INFINITY for limit in limits)


def _supervised() -> int | str:
    """Run the same command as a process of its own, since libraries that lack memory may end it without a word."""
    command = [sys.executable, "-m", "pdd_lightning", *sys.argv[1:]]
    for number in endings.SIGNALS:
        signal.signal(number, lambda number, _: process.send_signal(number))
    process = subprocess.Popen(command, env={**os.environ, _SUPERVISED: "1"})
    status = process.wait()
    if status >= 0:
        return status
    name = signal.Signals(-status).name
    return f"pdd: error: ended by {name}, probably for lack of memory (see `ulimit -a`); start the same command again"


if __name__ == "__main__":
    main()
