"""Batches of tiles in a fixed order, read when asked for or ahead of it by threads."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

Batch = tuple[np.ndarray, np.ndarray]  # tile indices (n,), uint8 RGB (n, H, W, 3)
AHEAD = 2  # batches per worker that are read or waiting


class Readable(Protocol):
    """A numbered set of tiles: a TileSet, or a source's."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the tiles `indices` as uint8 RGB (n, H, W, 3)."""


def tile_batches(
    tiles: Readable, indices_of: Callable[[int], np.ndarray], first: int, stop: int, workers: int = 0
) -> Iterator[Batch]:
    """Yield batches `first` to `stop` - 1; batch i holds the tiles `indices_of(i)`, whoever reads it.

    With `workers` > 0 as many threads read ahead: reading and decoding run outside Python's lock, and a thread, unlike
    a process, needs no shared memory and cannot be killed alone. InputError as `tiles.read` raises it.
    """

    def read(i: int) -> Batch:
        indices = indices_of(i)
        return indices, tiles.read(indices)

    if not workers:
        yield from (read(i) for i in range(first, stop))
        return
    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="tiles") as pool:
        try:
            for i in range(first, stop):
                waiting.append(pool.submit(read, i))
                if len(waiting) > AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
