"""Several processes for the tests: a script's ranks, on this machine, over gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def start(words, world, folder, **environment):
    """Start `python words` as ranks 0 .. world - 1 in `folder`; return the processes, their stdout and stderr piped."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": 1, "RANK_TIMEOUT": 60} | environment
    started = []
    for k in range(world):
        mine = {name: str(value) for name, value in {**shared, "RANK": k, "LOCAL_RANK": k}.items()}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(
            subprocess.Popen([sys.executable, *map(str, words)], env={**os.environ, **mine}, cwd=folder, **pipes)
        )
    return started


def finish(started, seconds=120):
    """Return (exit statuses, what each printed, what each said on stderr) once all have ended."""
    try:
        said = [process.communicate(timeout=seconds) for process in started]
    finally:
        for process in started:
            process.kill()
    return [p.returncode for p in started], [out for out, _ in said], [err for _, err in said]


def run(words, world, folder, **environment):
    """Start, and wait for, `python words` as so many ranks; see `finish`."""
    return finish(start(words, world, folder, **environment))
