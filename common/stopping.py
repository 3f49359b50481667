"""What a signal does: SIGTERM, SIGINT and SIGUSR1 end a command in good order, a second one ends it at once.

The first raises Interrupted wherever the command is, unless something holds signals back that must be finished first (a
training step, a file's renaming); then it waits until that is done. Both ways the exit status is 75.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
EXIT_STOPPED = 75
# Where a launcher started this process, it passes on what a terminal or a scheduler may have sent here too: within this
# many seconds that is one signal.
ECHO_SECONDS = 1.0


class Interrupted(KeyboardInterrupt):
    """A signal, named by the message, asked the command to stop, and nothing had to be finished first."""


class _State:
    handled = False  # signals come here
    requested = ""  # the first signal's name, once it came
    at = 0.0
    waiting = False  # it came while it was held back
    held = 0
    aloud = False  # what is being finished takes long enough to be told
    partials: set[Path] = set()  # noqa: RUF012  files of this process that are being written


@contextmanager
def signals_handled() -> Iterator[None]:
    """Handle SIGNALS as this module says, until the end of the block. Does nothing inside another such block.

    Nor in another thread than the main one, to which signals belong.
    """
    if _State.handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.handled, _State.requested, _State.waiting, _State.held, _State.aloud = True, "", False, 0, False
    before = {number: signal.signal(number, _on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.handled = False


def stop_requested() -> bool:
    """Return True once a signal has asked this process to stop."""
    return bool(_State.requested)


def hold_signals(aloud: bool = False) -> None:
    """From here on, until as many `release_signals()`, a first signal only sets `stop_requested()`.

    `aloud`: the user is told that a training step is finished first.
    """
    if threading.current_thread() is threading.main_thread():  # in no other thread is anything raised
        _State.held += 1
        _State.aloud |= aloud


def release_signals() -> None:
    """End what `hold_signals()` began; a signal that came meanwhile raises Interrupted here."""
    if threading.current_thread() is threading.main_thread():
        _State.held -= 1
        _State.aloud &= _State.held > 0
        if not _State.held and _State.waiting:
            _State.waiting = False
            raise Interrupted(_State.requested)


@contextmanager
def held_back() -> Iterator[None]:
    """Hold signals back in the block: for what is short and must not be cut in two."""
    hold_signals()
    try:
        yield
    finally:
        release_signals()


def being_written(path: Path) -> None:
    """Note a half-written file of this process, which is removed if the process leaves in its midst."""
    _State.partials.add(path)


def written(path: Path) -> None:
    """Forget a file that is whole, or gone."""
    _State.partials.discard(path)


def remove_unfinished() -> None:
    """Remove the files that an error or a signal left half-written."""
    for path in list(_State.partials):
        if f".{os.getpid()}." in path.name:  # a process that was forked has its parent's list
            with suppress(OSError):
                path.unlink(missing_ok=True)
        _State.partials.discard(path)


def _on_signal(number: int, _frame: FrameType | None) -> Any:
    now = time.monotonic()
    if _State.requested:
        if "RANK" in os.environ and now - _State.at < ECHO_SECONDS:
            return
        remove_unfinished()
        os._exit(EXIT_STOPPED)
    _State.requested, _State.at = signal.Signals(number).name, now
    if not _State.held:
        raise Interrupted(_State.requested)
    _State.waiting = True
    if not _State.aloud or os.environ.get("RANK", "0") != "0":  # of several processes the first speaks for all
        return
    with suppress(RuntimeError, OSError, ValueError):  # it may have come in the midst of another line
        text = f"{_State.requested}: finishing this step, then saving; a second signal leaves at once"
        print(f"warning: {text}", file=sys.stderr, flush=True)
