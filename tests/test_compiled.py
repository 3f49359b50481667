"""Compiled loops: kept on disk where that works, and compiled for the process alone where it does not."""

import errno
import os
import sys

import pytest
from numba import types
from numba.core import caching

from common.compiled import compiled

SOURCE = """
from numba import types
from common.compiled import compiled

@compiled(types.int64)
def twice(n):
    return 2 * n
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Writes a module with a compiled loop; load() imports it anew, as a new process does."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "a_loop.py").write_text(SOURCE)

    def call():
        monkeypatch.delitem(sys.modules, "a_loop", raising=False)
        import a_loop

        return a_loop.twice

    yield call
    sys.modules.pop("a_loop", None)


def kept(tmp_path, ending):
    return list(tmp_path.rglob(f"*{ending}"))


def test_a_loop_is_kept_beside_its_file(load, tmp_path):
    assert load()(4) == 8 and not load().stats.cache_misses
    assert len(kept(tmp_path, ".nbi")) == len(kept(tmp_path, ".nbc")) == 1
    assert sum(load().stats.cache_hits.values()) == 1


@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
@pytest.mark.parametrize(
    "damage", [b"", b"no pickle", b"\x80\x04cno_such_module\nname\n."], ids=["empty", "text", "name"]
)
def test_a_damaged_file_costs_the_compilation_alone(load, tmp_path, ending, damage):
    load()
    (path,) = kept(tmp_path, ending)
    path.write_bytes(damage)
    assert load()(4) == 8


def test_a_full_disk_costs_the_compilation_alone(load, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(caching.IndexDataCacheFile, "_save_data", full)
    assert load()(4) == 8 and not kept(tmp_path, ".nbc")


def test_no_folder_to_write_in_costs_the_compilation_alone(load, monkeypatch):
    def nowhere(*_):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(caching.FunctionCache, "__init__", nowhere)
    assert load()(4) == 8


def test_what_does_not_compile_is_raised():
    def wrong(n):
        return n.no_such_attribute

    with pytest.raises(Exception, match="no_such_attribute"):
        compiled(types.int64)(wrong)
