"""Batches read ahead by workers: the same as without them, and a fault arrives with the name of its file."""

import errno
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import ROOT

from common.errors import InputError, command_parser, run_command
from datasets.feed import ReadersHung, place_of, tile_batches
from datasets.tiles import open_stores, write_store
from datasets.tileset import TileSet


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


class Stubborn(Numbers):
    """Tiles whose number `bad` cannot be read for `times` readings: it hangs, or raises `error`."""

    def __init__(self, bad, times, error=None):
        super().__init__()
        self.bad, self.times, self.error, self.end = bad, times, error, threading.Event()

    def read(self, indices):
        if self.bad in indices and self.times > 0:
            self.times -= 1
            if self.error is None:
                self.end.wait()
            raise self.error or OSError("let go")
        return np.repeat(np.asarray(indices, np.uint8), 12).reshape(-1, 2, 2, 3)

    def place_of(self, index):
        return f"slide.tar: tile {index + 100}"


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_reader_that_hangs_is_replaced_and_changes_nothing(workers, capsys):
    tiles = Stubborn(bad=5, times=1)
    found = list(tile_batches(tiles, batch, 0, 6, workers, patience=0.2))
    tiles.end.set()
    assert all((a[1] == b[1]).all() for a, b in zip(found, tile_batches(Numbers(), batch, 0, 6), strict=True))
    assert "batch 2 was not read within 0.2 s; trying once more" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_tile_that_never_comes_is_named_and_the_run_can_go_on_later(workers, capsys):
    tiles = Stubborn(bad=5, times=99)
    batches = tile_batches(tiles, batch, 0, 6, workers, patience=0.2)
    assert [next(batches)[0].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    assert run_command(lambda args: next(batches), command_parser("x"), []) == 75
    said = capsys.readouterr().err.splitlines()[-1]
    assert "slide.tar: tile 105: not read within 0.2 s, twice (setting read_timeout)" in said
    assert "type the same command again to go on" in said
    tiles.end.set()


def test_with_several_ranks_a_tile_is_given_up_before_they_miss_the_one_that_waits(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("RANK_TIMEOUT", "1")):
        monkeypatch.setenv(name, value)
    tiles = Stubborn(bad=5, times=99)
    with pytest.raises(ReadersHung, match=r"tile 105: not read within 0.25 s, twice"):
        list(tile_batches(tiles, batch, 0, 6, 1, patience=20))
    tiles.end.set()


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error", "c.tar"), TimeoutError("no answer")], ids=repr
)
def test_a_fault_that_passes_is_forgotten(error):
    found = list(tile_batches(Stubborn(5, 1, error), batch, 0, 6, 1, patience=30))
    assert [b[0].tolist() for b in found] == [batch(i).tolist() for i in range(6)]
    with pytest.raises(type(error)) as caught:
        list(tile_batches(Stubborn(5, 2, error), batch, 0, 6, 1, patience=30))
    assert caught.value is error


def test_readers_end_when_no_more_batches_are_wanted():
    before = threading.active_count()
    batches = tile_batches(Numbers(), batch, 0, 50, 3)
    next(batches)
    assert threading.active_count() == before + 3
    batches.close()
    assert threading.active_count() == before


def test_a_process_with_a_hung_reader_can_end(tmp_path):
    program = """
import sys, time
import numpy as np
from common.errors import command_parser, run_command
from datasets.feed import tile_batches

class Hangs:
    def read(self, indices):
        time.sleep(1000)

batches = tile_batches(Hangs(), lambda i: np.arange(2), 0, 3, 2, patience=0.1)
sys.exit(run_command(lambda args: next(batches) and None, command_parser("x"), []))
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 75 and "tile 0: not read within 0.1 s" in ended.stderr


def test_what_is_still_read_ahead_is_finished_before_python_ends(tmp_path):
    script = tmp_path / "leaves.py"
    script.write_text("""
import sys, threading, time
import numpy as np
from datasets.feed import tile_batches

begun = threading.Event()

class Slow:
    def read(self, indices):
        if indices[0]:
            print("begun", flush=True)
            begun.set()
            time.sleep(1)
            print("done", flush=True)
        return np.zeros((1, 2, 2, 3), np.uint8)

batches = tile_batches(Slow(), lambda i: np.array([i]), 0, 9, workers=1)
sys.keep = [batches, next(batches)]  # nobody closes it
begun.wait(60)
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["begun", "done"], "")


def test_a_tile_set_says_where_a_tile_is(tmp_path):
    tile = np.zeros((16, 16, 3), np.uint8)
    for slide in "ab":
        write_store(tmp_path, slide, [(0, 0, 1.0, tile)] * 3, mpp=0.5, tile_size=16)
    assert place_of(TileSet(open_stores(tmp_path), 16), 4) == f"{tmp_path}/b.tar: tile 1"
    assert place_of(Numbers(), 7) == "tile 7"
