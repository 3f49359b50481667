"""Batches of tiles in a fixed order, read ahead by threads; a reader that hangs or fails is given a second try.

Reading and decoding run outside Python's lock, and a thread, unlike a process, needs no shared memory and cannot be
killed alone. It can hang, where a disk or a network file system does: then nobody waits for it for ever.
"""

import atexit
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import ClassVar, Protocol

import numpy as np

from common.distributed import patience_of_several
from common.errors import Stopped, warn

Batch = tuple[np.ndarray, np.ndarray]  # tile indices (n,), uint8 RGB (n, H, W, 3)
AHEAD = 2  # batches per worker that are read or waiting
PATIENCE = 300.0  # seconds, twice: what a batch may take to be read, from when it is waited for; a setting of training
LEAVE_SECONDS = 5.0  # for which readers are waited for when no more batches are wanted


class Readable(Protocol):
    """A numbered set of tiles: a TileSet, or a source's. One with `place_of(index)` says in words where a tile is."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the tiles `indices` as uint8 RGB (n, H, W, 3)."""


class ReadersHung(Stopped):
    """Tiles could not be read within the time given; the message names the one. The same command again goes on."""


def tile_batches(
    tiles: Readable,
    indices_of: Callable[[int], np.ndarray],
    first: int,
    stop: int,
    workers: int = 0,
    patience: float = PATIENCE,
) -> Iterator[Batch]:
    """Yield batches `first` to `stop` - 1; batch i holds the tiles `indices_of(i)`, whoever reads it.

    `workers` threads read ahead; with 0 a batch is read when it is asked for. A batch that is not there within
    `patience` seconds, or whose reading failed, is read once more, tile by tile and by a new thread. Then what
    `tiles.read` raised is raised, or ReadersHung, which names the tile. With several ranks `patience` is shorter where
    the others would not wait so long.
    """
    patience = patience_of_several(patience)
    with _Readers(max(workers, 1)) as readers:
        waiting: deque[tuple[int, Future[Batch]]] = deque()
        for i in range(first, stop):
            waiting.append((i, readers.submit(_read_batch, tiles, indices_of, i)))
            if len(waiting) > AHEAD * workers:
                yield _result(tiles, indices_of, *waiting.popleft(), readers, patience)
        while waiting:
            yield _result(tiles, indices_of, *waiting.popleft(), readers, patience)


def place_of(tiles: Readable, index: int) -> str:
    """Return in words where tile `index` is: its slide's file and its number there, or its number alone."""
    where = getattr(tiles, "place_of", None)
    return where(int(index)) if where is not None else f"tile {int(index)}"


def _read_batch(tiles: Readable, indices_of: Callable[[int], np.ndarray], i: int) -> Batch:
    indices = indices_of(i)
    return indices, tiles.read(indices)


def _result(
    tiles: Readable,
    indices_of: Callable[[int], np.ndarray],
    i: int,
    future: Future[Batch],
    readers: "_Readers",
    patience: float,
) -> Batch:
    """Return the batch of `future`, or read it again."""
    try:
        return future.result(patience)
    except Exception as error:
        if isinstance(error, TimeoutError) and not future.done():
            readers.give_up()
            warn(f"batch {i} was not read within {patience:g} s; trying once more with another reader")
        elif isinstance(error, TimeoutError) and future.exception() is None:
            return future.result()  # it came just now
    at: list[int] = []  # the tiles that were begun

    def one_by_one() -> Batch:
        indices = indices_of(i)
        parts = []
        for index in indices:
            at.append(int(index))
            parts.append(tiles.read(np.array([index])))
        return indices, np.concatenate(parts) if parts else tiles.read(indices)

    again = readers.submit_first(one_by_one)
    try:
        return again.result(patience)
    except TimeoutError:
        if again.done():
            return again.result()
        readers.give_up()
        where = place_of(tiles, at[-1]) if at else f"a tile of batch {i}"
        raise ReadersHung(
            f"{where}: not read within {patience:g} s, twice (setting read_timeout): does the disk or network file "
            "system answer? What was saved is whole"
        ) from None


class _Readers:
    """Threads that run what is submitted, in order. They keep the process from ending for LEAVE_SECONDS at most."""

    _all: ClassVar[weakref.WeakSet["_Readers"]] = weakref.WeakSet()

    def __init__(self, count: int) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[Batch], Callable[..., Batch], tuple] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._left, self._hung = False, False
        self._all.add(self)
        for _ in range(count):
            self._start(self._tasks)

    def _start(self, tasks: queue.SimpleQueue) -> None:
        thread = threading.Thread(target=self._work, args=(tasks,), name="tiles", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _work(self, tasks: queue.SimpleQueue) -> None:
        while (task := tasks.get()) is not None:
            future, function, arguments = task
            if self._left or not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)
            del future, task  # a batch is its taker's alone

    def submit(self, function: Callable[..., Batch], *arguments: object) -> Future[Batch]:
        """Run it after what was submitted before."""
        future: Future[Batch] = Future()
        self._tasks.put((future, function, arguments))
        return future

    def submit_first(self, function: Callable[..., Batch]) -> Future[Batch]:
        """Run it now, in a thread of its own."""
        future: Future[Batch] = Future()
        own: queue.SimpleQueue = queue.SimpleQueue()
        own.put((future, function, ()))
        own.put(None)
        self._start(own)
        return future

    def give_up(self) -> None:
        """Note that a thread hangs, and start another in its place."""
        self._hung = True
        self._start(self._tasks)

    def __enter__(self) -> "_Readers":
        return self

    def __exit__(self, *_: object) -> None:
        self._all.discard(self)
        self._ask_to_leave()
        self._wait(time.monotonic() + LEAVE_SECONDS)

    def _ask_to_leave(self) -> None:
        self._left = True
        for _ in self._threads:
            self._tasks.put(None)

    def _wait(self, until: float) -> None:
        for thread in self._threads:
            thread.join(0.0 if self._hung else max(until - time.monotonic(), 0.0))

    @classmethod
    def leave_all(cls) -> None:
        """End what is still reading ahead: a thread in a library's midst when Python ends can abort the process."""
        every, until = list(cls._all), time.monotonic() + LEAVE_SECONDS
        with suppress(KeyboardInterrupt):  # an impatient user's
            for readers in every:
                readers._ask_to_leave()
            for readers in every:
                readers._wait(until)


atexit.register(_Readers.leave_all)
