"""Many slides, a few at a time, each by a worker: a crash or a hang costs one slide, and is tried again first."""

import contextlib
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from common.errors import InputError, warn
from datasets.claims import Claim, sweep
from datasets.cluster import ATTEMPTS, TOGETHER_SECONDS, Execute, WorkersDied, open_workers
from datasets.job import Job, Outcome, finished, set_aside

# Before a slide that killed a worker is begun again: the new one's nanny must know of it first; and it ends a batch, so
# that what becomes of the slide is known before the next one may kill the worker.
SETTLE_SECONDS = TOGETHER_SECONDS
POLL_SECONDS = 3  # between two looks at slides that another run is cutting


@dataclass
class Task:
    """One slide for a worker, wherever it is: its paths are absolute."""

    job: Job
    name: str  # the slide's path, as the user gave it
    run: str  # tells this run's claims from another's
    timeout: float  # seconds; 0: none
    replaces: int | None  # time of the store that --restart replaces, ns; None: any store counts as done


def cut_slides(
    jobs: Sequence[Job],
    workers: int = 1,
    timeout: float = 0,
    restart: bool = False,
    memory_limit: str = "auto",
    scheduler: str | None = None,
) -> Iterator[Outcome]:
    """Cut slides with the workers of `open_workers`; yield each outcome as it comes.

    Slides finished earlier come first and are kept (`restart`: cut again); stores of other settings are an InputError
    before any slide is cut. `timeout`: seconds after which a slide is given up with its worker (0: never). A slide
    whose worker dies is begun again, `ATTEMPTS` times in all. Slides that another run is cutting are waited for.
    OSError where the disk is full. Close the iterator, or use it up.
    """
    kept = {job.key: outcome for job in jobs if not restart and (outcome := _earlier(job))}
    run = uuid.uuid4().hex
    left = [_task(job, run, timeout, restart) for job in jobs if job.key not in kept]
    try:
        yield from kept.values()
        if left:
            with open_workers(min(workers, len(left)), memory_limit, scheduler, ("datasets.extraction",)) as execute:
                yield from _until_all_are_cut(left, execute)
    finally:
        for folder in {job.out for job in jobs}:
            sweep(folder, "" if scheduler else run)  # the workers of this machine are dead by now


def _until_all_are_cut(tasks: list[Task], execute: Execute) -> Iterator[Outcome]:
    """Yield the outcome of each task; those that another run is cutting are looked at again until they are done."""
    told = False
    while tasks:
        others = []
        for task, result in execute(cut_claimed, tasks):
            if result is None:
                others.append(task)
            else:
                yield _as_typed(task, result)
        if others and not told:
            warn(f"{len(others)} slides are being cut by another run on this folder: waiting for it")
            told = True
        if others:
            time.sleep(POLL_SECONDS)
        tasks = others


def cut_claimed(task: Task) -> Outcome | None:
    """Cut one slide, in a worker, unless it is done by now; None where another run is cutting it."""
    job = task.job
    if not job.out.is_dir():
        raise InputError(f"{job.out}: not there for a worker; --out must be a folder that all workers share")
    claim = Claim(job.out, job.key, task.run)
    if not claim.take():
        return None
    with claim.held(task.timeout):
        if outcome := _done_meanwhile(task):
            return outcome
        outcome = _cut_held(task, claim)
        if not claim.is_held():  # stopped for minutes, and taken over: what is there now is another run's
            return None
        if outcome.status == "failed":
            set_aside(job, outcome)
        return outcome


def _cut_held(task: Task, claim: Claim) -> Outcome:
    if claim.attempt > 1:
        time.sleep(SETTLE_SECONDS)
    if claim.overran:
        return _lost(task.job, f"took longer than --slide_timeout {task.timeout:g}")
    if claim.attempt > ATTEMPTS:
        return _lost(task.job, f"its process died {ATTEMPTS} times, in a crash or beyond --memory_limit")
    from datasets.extraction import cut_slide  # by the process that cuts: Numba takes long to load

    return cut_slide(task.job)


def _earlier(job: Job) -> Outcome | None:
    """Return what `finished` does; a failed outcome where the slide, or a file that it needs, cannot be looked at."""
    try:
        return finished(job)
    except OSError as error:
        return Outcome(job.key, reason=f"{job.slide}: {type(error).__name__}: {error}")


def _done_meanwhile(task: Task) -> Outcome | None:
    """Return the outcome of a store that came since the run began: another run's, or of a worker that died after it.

    A failed one, whose store stays, where that run has other settings.
    """
    if _sealed(task.job) == task.replaces:
        return None
    try:
        outcome = _earlier(task.job)
    except InputError as error:
        return Outcome(task.job.key, reason=str(error))
    if outcome and outcome.status == "kept":
        outcome.status = "cut"
    return outcome


def _task(job: Job, run: str, timeout: float, restart: bool) -> Task:
    there = replace(job, slide=job.slide.absolute(), out=job.out.absolute())
    return Task(there, str(job.slide), run, timeout, _sealed(job) if restart else None)


def _sealed(job: Job) -> int | None:
    """Return when the slide's store was sealed, ns; None where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return (job.out / f"{job.key}.json").stat().st_mtime_ns
    return None


def _as_typed(task: Task, result: Outcome | WorkersDied) -> Outcome:
    """Return the outcome with the slide's path as the user gave it: the same text wherever it was cut."""
    if isinstance(result, WorkersDied) and not (result := _done_meanwhile(task)):
        result = _lost(task.job, f"{ATTEMPTS} workers that took it died")
        set_aside(task.job, result)
    result.reason = result.reason.replace(str(task.job.slide), task.name)
    return result


def _lost(job: Job, why: str) -> Outcome:
    return Outcome(job.key, reason=f"{job.slide}: {why}; try it alone, with --workers 0 and --debug")
