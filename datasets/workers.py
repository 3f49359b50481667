"""Processes that work for a command: Ctrl-C is left to the command, and they end when it has ended."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from common.stopping import SIGNALS


def start_worker() -> None:
    """Call first in a worker: leave Ctrl-C to the parent, which ends the workers, and end when the parent has ended.

    Other signals end it at once, as they do a process that has not learnt otherwise from its parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in SIGNALS:
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Keep Ctrl-C waiting while a worker is started, so that it cannot meet one before its `start_worker`."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a new process inherits it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
