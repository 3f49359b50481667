"""Batches of tiles in a fixed order, read in this process or ahead of it by workers."""

import signal
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from common.errors import InputError, explain_os_error, warn
from datasets.tileset import TileSet

Batch = tuple[np.ndarray, np.ndarray]  # tile indices (n,), uint8 RGB (n, H, W, 3)


def tile_batches(
    tiles: TileSet, indices_of: Callable[[int], np.ndarray], first: int, stop: int, workers: int = 0
) -> Iterator[Batch]:
    """Yield batches `first` to `stop` - 1; batch i holds the tiles `indices_of(i)`, whoever reads it.

    With `workers` > 0 processes read ahead. If one dies (out of shared memory, killed) the rest is read here, with a
    warning. InputError names a damaged store, as `tiles.read` does; from a worker an OSError comes as one too.
    """
    done = first
    if workers:
        ahead = DataLoader(
            _Reader(tiles),
            batch_size=None,
            sampler=_Order(indices_of, first, stop),
            num_workers=workers,
            worker_init_fn=_leave_signals_to_the_parent,
        )
        try:
            for indices, images in ahead:
                if isinstance(images, str):  # an error's text: an exception would arrive as a page of traceback
                    raise InputError(images)
                yield indices.numpy(), images.numpy()
                done += 1
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            warn(f"{str(error).splitlines()[0][:120]}; tiles are now read without workers (n_workers = 0)")
    for i in range(done, stop):
        indices = indices_of(i)
        yield indices, tiles.read(indices)


class _Order(Sampler):
    def __init__(self, indices_of: Callable[[int], np.ndarray], first: int, stop: int) -> None:
        self.indices_of, self.first, self.stop = indices_of, first, stop

    def __len__(self) -> int:
        return self.stop - self.first

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.indices_of(i) for i in range(self.first, self.stop))


class _Reader(Dataset):
    def __init__(self, tiles: TileSet) -> None:
        self.tiles = tiles

    def __getitem__(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | str]:
        try:
            images = torch.from_numpy(self.tiles.read(indices))
        except InputError as error:
            images = str(error)
        except OSError as error:
            images = explain_os_error(error)
        return torch.from_numpy(indices), images


def _leave_signals_to_the_parent(_: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
