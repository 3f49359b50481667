"""Batches read ahead by workers: the same as without them, and a fault arrives with the name of its file."""

import errno

import numpy as np
import pytest

from common.errors import InputError
from datasets.feed import tile_batches


class Numbers:
    """Tiles whose pixels are their number; number `bad` raises `error`."""

    def __init__(self, bad=None, error=None):
        self.bad, self.error = bad, error

    def read(self, indices):
        if self.bad in indices:
            raise self.error
        return np.repeat(np.asarray(indices, np.uint8), 12).reshape(-1, 2, 2, 3)


def batch(i):
    return np.arange(2 * i, 2 * i + 2)


def test_workers_change_nothing():
    alone, ahead = (list(tile_batches(Numbers(), batch, 1, 4, workers)) for workers in (0, 1))
    assert [b[0].tolist() for b in alone] == [[2, 3], [4, 5], [6, 7]] == [b[0].tolist() for b in ahead]
    assert all((a[1] == b[1]).all() for a, b in zip(alone, ahead, strict=True))


@pytest.mark.parametrize(
    "error",
    [
        InputError("a.tar: tile 3 is damaged"),
        FileNotFoundError(errno.ENOENT, "gone", "b.tar"),
        OSError(errno.EIO, "Input/output error", "c.tar"),
    ],
    ids=repr,
)
def test_a_workers_fault_arrives_as_it_is_with_its_file(error):
    batches = tile_batches(Numbers(3, error), batch, 0, 3, 1)
    assert next(batches)[0].tolist() == [0, 1]
    with pytest.raises(type(error)) as caught:
        next(batches)
    assert caught.value is error
