"""Trainings that are killed: a command run in a process of its own, forked from one that has loaded torch already."""

import importlib
import multiprocessing
import os
import signal
import sys
from pathlib import Path

COMMANDS = ("histopathology_gan", "betaVAE_training")
SYSTEM = ("fsync", "posix_fadvise", "link", "replace", "unlink")  # what saving asks of the system


def start(command, words, folder, dies_at=0, seconds_per_step=1.0):
    """Start `command` with `words` in `folder`; return its process. Time as it sees it goes by steps alone.

    dies_at: kill it at so many calls of SYSTEM, or in the midst of torch.save, counted together.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed_runs", *COMMANDS])
    process = context.Process(target=_run, args=(command, words, str(folder), dies_at, seconds_per_step))
    process.start()
    return process


def _run(command, words, folder, dies_at, seconds_per_step):
    import torch

    import common.run
    from common.errors import run_command

    os.chdir(folder)
    torch.set_num_threads(1)
    module, now = importlib.import_module(command), [0.0]

    class Clock:
        """The time of common.run, which decides when to save."""

        strftime = staticmethod(common.run.time.strftime)

        @staticmethod
        def monotonic():
            return now[0]

    common.run.time = Clock
    after_step = common.run.Run.after_step

    def counted(*args, **kwargs):
        now[0] += seconds_per_step
        return after_step(*args, **kwargs)

    common.run.Run.after_step = counted
    if dies_at:
        left, save = [dies_at], torch.save

        def deadly(real):
            def called(*args, **kwargs):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return called

        def half(content, path):
            save(content, path)
            left[0] -= 1
            if not left[0]:
                os.truncate(path, Path(path).stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        for name in SYSTEM:
            setattr(os, name, deadly(getattr(os, name)))
        torch.save = half
    with open(f"{folder}/said.txt", "a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    sys.stdout.flush()
    os._exit(run_command(module.main, module.build_parser(), words.split()))
