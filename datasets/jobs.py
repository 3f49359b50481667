"""Many slides, a few at a time, each in a process of its own: a crash or a hang costs one slide."""

import contextlib
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path

import pandas as pd

from common.files import atomic_path
from datasets.extraction import Job, Outcome, cut_slide, finished, set_aside
from datasets.workers import interrupts_held_back, start_worker

STALE_SECONDS = 3600  # a half-written file that has not grown for so long belongs to a process that is gone


@dataclass
class _Worker:
    job: Job
    process: multiprocessing.process.BaseProcess
    answer: Connection
    deadline: float


def cut_slides(jobs: Sequence[Job], workers: int = 1, timeout: float = 0, restart: bool = False) -> Iterator[Outcome]:
    """Cut slides with `workers` processes (0: in this one); yield each outcome as it comes.

    Slides finished earlier are kept (`restart`: cut again); stores of other settings are an InputError before any
    slide is cut. `timeout`: seconds after which a slide is given up (0: never). OSError where the disk is full.
    """
    kept = {job.key: outcome for job in jobs if not restart and (outcome := finished(job))}
    waiting = [job for job in jobs if job.key not in kept]
    for folder in {job.out for job in jobs}:
        _remove_stale(folder)
    yield from kept.values()
    if workers == 0:
        yield from map(cut_slide, waiting)
    else:
        yield from _in_processes(waiting, workers, timeout)


def write_report(path: str | Path, outcomes: Sequence[Outcome]) -> None:
    """Write report.csv: one line per slide, sorted: tiles, micrometres per pixel, rejected tiles, reason."""
    with atomic_path(path) as partial:
        table = pd.DataFrame(sorted(outcomes, key=lambda o: o.slide))
        table.astype({"level": "Int64"}).to_csv(partial, index=False)


def _remove_stale(folder: Path) -> None:
    for partial in (*folder.glob(".*.partial"), *folder.glob("previews/.*.partial")):
        with contextlib.suppress(FileNotFoundError):  # another run was faster
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                partial.unlink()


def _in_processes(jobs: list[Job], workers: int, timeout: float) -> Iterator[Outcome]:
    # Forked where that is safe: nothing here runs threads or holds a slide open, and imports need not be repeated.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    waiting, running = jobs[::-1], []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(_start(context, waiting.pop(), timeout))
            wait([w.answer for w in running], timeout=1.0)
            for worker in list(running):
                if (outcome := _collect(worker)) is not None:
                    running.remove(worker)
                    yield outcome
    finally:
        for worker in running:
            _end(worker)


def _start(context: BaseContext, job: Job, timeout: float) -> _Worker:
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(job, there), daemon=True)
    with interrupts_held_back():
        process.start()
    there.close()  # so that the end of the process is seen on `here`
    return _Worker(job, process, here, time.monotonic() + timeout if timeout else float("inf"))


def _run(job: Job, answer: Connection) -> None:
    start_worker()
    try:
        answer.send(cut_slide(job))
    except OSError as error:  # full disk
        answer.send(error)


def _collect(worker: _Worker) -> Outcome | None:
    """Return the outcome of a worker that has ended, died or overrun its time; None while it works."""
    if worker.answer.poll():
        try:
            result = worker.answer.recv()
            worker.process.join()
        except EOFError:
            worker.process.join()
            result = _lost(worker, f"its process died (exit code {worker.process.exitcode})")
    elif time.monotonic() > worker.deadline:
        worker.process.kill()
        worker.process.join()
        result = _lost(worker, "took longer than --slide_timeout")
    else:
        return None
    _end(worker)
    if isinstance(result, OSError):
        raise result
    return result


def _lost(worker: _Worker, why: str) -> Outcome:
    outcome = Outcome(worker.job.key, reason=f"{worker.job.slide}: {why}; try it alone, with --workers 0 and --debug")
    set_aside(worker.job, outcome)
    return outcome


def _end(worker: _Worker) -> None:
    """Make sure that a worker's process is gone, and what it had half written."""
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    worker.answer.close()
    for folder in (worker.job.out, worker.job.out / "previews"):
        for partial in folder.glob(f".{worker.job.key}.*.{worker.process.pid}.partial"):
            partial.unlink(missing_ok=True)
