"""Starting a command as several processes on this machine, ranks of one job, as torchrun would (--parallel)."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from common.errors import SAID, InputError
from common.stopping import EXIT_STOPPED, SIGNALS

FAREWELL = 30  # seconds that the others have for leaving, once one has failed; ours
# Else torch prints dozens of lines of addresses where the rank with its store is gone. It asks when it is imported.
QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}


def launch(processes: int, argv: list[str]) -> int:
    """Start this command `processes` times on this machine, as ranks of one job; return the exit status.

    `processes` 1: one for each GPU here, InputError without one. `argv`: the script and its words; --parallel is left
    out. A signal is passed on. Where one dies the others are ended. 75: stopped by a signal, or a process was killed.
    """
    count = processes
    if processes == 1 and (count := torch.cuda.device_count()) == 0:
        raise InputError("--parallel 1 starts a process for each GPU, and there is none; use --parallel N (2 or more)")
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    shared = {name: str(value) for name, value in (shared | {"LAUNCHED_BY": os.getpid()}).items()}
    own = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // count, 1)), **QUIET}  # the user's wins
    words = [sys.executable, *_without_parallel(argv)]
    started: list[subprocess.Popen] = []

    def pass_on(number: int, _frame: Any = None) -> None:
        for process in started:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    said = tempfile.TemporaryFile("a+")  # noqa: SIM115 (closed below)
    shared[SAID] = str(said.fileno())
    try:
        for k in range(count):  # a session of their own: Ctrl-C comes to them from here, once
            environment = {**own, **os.environ, **shared, "RANK": str(k), "LOCAL_RANK": str(k)}
            process = subprocess.Popen(words, env=environment, start_new_session=True, pass_fds=[said.fileno()])
            started.append(process)
        _until_all_have_ended(started, pass_on)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()
        said.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    faults = [process.returncode for process in started if process.returncode not in (0, EXIT_STOPPED)]
    if wrong := [status for status in faults if status > 0]:
        return wrong[0]
    return EXIT_STOPPED if any(process.returncode for process in started) else 0


def free_port() -> int:
    """Return the number of a port that nobody listens at on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _until_all_have_ended(started: list[subprocess.Popen], pass_on: Callable[[int], None]) -> None:
    """Wait; once one has failed the others have FAREWELL seconds for finding out, then for a SIGTERM."""
    deadline, numbers = float("inf"), [signal.SIGKILL, signal.SIGTERM]
    while any(process.poll() is None for process in started):
        time.sleep(0.05)
        if deadline == float("inf") and any(process.poll() for process in started):
            deadline = time.monotonic() + FAREWELL
        if time.monotonic() > deadline and numbers:
            pass_on(numbers.pop())
            deadline += FAREWELL


def _without_parallel(argv: Sequence[str]) -> list[str]:
    words, skip = [], False
    for word in argv:
        if not skip and word != "--parallel" and not word.startswith("--parallel="):
            words.append(word)
        skip = word == "--parallel"
    return words
