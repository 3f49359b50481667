"""prepare_data.py import: the published code's LMDB stores, and what is refused instead of executed."""

import os
import pickle
import pickletools
import signal
import struct
import time
import tracemalloc

import lmdb
import lz4.frame
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datasets.published_store as published_store
import prepare_data
from common.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_SOME_FAILED, InputError, run_command
from common.restricted_pickle import load_plain
from datasets.tiles import TileStore, open_stores
from datasets.tileset import TileLimits

SIDE = 32


def tiles_of(seed, n=5, side=SIDE):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), np.uint8)


def packed(value, protocol=4):
    return lz4.frame.compress(pickle.dumps(value, protocol))


def write_published(path, tiles, protocol=4, keys=True, changed=()):
    """Write a file as the published code does; `changed` (key, raw value) pairs replace what it would hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [str(i).encode() for i in range(len(tiles))]
    with lmdb.open(str(path), subdir=False, map_size=1 << 24) as database, database.begin(write=True) as transaction:
        for i, (name, tile) in enumerate(zip(names, tiles, strict=True)):
            value = (f"{path.stem}_patch_{i}", tile.tobytes(), tile.shape)
            transaction.put(name, packed(value, protocol))
        if keys:
            transaction.put(b"__keys__", packed(names, protocol))
        for name, raw in changed:
            transaction.put(name, raw)
    return path


def run(*words):
    return run_command(prepare_data.main, prepare_data.build_parser(), ["import", *map(str, words)])


# ---- What is there comes over ----


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_tiles_come_over_exactly_and_in_order(tmp_path, capsys, protocol):
    for number, slide in enumerate(("GTEX-AAAA-0625.svs", "TCGA-AA-0001-01Z-00-DX1.svs")):
        write_published(tmp_path / "db" / slide / f"{slide}.db", tiles_of(number, 12), protocol)
    words = ("--lmdb", tmp_path / "db", "--mpp", 0.5, "--format", "png", "--out", tmp_path / "tiles")
    assert run(*words) == EXIT_DONE
    assert "24 tiles of 2 slides at 0.5 um per pixel (0 kept); 0 failed" in capsys.readouterr().out
    stores = open_stores(tmp_path / "tiles")
    assert list(stores) == ["GTEX-AAAA-0625", "TCGA-AA-0001-01Z-00-DX1"]
    for number, store in enumerate(stores.values()):
        store.verify()
        assert np.array_equal(np.stack([store.read(i) for i in range(12)]), tiles_of(number, 12))
        assert store.mpp == 0.5 and store.tile_size == SIDE
        assert (store.coords == -1).all() and np.isnan(store.tissue).all()  # the file does not tell
        with pytest.raises(InputError, match="tissue share of its tiles is not known"):
            TileLimits(min_tissue=0.5).numbers(store)
    assert run(*words) == EXIT_DONE and "(2 kept)" in capsys.readouterr().out


def test_one_file_as_jpeg_and_another_import_on_top_is_refused(tmp_path, capsys):
    path = write_published(tmp_path / "a.db", np.full((3, SIDE, SIDE, 3), (220, 40, 90), np.uint8))
    assert run("--lmdb", path, "--mpp", 0.5, "--out", tmp_path / "tiles") == EXIT_DONE
    store = TileStore(tmp_path / "tiles" / "a")
    assert np.abs(store.read(2).astype(int) - (220, 40, 90)).max() < 5  # RGB stays RGB
    assert run("--lmdb", path, "--mpp", 0.25, "--out", tmp_path / "tiles") == EXIT_BAD_INPUT
    assert "there already, from elsewhere" in capsys.readouterr().err
    assert run("--lmdb", path, "--mpp", 0.25, "--out", tmp_path / "tiles", "--restart") == EXIT_DONE
    assert TileStore(tmp_path / "tiles" / "a").mpp == 0.25


def test_a_store_without_its_list_of_keys_is_taken_as_far_as_it_goes(tmp_path, capfd):
    path = write_published(tmp_path / "a.db", tiles_of(0, 11), keys=False)
    assert run("--lmdb", path, "--mpp", 0.5, "--format", "png", "--out", tmp_path / "tiles") == EXIT_DONE
    assert "no list of its tiles" in capfd.readouterr().err
    store = TileStore(tmp_path / "tiles" / "a")
    assert np.array_equal(store.read(10), tiles_of(0, 11)[10]) and len(store) == 11


# ---- What is not plain is refused ----

PLAIN = ("t_patch_0", b"\0" * 3 * SIDE * SIDE, (SIDE, SIDE, 3))
FAULTS = {
    "not LZ4": ([(b"1", b"hello, this is no frame of any kind")], "tile 1: not a readable LZ4 frame"),
    "cut frame": ([(b"1", packed(PLAIN)[:-9])], "tile 1: an LZ4 frame that was cut short"),
    "bomb": ([(b"1", lz4.frame.compress(bytes(200_000_000)))], "tile 1: more than 50335744 bytes"),
    "missing": ([(b"__keys__", packed([b"0", b"9"]))], "tile 9: listed, but missing"),
    "keys": ([(b"__keys__", packed(["0"]))], "__keys__: a list of keys was expected"),
    "list": ([(b"1", packed(list(PLAIN)))], "tile 1: a tuple of name, pixels and shape was expected"),
    "shape": ([(b"1", packed((PLAIN[0], PLAIN[1], "big")))], r"tile 1: shape 'big', (height, width, 3)"),
    "bytes": ([(b"1", packed((PLAIN[0], b"123", PLAIN[2])))], "tile 1: 3 bytes of shape (32, 32, 3)"),
    "negative": ([(b"1", packed((PLAIN[0], b"", (-1, -1, 3))))], "tile 1: 0 bytes of shape (-1, -1, 3)"),
    "size": ([(b"1", packed(("x", bytes(3 * 64 * 64), (64, 64, 3))))], "tiles of 32 and of 64 pixels"),
    "grey": ([(b"1", packed(("x", bytes(SIDE * SIDE), (SIDE, SIDE, 1))))], "a square RGB tile"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_costs_its_file_and_leaves_the_others(tmp_path, capsys, fault):
    changed, message = FAULTS[fault]
    write_published(tmp_path / "db" / "bad.db", tiles_of(0, 3), changed=changed)
    write_published(tmp_path / "db" / "good.db", tiles_of(1, 3))
    assert run("--lmdb", tmp_path / "db", "--mpp", 0.5, "--out", tmp_path / "tiles") == EXIT_SOME_FAILED
    said = capsys.readouterr()
    assert f"{tmp_path / 'db' / 'bad.db'}" in said.err and message in said.err and "1 failed" in said.out
    assert sorted(p.name for p in (tmp_path / "tiles").iterdir()) == ["good.json", "good.tar"]


def test_a_bomb_is_unpacked_no_further_than_a_tile_can_be_large():
    frame = lz4.frame.compress(bytes(400_000_000))
    tracemalloc.start()
    with pytest.raises(InputError, match="more than 50335744 bytes"):
        published_store._unpacked(frame, "here")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(frame) < 2_000_000 and peak < 120_000_000


def test_a_file_cut_short_is_refused_and_never_ends_the_process(tmp_path, capsys):
    path = write_published(tmp_path / "a.db", tiles_of(0, 200))
    whole = path.read_bytes()
    for size in (0, 100, 4096, 8192, 9000, len(whole) // 2, len(whole) - 4096):
        path.write_bytes(whole[:size])
        assert run("--lmdb", path, "--mpp", 0.5, "--out", tmp_path / "tiles") == EXIT_BAD_INPUT
        assert "a.db: " in capsys.readouterr().err
    path.write_bytes(b"<html>" * 2000)
    assert run("--lmdb", path, "--mpp", 0.5, "--out", tmp_path / "tiles") == EXIT_BAD_INPUT
    assert "not a readable LMDB file" in capsys.readouterr().err


def test_damage_that_ends_the_reading_process_costs_its_file(tmp_path, monkeypatch, capsys):
    for name in ("bad", "good"):
        write_published(tmp_path / "db" / f"{name}.db", tiles_of(0, 3))
    unpacked = published_store._unpacked

    def ends(value, where):  # as a page that lies outside of the file does
        if "bad.db: tile 2" in where:
            os.kill(os.getpid(), signal.SIGKILL)
        return unpacked(value, where)

    monkeypatch.setattr(published_store, "_unpacked", ends)
    (tmp_path / "tiles").mkdir()
    elsewhere = tmp_path / "tiles" / f".other.tar.{2**22 + 1}.partial"  # being written, on another host
    elsewhere.write_bytes(b"half")
    assert run("--lmdb", tmp_path / "db", "--mpp", 0.5, "--out", tmp_path / "tiles") == EXIT_SOME_FAILED
    assert (
        f"bad.db: reading it ended its process (exit code -{int(signal.SIGKILL)}): damaged" in capsys.readouterr().err
    )
    assert sorted(p.name for p in (tmp_path / "tiles").iterdir()) == [elsewhere.name, "good.json", "good.tar"]


def test_ctrl_c_leaves_nothing_half_written(tmp_path, monkeypatch):
    path, out, parent = write_published(tmp_path / "a.db", tiles_of(0, 3)), tmp_path / "tiles", os.getpid()
    unpacked = published_store._unpacked

    def interrupts(value, where):
        if "tile 2" in where:
            assert list(out.glob(".a.tar.*.partial"))
            time.sleep(0.3)  # the parent waits for the answer by now
            os.kill(parent, signal.SIGINT)
            time.sleep(60)
        return unpacked(value, where)

    monkeypatch.setattr(published_store, "_unpacked", interrupts)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            published_store.import_published(path, out, published_store.ImportSettings(0.5))
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list(out.iterdir())


def test_random_damage_ends_in_a_store_or_in_one_error(tmp_path, capsys):
    path = write_published(tmp_path / "a.db", tiles_of(0, 4))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(12):
        damaged = bytearray(whole)
        for place in rng.integers(0, 16384, 20):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        status = run("--lmdb", path, "--mpp", 0.5, "--out", tmp_path / "tiles", "--restart")
        said = capsys.readouterr().err
        assert status == EXIT_DONE or (status == EXIT_BAD_INPUT and f"{path}: " in said and "Traceback" not in said)
        assert not list((tmp_path / "tiles").glob(".*"))


def test_a_payload_in_a_store_is_not_executed(tmp_path, capsys):
    touched = tmp_path / "touched"
    for number, payload in enumerate(list(payloads(touched))[::5]):  # each kind by itself: see below
        path = tmp_path / f"{number}.db"
        write_published(path, tiles_of(0, 2), changed=[(b"1", lz4.frame.compress(payload))])
        assert run("--lmdb", path, "--mpp", 0.5, "--out", tmp_path / "tiles") == EXIT_BAD_INPUT
        assert "nothing of it was executed" in capsys.readouterr().err
    assert not touched.exists()


def test_flags_and_paths_that_cannot_be(tmp_path, capsys):
    for words, message in (
        (("--lmdb", tmp_path / "no", "--mpp", 0.5), "no such file or folder"),
        (("--lmdb", tmp_path, "--mpp", 0.5), "no *.db in it"),
        (("--lmdb", tmp_path, "--mpp", 352), "--mpp: 352; expected micrometres per pixel"),
        (("--lmdb", tmp_path, "--mpp", 0.5, "--quality", 0), "--quality 0"),
    ):
        assert run(*words, "--out", tmp_path / "tiles") == EXIT_BAD_INPUT and message in capsys.readouterr().err
    for place in ("a", "b"):
        write_published(tmp_path / place / "same.db", tiles_of(0))
    assert run("--lmdb", tmp_path, "--mpp", 0.5, "--out", tmp_path / "tiles") == EXIT_BAD_INPUT
    assert "two files of one slide" in capsys.readouterr().err


# ---- The reader of pickles by itself ----


class Touch:
    """Creates a file when it is unpickled by anything that executes."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def payloads(path):
    """Yield pickles that would make the file `path`, or build an object, in every way there is."""
    name = str(path)
    for protocol in range(6):
        yield pickle.dumps(Touch(path), protocol)  # GLOBAL or STACK_GLOBAL, REDUCE
        yield pickle.dumps((Touch(path), b"x", (1, 1, 3)), protocol)
    yield f"(S'{name}'\nS'w'\nibuiltins\nopen\n.".encode()  # INST
    yield f"(cbuiltins\nopen\nS'{name}'\nS'w'\no.".encode()  # OBJ
    yield f"cbuiltins\nopen\n(S'{name}'\nS'w'\ntR.".encode()
    yield b"\x80\x02cbuiltins\nobject\n)\x81."  # NEWOBJ
    yield b"\x80\x04cbuiltins\nobject\n)}\x92."  # NEWOBJ_EX
    yield b"\x80\x02]}b."  # BUILD
    yield b"\x80\x02\x82\x01."  # EXT1
    yield b"\x80\x02\x83\x01\x00."  # EXT2
    yield b"\x80\x02\x84\x01\x00\x00\x00."  # EXT4
    yield b"Pname\n."  # PERSID
    yield b"\x80\x02K\x01Q."  # BINPERSID
    yield b"\x80\x05\x97."  # NEXT_BUFFER
    yield from (pickle.dumps(value, 5) for value in ({"a": 1}, {1, 2}, 1.5, bytearray(b"x")))


def test_hostile_pickles_are_refused_by_name_and_touch_nothing(tmp_path):
    touched = tmp_path / "touched"
    for payload in payloads(touched):
        with pytest.raises(InputError, match=r"here: .*nothing of it was executed"):
            load_plain(payload, "here")
    pickle.loads(pickle.dumps(Touch(touched))).close()  # the payload is a real one
    assert touched.exists()


def test_every_opcode_but_the_plain_ones_is_refused():
    plain = {
        "STOP",
        "MARK",
        "PROTO",
        "FRAME",
        "MEMOIZE",
        "PUT",
        "BINPUT",
        "LONG_BINPUT",
        "GET",
        "BINGET",
        "LONG_BINGET",
    }
    plain |= {"INT", "BININT", "BININT1", "BININT2", "LONG1", "NONE", "NEWTRUE", "NEWFALSE", "UNICODE", "BINUNICODE"}
    plain |= {"SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "EMPTY_TUPLE", "TUPLE"}
    plain |= {"TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "APPEND", "APPENDS"}
    arguments = {"REDUCE": b"", "GLOBAL": b"os\nsystem\n", "INST": b"os\nsystem\n"}
    for opcode in pickletools.opcodes:
        if opcode.name not in plain:
            argument = arguments.get(opcode.name, b"1\n\0\0\0\0\0\0\0\0\0\0")
            with pytest.raises(InputError):
                load_plain(b"\x80\x02]]" + opcode.code.encode("latin-1") + argument + b".", "here")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "pickle exhausted before seeing STOP"),
        (b"garbage", "newline"),
        (b"\x80\x04\xff.", "opcode"),
        (pickle.dumps(b"x" * 1000)[:500], "expected|remain|exhausted"),
        (b"\x80\x04" + b"\x8e" + struct.pack("<Q", 1 << 62) + b"abc.", "expected|remain"),  # BINBYTES8 of 4 exabytes
        (b"\x80\x04" + b"\x8e" + struct.pack("<Q", (1 << 64) - 1) + b"abc.", "byte"),
        (b"\x80\x03" + b"B" + struct.pack("<I", (1 << 32) - 1) + b"abc.", "expected|remain"),
        (b"\x80\x02K\x01K\x02.", "2 values"),
        (b"\x80\x02K\x01.tail", "4 bytes after its end"),
        (b"\x80\x02" + b"]" * 3 + b".", "3 values"),
        (b"\x80\x02)" + b"\x85" * 100 + b".", "nested deeper than 8"),
        (b"\x80\x02" + b"]" * 50 + b"a" * 49 + b".", "nested deeper than 8"),
        (b"\x80\x02]q\x00" + b"h\x00h\x00\x86q\x00" * 90 + b".", "BINGET of a list"),  # doubles at each step
        (b"\x80\x02h\x07.", "7"),  # nothing in the memo
        (b"\x80\x02(.", "mark"),
        (b"\x80\x02(q\x00.", "mark"),
        (b"\x80\x02t.", "index"),
        (b"\x80\x02K\x01K\x02a.", "APPEND to a int"),
        (b"I" + b"9" * 10_000 + b"\n.", "4300 digits"),
        (b"X\x02\x00\x00\x00\xff\xfe.", "decode"),
    ],
)
def test_bombs_and_truncations_are_bounded(data, message):
    tracemalloc.start()
    with pytest.raises(InputError, match=message):
        load_plain(data, "here")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000_000


def test_memo_places_that_share_one_hash_are_refused():
    with pytest.raises(InputError, match="PUT at byte 1: a place beyond all that are filled"):
        load_plain(b"Np%d\n." % (2**61 - 1), "here")
    assert load_plain(b"Np7\n.", "here") is None


def test_values_and_opcodes_are_counted():
    with pytest.raises(InputError, match="more than 100000 values"):
        load_plain(b"\x80\x02" + b"K\x01" * 120_000 + b".", "here")
    with pytest.raises(InputError, match="more than 400000 opcodes"):
        load_plain(b"\x80\x02" + b"(" * 410_000 + b".", "here")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.binary(max_size=40) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.tuples(inner),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(value=VALUES, protocol=st.integers(3, 5))
def test_plain_values_come_back_as_they_were(value, protocol):
    data = pickle.dumps(value, protocol)
    try:
        found = load_plain(data, "here")
    except InputError as error:  # an object that stands there twice is named the second time
        assert "nested deeper" in str(error) or "BINGET of a" in str(error)
        return
    assert found == value and type(found) is type(value)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60), start=st.sampled_from([b"", b"\x80\x04", b"\x80\x02(", b"\x80\x02](K\x01"]))
def test_any_bytes_give_a_plain_value_or_one_kind_of_error(data, start):
    try:
        value = load_plain(start + data, "here")
    except InputError:
        return
    assert isinstance(value, bytes | str | int | tuple | list | None)
