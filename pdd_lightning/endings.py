"""How a process ends: by a signal or by an error, in one sentence and without a traceback.

Imports nothing heavy, so that it is in force before torch and Lightning are imported.
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
PATIENCE = 8.0
"""Seconds that an iteration may take to its end, where the state of the run is saved."""
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
_NO_MEMORY = (
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
    """What the end depends on.

    Attributes:
        advice: How to continue.
        folder: Where tracebacks are written, if anywhere but the temporary folder.
        patience: Seconds that the work at hand may take to its end.
        asked: The signal that asked for the end.
        said: Whether the line that says how to continue was written.
        leaving: Whether the process is being ended by another thread than the main one.
        temporaries: Files and folders to be removed.
    """

    advice: str = "Nothing was begun."
    folder: Path | None = None
    patience: float = 0.0
    asked: int | None = None
    said: bool = False
    leaving: bool = False
    temporaries: set[Path] = field(default_factory=set)


_state = _State()
undisturbed = threading.Lock()
"""Temporary files and folders are not removed by a signal while it is held."""


def advise(advice: str, folder: Path | None = None) -> None:
    """Says how to continue if the process ends from now on, and in which folder a traceback would be written."""
    _state.advice, _state.folder = advice, folder


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Removes a file or folder that is only needed inside the block, also when a signal ends the process."""
    _state.temporaries.add(path)
    try:
        yield path
    finally:
        _remove(path)
        _state.temporaries.discard(path)


def finish_first(seconds: float) -> None:
    """Lets the work at hand take some time to its end, which `leave_if_asked` marks, if a signal arrives."""
    _state.patience = seconds


def asked() -> bool:
    """Whether a signal has asked for the end of the process."""
    return _state.asked is not None


def leave_if_asked() -> None:
    """Ends the process if a signal arrived since `finish_first`.

    Raises:
        SystemExit: With the exit status of the signal.
    """
    _state.patience = 0.0
    if _state.asked is not None:
        sys.exit(128 + _state.asked)


def watch_signals(quiet: bool = False) -> None:
    """Has SIGINT and SIGTERM end this process, and those that it has started, whatever it is doing.

    A thread sees to it: the main one may be in the middle of an import or of a long operation, where an exception
    would not arrive, or would be shown with its traceback.

    Args:
        quiet: Leave it to another process to say how to continue.
    """
    _state.said = quiet
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    os.register_at_fork(after_in_child=_ignore_parents_signals)
    threading.Thread(target=_wait_for_signal, args=(reading,), daemon=True).start()


def quiet_thread(failure: threading.ExceptHookArgs) -> None:
    """Leaves out the traceback of a thread that cannot write: who it writes for raises the error, too."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def _ignore_parents_signals() -> None:
    """In a process that was forked: what it receives is not for the process that it was forked from."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _wait_for_signal(reading: int) -> None:
    while (number := os.read(reading, 1)[0]) not in SIGNALS:
        pass
    _state.asked = number
    if _state.patience:
        select.select([reading], [], [], _state.patience)  # a second signal ends it at once
    _leave(number)


def _leave(number: int) -> NoReturn:
    """Ends the process without asking its main thread."""
    _state.leaving = True
    undisturbed.acquire(timeout=1)
    for path in list(_state.temporaries):
        _remove(path)
    for child in _children():
        with suppress(OSError):
            os.kill(child, signal.SIGTERM)
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    flushing.join(0.5)  # for ever, where the main thread is stuck in writing
    with suppress(OSError):
        os.write(2, _stopped().encode(errors="replace"))
    os._exit(128 + number)


def _stopped() -> str:
    """The line that says how to continue; the first process of several says it, once."""
    first = all(os.environ.get(name, "0") == "0" for name in _RANKS)
    said, _state.said = _state.said, True
    return f"\npdd: stopped. {_state.advice}\n" if first and not said else ""


def _children() -> list[int]:
    """Processes that this one has started, where the system says so."""
    texts = []
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            texts.append(path.read_text())
    return [int(word) for text in texts for word in text.split()]


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink() if not path.is_dir() else shutil.rmtree(path, ignore_errors=True)


def _flush() -> None:
    with suppress(OSError, ValueError):
        sys.stdout.flush()


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """Turns whatever the block raises into one sentence on standard error, and an exit status.

    Raises:
        SystemExit: With the sentence, which stands for exit status 1; with 2 where an option is unknown; with 130
            after Ctrl-C; or as the block raised it.
    """
    try:
        yield
        sys.stdout.flush()
    except SystemExit as error:
        _wait_if_leaving()
        if cause := user_error(error):
            sys.exit(f"pdd: error: {cause}")
        if asked():
            sys.stderr.write(_stopped())
        raise
    except UsageError as error:
        sys.stderr.write(f"pdd: error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write(_stopped())
        sys.exit(128 + signal.SIGINT)
    except BaseException as error:
        _wait_if_leaving()
        sentence = f"pdd: error: {explanation(error)}"
        if isinstance(error, BrokenPipeError):
            _discard_output()
        sys.exit(sentence)


def _wait_if_leaving() -> None:
    """Lets the thread that ends the process do so: what has failed now failed because of it."""
    while _state.leaving:
        time.sleep(1)


def explanation(error: BaseException) -> str:
    """What an error means to the user, in a sentence; where it was not foreseen, with its traceback in a file."""
    if cause := user_error(error):
        return str(cause)
    if any(map(lacks_memory, _chain(error))):
        return f"there is not enough memory ({_brief(error)}). {_state.advice}"
    if failed := next((each for each in _chain(error) if isinstance(each, OSError)), None):
        return f"{_failed_access(failed)}. {_state.advice}"
    where = _write_traceback(error)
    return f"unexpected {type(error).__name__}: {_brief(error)}; the traceback is in {where}. {_state.advice}"


def user_error(error: BaseException | None) -> PDDError | None:
    """The error that is meant for the user, which others may have followed."""
    return next((each for each in _chain(error) if isinstance(each, PDDError)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def lacks_memory(error: BaseException) -> bool:
    """Whether an error, of one of many types, says that memory is lacking."""
    text = str(error)
    no_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or no_memory or any(words in text for words in _NO_MEMORY)


def _failed_access(error: OSError) -> str:
    """Which file could not be read or written, and why."""
    if isinstance(error, BrokenPipeError):
        return "the output could not be written, since what read it has ended (a closed pipe)"
    reason = os.strerror(error.errno) if error.errno else _brief(error)
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"cannot read or write {' and '.join(names) or 'a file, or the output'}: {reason}"


def _brief(error: BaseException) -> str:
    """The first line of an error's message, not too long."""
    lines = str(error).strip().splitlines() or ["without a message"]
    return lines[0][:300]


def _write_traceback(error: BaseException) -> str:
    """Writes the traceback into the folder of the run, or else a temporary one, and returns the name of the file."""
    text = "".join(traceback.format_exception(error))
    for folder in (_state.folder, Path(tempfile.gettempdir())):
        if folder is not None and folder.is_dir():
            with suppress(OSError):
                descriptor, name = tempfile.mkstemp(".txt", "traceback_", folder)
                os.close(descriptor)
                Path(name).write_text(text, errors="replace")
                return name
    return "no file, for none could be written"


def _discard_output() -> None:
    """Has nothing more written to a closed pipe, of which the interpreter would complain at its end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
