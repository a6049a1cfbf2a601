"""How a process ends: by a signal or by an error, in one sentence and without a traceback.

Imports nothing heavy, so that it works before torch and Lightning are imported.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from pdd_lightning.errors import PDDError, UsageError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
MAX_DELAY = 8.0
"""Seconds that an iteration may take to finish after a signal, so that the run is saved."""
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
_OUT_OF_MEMORY = (
    "allocate memory",
    "out of memory",
    "bad_alloc",
    "failed to map segment",
    "can't start new thread",
    "Unable to allocate",
    "error return without exception set",
)


@dataclass
class _State:
    """What the end of this process depends on."""

    advice: str = "Nothing was begun."  # how to continue
    folder: Path | None = None  # for tracebacks, if not the temporary folder
    delay: float = 0.0  # seconds that the current iteration may take to finish after a signal
    received: int | None = None  # the signal
    silent: bool = False  # nothing more is to be printed
    exiting: bool = False  # the signal thread is ending the process
    temporaries: set[Path] = field(default_factory=set)  # files and folders to remove


_state = _State()
cleanup_lock = threading.Lock()
"""While it is held, a signal does not remove temporary files and folders."""


def advise(advice: str, folder: Path | None = None) -> None:
    """Set how to continue if the process ends from now on, and the folder for its traceback."""
    _state.advice, _state.folder = advice, folder


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Remove a file or folder after the block, also when a signal ends the process."""
    _state.temporaries.add(path)
    try:
        yield path
    finally:
        _remove(path)
        _state.temporaries.discard(path)


def delay_stop(seconds: float) -> None:
    """Let the current work take some seconds to reach `stop_if_requested` when a signal arrives."""
    _state.delay = seconds


def stop_requested() -> bool:
    """Return whether a signal has asked the process to end."""
    return _state.received is not None


def stop_if_requested() -> None:
    """End the process if a signal arrived since `delay_stop`.

    Raises:
        SystemExit: With the exit status of the signal.
    """
    _state.delay = 0.0
    if _state.received is not None:
        sys.exit(128 + _state.received)


def watch_signals(quiet: bool = False) -> None:
    """Let SIGINT and SIGTERM end this process and its children at any moment.

    A thread does it: the main one may be in the middle of an import or of a long operation, where an exception
    would not arrive, or would be shown with its traceback.

    Args:
        quiet: Do not say how to continue, since another process does.
    """
    _state.silent = quiet
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    os.register_at_fork(after_in_child=_restore_signals)
    threading.Thread(target=_wait_for_signal, args=(reading,), daemon=True).start()


def ignore_write_errors(failure: threading.ExceptHookArgs) -> None:
    """Hide the traceback of a thread that cannot write, as `threading.excepthook`: its owner raises the error, too."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def _restore_signals() -> None:
    """Handle signals by default in a forked process."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _wait_for_signal(reading: int) -> NoReturn:
    """Wait for a signal; end the process without asking its main thread."""
    while (number := os.read(reading, 1)[0]) not in SIGNALS:
        pass
    _state.received = number
    if _state.delay:
        select.select([reading], [], [], _state.delay)  # a second signal ends it at once
    _state.exiting = True
    cleanup_lock.acquire(timeout=1)
    for path in list(_state.temporaries):
        _remove(path)
    for child in _children():
        with suppress(OSError):
            os.kill(child, signal.SIGTERM)
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    flushing.join(0.5)  # forever, if the main thread is stuck in writing
    with suppress(OSError):
        os.write(2, _stop_message().encode(errors="replace"))
    os._exit(128 + number)


def _stop_message() -> str:
    """Return the line that says how to continue, which the first of several processes prints once."""
    first = all(os.environ.get(name, "0") == "0" for name in _RANKS)
    silent, _state.silent = _state.silent, True
    return f"\npdd: stopped. {_state.advice}\n" if first and not silent else ""


def _children() -> list[int]:
    """Return the child processes, as far as the system lists them."""
    texts = []
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            texts.append(path.read_text())
    return [int(child) for text in texts for child in text.split()]


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink() if not path.is_dir() else shutil.rmtree(path, ignore_errors=True)


def _flush() -> None:
    with suppress(OSError, ValueError):
        sys.stdout.flush()


@contextmanager
def report_errors() -> Iterator[None]:
    """Turn any error of the block into one sentence on standard error, and an exit status.

    Raises:
        SystemExit: With the sentence, which means exit status 1; with 2 where an option is unknown; with 130 after
            Ctrl-C; or as the block raised it.
    """
    try:
        yield
        sys.stdout.flush()
    except SystemExit as error:
        _wait_for_exit()
        cause = user_error(error)
        if cause and not isinstance(cause, UsageError):  # which has been reported
            sys.exit(f"pdd: error: {cause}")
        if stop_requested():
            sys.stderr.write(_stop_message())
        raise
    except UsageError as error:
        sys.stderr.write(f"pdd: error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write(_stop_message())
        sys.exit(128 + signal.SIGINT)
    except BaseException as error:
        _wait_for_exit()
        sentence = f"pdd: error: {explain(error)}"
        if isinstance(error, BrokenPipeError):
            with suppress(OSError, ValueError):  # the interpreter would complain of the closed pipe at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(sentence)


def _wait_for_exit() -> None:
    """Wait for the signal thread if it is ending the process: an error now may be its effect."""
    while _state.exiting:
        time.sleep(1)


def explain(error: BaseException) -> str:
    """Return a sentence for an error; if it was not foreseen, its traceback is written to a file."""
    if cause := user_error(error):
        return str(cause)
    chain = list(_chain(error))
    if any(map(_is_out_of_memory, chain)):
        return f"there is not enough memory ({_first_line(error)}). {_state.advice}"
    if failed := next((each for each in chain if isinstance(each, OSError)), None):
        return f"{_failed_access(failed)}. {_state.advice}"
    path = _write_traceback(error)
    return f"unexpected {type(error).__name__}: {_first_line(error)}; the traceback is in {path}. {_state.advice}"


def user_error(error: BaseException | None) -> PDDError | None:
    """Return the error that is meant for the user, which other errors may have followed."""
    return next((each for each in _chain(error) if isinstance(each, PDDError)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_out_of_memory(error: BaseException) -> bool:
    no_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or no_memory or any(words in str(error) for words in _OUT_OF_MEMORY)


def _failed_access(error: OSError) -> str:
    """Return which file could not be read or written, and why."""
    if isinstance(error, BrokenPipeError):
        return "the output could not be written, since what read it has ended (a closed pipe)"
    reason = os.strerror(error.errno) if error.errno else _first_line(error)
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"cannot read or write {' and '.join(names) or 'a file, or the output'}: {reason}"


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's message, shortened."""
    lines = str(error).strip().splitlines() or ["without a message"]
    return lines[0][:300]


def _write_traceback(error: BaseException) -> str:
    """Write the traceback into the run folder or a temporary one, and return the name of the file."""
    for folder in (_state.folder, Path(tempfile.gettempdir())):
        if folder is not None and folder.is_dir():
            with suppress(OSError):
                descriptor, name = tempfile.mkstemp(".txt", "traceback_", folder)
                os.close(descriptor)
                Path(name).write_text("".join(traceback.format_exception(error)), errors="replace")
                return name
    return "no file, for none could be written"
