"""Work for many processes, through dask.distributed: on this machine, or wherever the workers of a scheduler are."""

import contextlib
import functools
import itertools
import logging
import multiprocessing
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any, TypeVar

from common.errors import InputError, Stopped, warn
from datasets.workers import interrupts_held_back

ATTEMPTS = 3  # of an item whose worker dies
CONNECT_SECONDS = 20.0  # in which a scheduler must answer
LOOK_SECONDS = 5.0  # between two looks whether all workers are there
TOGETHER, TOGETHER_SECONDS = 8, 1.0  # short items travel together: so many at most, while they take no longer; ours
# Workers hold no data of each other's, so there is nothing to spill; a pause would wait for memory that a slide needs.
# One batch at a time goes to a worker: what waits at one that dies is not suspected.
# What only dask's dashboard shows is measured seldom: it takes the workers' cores.
LOCAL_CONFIG = {
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.allowed-failures": ATTEMPTS + 2,
}

T, R = TypeVar("T"), TypeVar("R")
Execute = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[tuple[Any, Any]]]


class WorkersDied(Exception):
    """The workers that took an item died one after the other."""


@contextlib.contextmanager
def open_workers(
    workers: int, memory_limit: str = "auto", scheduler: str | None = None, modules: tuple[str, ...] = ()
) -> Iterator[Execute]:
    """Yield execute(function, items), which yields (item, result) as results come, in any order.

    `workers` processes on this machine, each with at most `memory_limit` ("4GB"; "auto": an equal share of the memory);
    0: in this process. `scheduler` is the address, or the file, of a dask scheduler whose workers are used instead.
    `function` and items travel to other processes. A result is a `WorkersDied` where each worker that took the item
    died. What the function raises is raised here. InputError where no scheduler answers, or a worker of it has several
    threads. `modules`: what the function will import, loaded once for all workers of this machine.
    """
    if workers == 0 and scheduler is None:
        yield lambda function, items: ((item, function(item)) for item in items)
        return
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(_remote(scheduler) if scheduler else _local(workers, memory_limit, modules))
        # Workers of a scheduler come and go, and it asks for as many as there are tasks: there each item is one.
        batches = functools.partial(_batches, most=1 if scheduler else TOGETHER, workers=workers)
        yield lambda function, items: _execute(client, function, batches(items), scheduler or "the scheduler")


def check_memory_limit(memory_limit: str) -> None:
    """InputError where dask does not understand the limit, before it is asked to keep it."""
    from dask.utils import parse_bytes

    try:
        enough = memory_limit == "auto" or parse_bytes(memory_limit) >= 100e6
    except ValueError:
        enough = False
    if not enough:
        raise InputError(f"--memory_limit {memory_limit}: expected a size such as 4GB, of 100MB or more, or auto")


@contextlib.contextmanager
def _local(workers: int, memory_limit: str, modules: tuple[str, ...]) -> Iterator[Any]:
    method = "forkserver" if sys.platform == "linux" else "spawn"
    resource_tracker.ensure_running()  # when it starts, it lets the interrupts of its thread through
    if method == "forkserver":  # a worker, and the next one when it dies, starts in a fraction of a second
        multiprocessing.get_context(method).set_forkserver_preload(["distributed", *modules])
        with interrupts_held_back():
            forkserver.ensure_running()  # it loads them while this process loads dask
    import dask
    from distributed import Client, LocalCluster

    with dask.config.set({"distributed.worker.multiprocessing-method": method} | LOCAL_CONFIG):
        with interrupts_held_back():  # the workers inherit that: Ctrl-C is for this process, which ends them
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                memory_limit=memory_limit,
                dashboard_address=None,
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # its HTTP server takes any free port
                silence_logs=logging.CRITICAL,
            )
        with cluster, Client(cluster) as client, _replaced(cluster, workers):
            yield client


@contextlib.contextmanager
def _replaced(cluster: Any, workers: int) -> Iterator[None]:
    """Start workers anew that are gone for good: a nanny gives up one that dies before it has said that it is there."""
    from tornado.ioloop import PeriodicCallback

    look = PeriodicCallback(lambda: cluster.scale(workers), LOOK_SECONDS * 1000)
    cluster.loop.add_callback(look.start)
    try:
        yield
    finally:
        cluster.loop.add_callback(look.stop)


@contextlib.contextmanager
def _remote(scheduler: str) -> Iterator[Any]:
    from distributed import Client

    try:
        client = (
            Client(scheduler_file=scheduler)
            if Path(scheduler).is_file()
            else Client(scheduler, timeout=CONNECT_SECONDS)
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"--scheduler {scheduler}: no dask scheduler answers there ({str(error)[:100]}); "
            "start one with `dask scheduler`, or leave the flag out"
        ) from None
    with client:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        for address, worker in workers.items():
            _check_threads(address, worker["nthreads"])
        if not workers:
            warn(f"--scheduler {scheduler}: no workers yet; the work begins when the first one comes")
        yield client


def _check_threads(address: str, threads: int) -> None:
    """InputError where a worker does several items at a time: one that ends its process would end the others too."""
    if threads > 1:
        raise InputError(
            f"the dask worker at {address} has {threads} threads, one was expected; start it with "
            "`dask worker --nthreads 1`, as many of them as there are cores"
        )


def _begin(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Do the items in a worker, in their order, until `TOGETHER_SECONDS` have passed; the first one whatever happens.

    Another one that raises is not counted either: it comes back alone, so that nothing is lost of those before it.
    """
    from distributed import get_worker

    worker = get_worker()  # it may have come after the others were looked at
    _check_threads(worker.address, worker.state.nthreads)
    end = time.monotonic() + TOGETHER_SECONDS
    results = [function(items[0])]
    with contextlib.suppress(Exception):
        while len(results) < len(items) and time.monotonic() < end:
            results.append(function(items[len(results)]))
    return results


def _batches(items: Sequence[T], workers: int, most: int = TOGETHER) -> Iterator[Sequence[T]]:
    """Yield the items in batches of `most` that become smaller, so that all workers end together."""
    done = 0
    while done < len(items):
        size = max(1, min(most, (len(items) - done) // (4 * workers)))
        yield items[done : done + size]
        done += size


def _execute(
    client: Any, function: Callable[[T], R], batches: Iterable[Sequence[T]], where: str
) -> Iterator[tuple[T, R | WorkersDied]]:
    from distributed import CancelledError, KilledWorker, as_completed

    name, numbers = f"{uuid.uuid4().hex}-cut", itertools.count()

    def submit(batches: Iterable[Sequence[T]]) -> dict[Any, Sequence[T]]:
        batches = list(batches)
        keys = [f"{name}-{next(numbers):08d}" for _ in batches]
        futures = client.map(functools.partial(_begin, function), batches, key=keys, pure=False)
        return dict(zip(futures, batches, strict=True))

    waiting, died = submit(batches), Counter[int]()
    done = as_completed(waiting)
    for future in done:
        batch = waiting.pop(future)
        try:
            results: list[Any] = future.result()
        except KilledWorker:  # perhaps it only waited at a worker that another batch killed
            died[id(batch[0])] += len(batch) == 1
            results = [WorkersDied()] if died[id(batch[0])] == ATTEMPTS else []
        except CancelledError:
            raise Stopped(f"{where}: the scheduler is gone") from None
        except (ImportError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "deserialization" not in str(error):
                raise
            raise InputError(
                f"{where}: the scheduler or a worker cannot import this version of the toolkit; start both anew, in "
                "its folder or with the folder in their PYTHONPATH"
            ) from error
        future.release()
        if left := batch[len(results) :]:
            again = submit([item] for item in left)
            waiting.update(again)
            done.update(again)
        yield from zip(batch, results, strict=False)
