"""Leaving cleanly when a signal asks for it, for commands that have no checkpoint to write first."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from common.errors import EXIT_STOPPED
from common.run import SIGNALS

PATIENCE = 1.0  # seconds after which a second signal leaves at once; one signal may come twice; ours


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGTERM and SIGUSR1 interrupt as Ctrl-C does: what is half-written is removed, the exit status is 75."""
    asked = 0.0

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if not asked:
            asked = time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - asked > PATIENCE:
            os._exit(EXIT_STOPPED)

    try:
        before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    except ValueError:  # not the main thread: signals stay with whoever has it
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
