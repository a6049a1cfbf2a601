"""`pdd`, and `python -m pdd_lightning`: sees to an orderly end before anything heavy is imported."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

from pdd_lightning import endings
from pdd_lightning.errors import ConfigError

_SUPERVISED = "PDD_SUPERVISED"


def main() -> None:
    """Runs the command line of this process; ends with one sentence if it fails or is asked to end."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    if _memory_is_limited() and _SUPERVISED not in os.environ:
        sys.exit(_supervised())
    endings.watch_signals()
    threading.excepthook = endings.quiet_thread
    with endings.in_one_sentence():
        _check_working_directory()
        from pdd_lightning.cli import main as command_line

        command_line()


def _check_working_directory() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise ConfigError("the working directory no longer exists: change to another one and start again") from error


def _memory_is_limited() -> bool:
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return any(limit != resource.RLIM_INFINITY for limit in limits)


def _supervised() -> int | str:
    """Runs the same command as a process of its own, since libraries that lack memory may end it without a word."""
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
