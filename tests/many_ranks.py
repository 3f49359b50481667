"""Several processes for the tests: a script's ranks, or commands one after another, on this machine, over gloo."""

import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from common.launching import QUIET, free_port

ROOT = Path(__file__).resolve().parent.parent


def start(words, world, folder, **environment):
    """Start `python words` as ranks 0 .. world - 1 in `folder`, or each in its own of several.

    Return the processes, their stdout and stderr piped.
    """
    folders = folder if isinstance(folder, list) else [folder] * world
    shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    shared |= {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": 1, "RANK_TIMEOUT": 60} | QUIET | environment
    started = []
    for k in range(world):
        started += start_alone(words, folders[k], **shared, RANK=k, LOCAL_RANK=k)
    return started


def start_alone(words, folder, program=sys.executable, **environment):
    """Start `program words` in `folder`; return the one process, its stdout and stderr piped."""
    own = {"OMP_NUM_THREADS": 1, "PYTHONFAULTHANDLER": 1}  # a process that aborts says where
    environment = {name: str(value) for name, value in (own | environment).items()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    words = [program, *map(str, words)]
    return [subprocess.Popen(words, env={**os.environ, **environment}, cwd=folder, **pipes)]


def finish(started, seconds=300):
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


def run_lines(lines, world, folder):
    """Run command lines ("x.py --flag ...") one after another in the same ranks, which import torch once; see `run`.

    What is printed ends with a line of the lines' exit statuses.
    """
    plan = json.dumps([[line, free_port()] for line in lines])
    return run([__file__, plan], world, folder)


if __name__ == "__main__":
    from common.errors import run_command

    statuses, out = [], sys.stdout
    for line, port in json.loads(sys.argv[1]):
        os.environ["MASTER_PORT"] = str(port)
        name, *words = shlex.split(line)
        module = importlib.import_module(name.removesuffix(".py"))
        statuses.append(run_command(module.main, module.build_parser(), words))
    print(statuses, file=out)
