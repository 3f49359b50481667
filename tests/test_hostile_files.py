"""Files that others made, of every kind that is opened: nothing in them runs, and none takes more than it has.

The published code's LMDB stores, and the one reader of pickles, have tests of their own (test_published_store.py).
"""

import gzip
import json
import pickle
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from betaVAE_sample import read_shift as read_shift_of_a_model
from common import archives
from common.archives import read_npz, read_torch, refuse_false_hdf5
from common.checkpoint import load_checkpoint, save_checkpoint
from common.config import GANSettings, load_config
from common.errors import InputError
from common.exported import write_exported
from datasets import matrices, polygons, sections, table_cache, text, tiles
from datasets.coordinates import read_coordinates
from datasets.expression import read_expression
from datasets.image_folder import manifest_tiles, read_image
from datasets.image_table import _find_pictures
from datasets.matrices import read_matrix
from datasets.polygons import read_polygons
from datasets.sections import open_picture
from datasets.slides import Slide
from datasets.tiles import TileStore, write_store
from datasets.visium import read_feature_matrix
from figures.results import read_log
from models.classifier import _network_of_file
from models.features import read_state_dict
from sources.feature_cache import FeatureCache
from sources.readers import read_shift
from sources.statistics import StatisticsSource


def opened_picture(path):
    with open_picture(path):
        pass


OPENERS = {  # what is opened, by what, under which name
    "checkpoint": (load_checkpoint, "last.pt"),
    "model": (load_checkpoint, "run.model"),
    "exported model": (load_checkpoint, "model.safetensors"),
    "weights of an extractor": (read_state_dict, "weights.pth"),
    "backbone of the classifier": (lambda path: _network_of_file(str(path)), "weights.pt"),
    "shift, sampled": (lambda path: read_shift_of_a_model(str(path), "digest"), "shift.npz"),
    "shift, swept": (lambda path: read_shift(path, None), "shift.npz"),
    "statistics": (StatisticsSource, "statistics.npz"),
    "table": (read_expression, "table.h5ad"),
    "table as csv": (read_expression, "table.csv"),
    "matrix h5ad": (read_matrix, "matrix.h5ad"),
    "matrix parquet": (read_matrix, "matrix.parquet"),
    "matrix text": (read_matrix, "matrix.tsv"),
    "matrix gzip": (read_matrix, "matrix.gct.gz"),
    "coordinates": (read_coordinates, "slide.h5"),
    "counts of Visium": (read_feature_matrix, "filtered_feature_bc_matrix.h5"),
    "tile store": (TileStore, "slide.json"),
    "config": (lambda path: load_config(GANSettings, path), "config.json"),
    "outlines": (read_polygons, "slide.geojson"),
    "manifest": (manifest_tiles, "manifest.json"),
    "tile": (read_image, "tile.png"),
    "section's image": (opened_picture, "section.jpg"),
    "section's tiff": (opened_picture, "section.tif"),
    "slide": (Slide, "slide.svs"),
}


class Touch:
    """Makes a file when it is unpickled by anything that executes."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def hostile_forms(touched):
    """Yield (form, bytes): the same payload as each library that can pickle would write it."""
    yield "pickle", pickle.dumps(Touch(touched))
    yield "torch", saved_by(torch.save, {"kind": "gan", "digest": "", "state": Touch(touched)})
    yield "old torch", saved_by(torch.save, {"w": Touch(touched)}, _use_new_zipfile_serialization=False)
    yield "npz", saved_by(lambda value, path: np.savez(path, vae_digest=value, mu=value, of=value), pickled(touched))
    yield "npy", saved_by(lambda value, path: np.save(path, value), pickled(touched))
    yield "hdf5", saved_by(write_opaque, np.frombuffer(pickle.dumps(Touch(touched)), np.uint8))


def pickled(touched):
    return np.array([Touch(touched)], object)


def write_opaque(value, path):
    with h5py.File(path, "w") as file:
        for name in ("X", "coords", "matrix"):
            file[name] = np.void(value.tobytes())


def saved_by(save, value, **more):
    save(value, "made", **more)
    path = next(p for p in (Path("made.npz"), Path("made.npy"), Path("made")) if p.exists())
    data = path.read_bytes()
    path.unlink()
    return data


@pytest.mark.parametrize("kind", OPENERS)
def test_code_in_a_file_is_refused_by_name_and_never_run(tmp_path, monkeypatch, kind):
    opener, name = OPENERS[kind]
    monkeypatch.chdir(tmp_path)
    touched = tmp_path / "touched"
    pickle.loads(pickle.dumps(Touch(touched))).close()  # the payload is a real one
    touched.unlink()
    (tmp_path / "slide.tar").write_bytes(b"")
    write_exported(tmp_path / "e", "gan", "", {"w": torch.ones(1)}, "")
    shutil.copy(tmp_path / "e" / "config.json", tmp_path / "config.json")
    forms = dict(hostile_forms(touched))
    assert len(forms) == 6 and not touched.exists()
    for form, data in forms.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            opener(tmp_path / name)
        assert not touched.exists(), form


def test_code_in_a_cache_is_ignored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touched = tmp_path / "touched"
    pd.DataFrame({"wsi_file_name": ["a"], "rna_ENSG1.1": [1.0]}).to_csv("table.csv", index=False)
    cache = FeatureCache(tmp_path / "features")
    cache.save({"of": 1}, {0: np.ones(2, np.float32)})
    assert cache.load({"of": 1}, 2)
    for data in dict(hostile_forms(touched)).values():
        table_cache.cache_path("table.csv").write_bytes(data)
        assert table_cache.load_cache("table.csv") is None
        next((tmp_path / "features").glob("*.npz")).write_bytes(data)
        assert cache.load({"of": 1}, 2) == {}
        Path("log.jsonl").write_bytes(b"%r\n{}\n" % data)
        assert read_log(".") == [{}]
        assert not touched.exists()


# ---- Archives that promise ----


def promise(path, name, size, compressed=None):
    """Change what the directory of a zip says of the size of a record."""
    with zipfile.ZipFile(path, "a") as archive:
        member = archive.getinfo(name)
        member.file_size = size
        member.compress_size = compressed or member.compress_size
        archive._didModify = True


def some_weights(path):
    torch.save({"kind": "gan", "digest": "", "state": {"w": torch.ones(4)}}, path)


@pytest.mark.parametrize("reader", [load_checkpoint, read_state_dict, lambda path: _network_of_file(str(path))])
def test_a_torch_archive_that_promises_terabytes_is_refused(tmp_path, reader):
    path = tmp_path / "a.pt"
    for compressed in (None, 10**13):
        some_weights(path)
        with zipfile.ZipFile(path) as archive:
            record = next(n for n in archive.namelist() if n.endswith("data/0"))
        promise(path, record, 10**13, compressed)
        with pytest.raises(InputError, match=r"a\.pt: .*promises 10,000,000,\d\d\d,\d\d\d bytes and has"):
            reader(path)


def test_a_torch_archive_that_is_compressed_is_refused(tmp_path):
    torch.save({"w": torch.zeros(10**6)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as a,
    ):
        for name in plain.namelist():
            a.writestr(name, plain.read(name))
    assert (tmp_path / "a.pt").stat().st_size < 10_000
    with pytest.raises(InputError, match="not as PyTorch writes it"):
        read_torch(tmp_path / "a.pt")


def nested(depth):
    value = [0]
    for _ in range(depth):
        value = [value]
    return value


def doubled(times):
    value = [0] * 10
    for _ in range(times):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"w": torch.ones(1).expand(10**12)}, r"a tensor of shape \(1000000000000,\) that its data do not fill"),
        ({"w": torch.empty(3, device="meta")}, "asks for torch._utils._rebuild_meta_tensor_no_storage"),
        ({"w": torch.eye(3).to_sparse()}, "asks for torch._utils._rebuild_sparse_tensor, tensors and plain data were"),
        ({"w": bytearray(4)}, "asks for __builtin__.bytearray, tensors and plain data were expected"),
        ({"w": {1, 2}}, "asks for __builtin__.set, tensors and plain data were expected"),
        ({"w": torch.float32}, "asks for torch.float32"),
        ({"w": torch.Size([3])}, "asks for torch.Size"),
        ({("a", "b"): 1}, "a dict's key is a tuple"),
        ({2**61 - 1: 1}, r"a dict's key is a number of 2\^60 or more"),
        (nested(200), "nested deeper than 64"),
        (doubled(9), "more than 10,000,000 values"),
    ],
    ids=["expanded", "meta", "sparse", "bytearray", "set", "dtype", "size", "tuple", "int key", "deep", "doubled"],
)
def test_a_checkpoint_that_would_grow_is_refused(tmp_path, state, words):
    torch.save({"kind": "gan", "digest": "", "state": state}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=rf"a\.pt: .*{words}"):
        load_checkpoint(tmp_path / "a.pt")


def global_(module, name):
    return f"c{module}\n{name}\n".encode()


HUGE = b"\x8a\x05" + (10**10).to_bytes(5, "little")  # the number of bytes that would be made
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n("
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu%btQ"
CALLS = {
    "bytearray": (global_("builtins", "bytearray") + HUGE + b"\x85R", "asks for builtins.bytearray"),
    "bytearray of Python 2": (global_("__builtin__", "bytearray") + HUGE + b"\x85R", "asks for __builtin__.bytearray"),
    "bytearray by NEWOBJ": (global_("builtins", "bytearray") + HUGE + b"\x85\x81", "asks for builtins.bytearray"),
    "a storage": (global_("torch", "FloatStorage") + HUGE + b"\x85R", "asks for torch.FloatStorage"),
    "a storage by NEWOBJ": (global_("torch", "FloatStorage") + HUGE + b"\x85\x81", "asks for torch.FloatStorage"),
    "a tensor class": (global_("torch", "FloatTensor") + HUGE + b"\x85R", "asks for torch.FloatTensor"),
    "a dict of a list": (global_("collections", "OrderedDict") + b"]\x85R", "asks for collections.OrderedDict"),
    "an unknown one": (global_("os", "system") + b")R", "asks for os.system"),
    "a set": (b"\x8f", "asks for builtins.set"),
    "beyond its storage": (
        TENSOR + STORAGE % b"K\x04" + b"K\x00" + HUGE + b"\x85K\x01\x85\x89}tR",
        r"shape \(10000000000,\) reaches beyond its 4 numbers",
    ),
    "an offset": (
        TENSOR + STORAGE % b"K\x04" + HUGE + b"K\x01\x85K\x01\x85\x89}tR",
        r"shape \(1,\) reaches beyond its 4 numbers",
    ),
    "with metadata": (
        TENSOR + STORAGE % b"K\x04" + b"K\x00K\x01\x85K\x01\x85\x89}}tR",
        "a tensor of 7 parts",
    ),
    "a tensor's state": (
        TENSOR + STORAGE % b"K\x04" + b"K\x00K\x01\x85K\x01\x85\x89}tR}b",
        "BUILD of a Stored",
    ),
    "a storage of a function": (
        STORAGE.replace(b"ctorch\nFloatStorage", b"ctorch._utils\n_rebuild_tensor_v2") % b"K\x04",
        "a storage was expected",
    ),
    "a large storage": (
        TENSOR + STORAGE % HUGE + b"K\x00K\x01\x85K\x01\x85\x89}tR",
        r"not the 10,000,000,000 numbers that it should hold|promises 40,000,000,000 bytes of numbers",
    ),
}


def around(path, pickled, old=False):
    """Write the file of torch.save that has this pickle in place of its own."""
    torch.save({"w": torch.ones(4)}, "made", _use_new_zipfile_serialization=not old)
    if old:
        head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
        data = b"".join(pickle.dumps(part, 2) for part in head) + pickled + pickle.dumps(["0"], 2)
        path.write_bytes(data + struct.pack("<q4f", 4, 1, 1, 1, 1))
        return
    with zipfile.ZipFile("made") as made, zipfile.ZipFile(path, "w") as archive:
        for name in made.namelist():
            archive.writestr(zipfile.ZipInfo(name), pickled if name.endswith("/data.pkl") else made.read(name))


@pytest.mark.parametrize("call", CALLS)
def test_what_a_checkpoint_would_have_made_is_refused_before_torch_opens_it(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "load", lambda *args, **more: pytest.fail("torch opened it"))
    opcodes, words = CALLS[call]
    for reader in (load_checkpoint, read_state_dict, lambda path: _network_of_file(str(path))):
        for old in (False, True)[: 1 if reader is load_checkpoint else 2]:
            around(tmp_path / "a.pt", b"\x80\x02}X\x01\x00\x00\x00w" + opcodes + b"s.", old)
            with pytest.raises(InputError, match=rf"a\.pt: .*({words})"):
                reader(tmp_path / "a.pt")


def test_a_pickle_before_the_object_is_looked_through_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *args, **more: pytest.fail("torch opened it"))
    (tmp_path / "a.pt").write_bytes(b"\x80\x02" + CALLS["bytearray"][0] + b".")
    with pytest.raises(InputError, match=r"a\.pt: asks for builtins\.bytearray"):
        read_torch(tmp_path / "a.pt", other_forms=True)


def test_an_archive_behind_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *args, **more: pytest.fail("torch opened it"))
    some_weights(tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()  # torch decides by the first bytes, zipfile by the last
    (tmp_path / "a.pt").write_bytes(b"\x80\x02" + CALLS["bytearray"][0] + b"." + whole)
    for other_forms, words in ((False, "not as PyTorch writes it"), (True, "asks for builtins.bytearray")):
        with pytest.raises(InputError, match=words):
            read_torch(tmp_path / "a.pt", other_forms)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
def test_what_weights_may_hold_is_not_refused(tmp_path, old):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    weights = network.state_dict(keep_vars=True)  # an OrderedDict with attributes, of parameters
    weights |= {"half": torch.ones(2).half(), "mask": torch.ones(2, dtype=torch.bool), "none": torch.ones(0, 3)}
    torch.save(weights, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    found = read_torch(tmp_path / "a.pt", other_forms=True)
    assert list(found) == list(weights) and all(torch.equal(found[k], v) for k, v in weights.items())
    assert found._metadata == weights._metadata


def test_what_a_checkpoint_may_hold_is_not_refused(tmp_path):
    part = torch.arange(12.0).reshape(3, 4)[:, 1]  # a view: its storage is larger
    save_checkpoint(tmp_path / "a.pt", "gan", {"w": part.clone(), "n": [1, 2.5, None, True, ("a", {"b": "c"})]})
    assert torch.equal(load_checkpoint(tmp_path / "a.pt")[0]["w"], part)


def npz_with(path, header_shape, data=b"", name="mu.npy", fortran=False):
    with zipfile.ZipFile(path, "w") as archive, archive.open(name, "w") as file:
        header = {"descr": "<f8", "fortran_order": fortran, "shape": header_shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(data)


NPZ = {
    "shift, sampled": lambda path: read_shift_of_a_model(str(path), "digest"),
    "shift, swept": lambda path: read_shift(path, None),
    "statistics": StatisticsSource,
}


@pytest.mark.parametrize("kind", NPZ)
def test_an_npz_that_promises_is_refused(tmp_path, kind, monkeypatch):
    path = tmp_path / "a.npz"
    npz_with(path, (10**13,))
    with pytest.raises(InputError, match=r"a\.npz: .*a shape of \(10000000000000,\) in \d+ bytes"):
        NPZ[kind](path)
    npz_with(path, (2,), bytes(16))
    promise(path, "mu.npy", 10**13)
    with pytest.raises(InputError, match="promises 10,000,000,000,000 bytes, more than this machine has free"):
        NPZ[kind](path)
    promise(path, "mu.npy", 10**6)
    with pytest.raises(InputError, match=r"1,000,000 bytes of \d+ cannot be"):
        NPZ[kind](path)
    np.savez_compressed(path, mu=np.zeros(10**6))  # true, and small; but what if it were not?
    monkeypatch.setattr(archives, "free_memory", lambda: 1e6)
    with pytest.raises(InputError, match="more than this machine has free"):
        NPZ[kind](path)


def test_an_npz_is_read_as_numpy_reads_it(tmp_path):
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "c": np.str_("word"),
    }
    arrays |= {"d": np.zeros((0, 3), np.float32), "e": np.int64(7), "f": np.array(["x", "yz"])}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        found = read_npz(tmp_path / "a.npz")
        with np.load(tmp_path / "a.npz") as theirs:
            assert found.keys() == set(theirs.files)
            for name in theirs.files:
                assert np.array_equal(found[name], theirs[name]) and found[name].dtype == theirs[name].dtype
                assert found[name].flags.writeable
    data = bytearray((tmp_path / "a.npz").read_bytes())
    np.savez(tmp_path / "a.npz", a=arrays["a"])
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[data.index(arrays["a"].tobytes()) + 3] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        read_npz(tmp_path / "a.npz")
    npz_with(tmp_path / "a.npz", (3,), bytes(16))
    with pytest.raises(ValueError, match="16 bytes of data, 24 expected"):
        read_npz(tmp_path / "a.npz")


HDF5 = {
    "table": (read_expression, "a.h5ad"),
    "matrix": (read_matrix, "a.h5ad"),
    "coordinates": (read_coordinates, "a.h5"),
    "Visium": (read_feature_matrix, "a.h5"),
}


@pytest.mark.parametrize("kind", HDF5)
def test_hdf5_that_promises_is_refused(tmp_path, kind, monkeypatch):
    reader, name = HDF5[kind]
    path, outside = tmp_path / name, tmp_path / "outside.bin"
    outside.write_bytes(bytes(800))

    def absurd(file, where):
        file.create_dataset(where, (10**6, 10**6), "f4", chunks=(100, 100), fillvalue=1)

    def linked(file, where):
        file[where] = h5py.ExternalLink("other.h5", "/X")

    def external(file, where):
        file.create_dataset(where, (100,), "f8", external=[(str(outside), 0, 800)])

    def deep(file, where):
        for _ in range(100):
            file = file.create_group("g")

    def itself(file, where):
        file["g/g"] = file["/"]

    for make, words in {
        absurd: "promises 4,000,000,000,000 bytes, 0 are stored",
        linked: "a link to elsewhere",
        external: "its data are in other files",
        deep: "nested deeper than 64",
        itself: "nested deeper than 64",
    }.items():
        for where in ("X", "coords", "matrix/data"):
            with h5py.File(path, "w") as file:
                make(file, where)
            with pytest.raises(InputError, match=rf"{name}: .*{words}"):
                reader(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("X", (10**6,), "f8", compression="gzip", data=np.zeros(10**6))
    refuse_false_hdf5(path)
    monkeypatch.setattr(archives, "free_memory", lambda: 1e6)
    with pytest.raises(InputError, match="promises 8,000,000 bytes, more than this machine has free"):
        reader(path)


def test_visium_counts_of_an_absurd_shape_are_refused_before_they_are_turned(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("matrix")
        group["shape"], group["data"], group["indices"] = [10**13, 1], np.ones(1), np.zeros(1, int)
        group["indptr"], group["barcodes"] = np.array([0, 1]), [b"A"]
        group["features/id"], group["features/name"] = [b"g"], [b"g"]
    with pytest.raises(InputError, match=r"shape \(10000000000000, 1\), 1 features"):
        read_feature_matrix(tmp_path / "a.h5")


def test_a_parquet_of_more_than_fits_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table({"gene": ["ENSG1"] * 100_000, "s": np.ones(100_000)}), path)
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(matrices, "free_memory", lambda: 1e5)
    with pytest.raises(InputError, match=r"a\.parquet: 800,000 bytes of numbers, more than this machine has free"):
        read_matrix(path)


@pytest.mark.parametrize("kind", ["table as csv", "matrix gzip"])
def test_a_line_without_an_end_in_a_small_gzip_file_is_refused(tmp_path, monkeypatch, kind):
    reader, name = OPENERS[kind]
    monkeypatch.setattr(text, "LONGEST_LINE", 10**6)
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"wsi_file_name,rna_ENSG00000000001.1\n" + b"a" * 10**8))
    assert path.stat().st_size < 200_000
    with pytest.raises(InputError, match=r"a line of more than 1,000,000 bytes"):
        reader(path)


# ---- Tile stores ----


def resealed(path, **changes):
    """Change a store's description and seal it again, as an attacker can."""
    content = json.loads(path.read_text())
    content.pop("seal")
    content |= {key: change(content[key]) for key, change in changes.items()}
    path.write_text(json.dumps(content | {"seal": tiles._seal(content)}))


def span(offset=None, length=None):
    def change(rows):
        rows[1][3] = rows[1][3] if offset is None else offset
        rows[1][4] = rows[1][4] if length is None else length
        return rows

    return change


@pytest.mark.parametrize(
    "changes",
    [
        {"tiles": span(offset=10**15)},
        {"tiles": span(length=10**15)},
        {"tiles": span(offset=10**30)},
        {"tiles": span(offset=-5)},
        {"tiles": span(length=-5)},
        {"tiles": span(offset=2**63 - 1, length=2**63 - 1)},
        {"tiles": lambda rows: 7},
        {"tiles": lambda rows: [row[:4] for row in rows]},
        {"tiles": lambda rows: [["x"] * 7 for row in rows]},
        {"tile_size": lambda _: 10**9},
        {"tile_size": lambda _: "16"},
        {"mpp": lambda _: None},
        {"mpp": lambda _: -1},
        {"slide": lambda _: ["a"]},
        {"columns": lambda _: [*tiles.COLUMNS, "more"]},
    ],
)
def test_a_store_whose_description_is_absurd_is_refused(tmp_path, changes):
    tile = np.zeros((16, 16, 3), np.uint8)
    path = write_store(tmp_path, "a", [(0, 0, 1.0, tile)] * 3, mpp=0.5, tile_size=16)
    resealed(path)
    assert TileStore(path).read(1).shape == (16, 16, 3)
    resealed(path, **changes)
    with pytest.raises(InputError, match=r"a\.json: describes no tiles"):
        TileStore(path)


def test_a_store_nested_too_deeply_is_refused(tmp_path):
    path = write_store(tmp_path, "a", [(0, 0, 1.0, np.zeros((16, 16, 3), np.uint8))], mpp=0.5, tile_size=16)
    path.write_text(path.read_text().replace('"extra": {}', f'"extra": {"[" * 900}{"]" * 900}'))
    with pytest.raises(InputError, match=r"a\.json: (altered|nested)"):
        TileStore(path)
    path.write_text(path.read_text().replace("[" * 900, "[" * 100_000))
    with pytest.raises(InputError, match=r"a\.json: nested too deeply; delete it"):
        TileStore(path)


# ---- Pictures ----


def png_of(width, height):
    """A PNG that promises so many pixels and has none."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_that_promises_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(png_of(60_000, 60_000))
    with pytest.raises(InputError, match=r"a\.png: not a readable JPEG or PNG .*3600000000 pixels"):
        read_image(path)
    with pytest.raises(InputError, match=r"row 2: .*a\.png is not a readable"):
        _find_pictures(Path("t.csv"), ["a.png"], tmp_path)
    monkeypatch.setattr(sections, "free_memory", lambda: 1e9)
    with pytest.raises(InputError, match=r"a\.png: 60000 x 60000 pixels need 14,400,000,000 bytes, more than"):
        opened_picture(path)
    assert Image.MAX_IMAGE_PIXELS


def test_a_tile_of_another_size_than_its_store_says_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    picture = png_of(9_000, 9_000)
    monkeypatch.setattr(tiles, "encode_image", lambda *_: picture)
    path = write_store(tmp_path, "a", [(0, 0, 1.0, np.zeros((16, 16, 3), np.uint8))], mpp=0.5, tile_size=16, fmt="png")
    with pytest.raises(InputError, match=r"a\.tar: tile 0: a picture of \(9000, 9000\) pixels, 16 x 16 expected"):
        TileStore(path).read(0)


# ---- JSON ----


@pytest.mark.parametrize("kind", ["tile store", "config", "outlines", "manifest"])
def test_json_that_is_nested_or_numbered_without_end_is_refused(tmp_path, kind):
    opener, name = OPENERS[kind]
    for content in ("[" * 100_000, '{"a":' * 100_000, "9" * 100_000):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=rf"{name}: .*(nested too deeply|integer string|4300)"):
            opener(tmp_path / name)


def test_outlines_nested_too_deeply_are_refused(tmp_path, monkeypatch):
    shape = {"type": "Point"}
    for _ in range(2000):
        shape = {"type": "GeometryCollection", "geometries": [shape]}
    monkeypatch.setattr(polygons, "read_json", lambda path: shape)  # where JSON's own limit is higher than Python's
    with pytest.raises(InputError, match=r"a\.geojson: geometries nested too deeply"):
        read_polygons("a.geojson")


def test_no_other_kind_of_file_is_opened():
    """A new reader must come here: these are the functions by which files are opened, and where."""
    root = Path(archives.__file__).parent.parent
    places = {
        "torch.load(": {"common/archives.py"},
        "np.load(": set(),
        "h5py.File(": {"common/archives.py", "datasets/coordinates.py", "datasets/h5ad.py", "datasets/visium.py"},
        "anndata.read": {"datasets/h5ad.py"},
        "Image.open(": {"datasets/tiles.py", "datasets/image_table.py", "datasets/sections.py", "quiz/pictures.py"},
        "lmdb.open(": {"datasets/published_store.py"},
        "ParquetFile(": {"datasets/matrices.py"},
        "OpenSlide(": {"datasets/slides.py"},
        "TiffFile(": {"datasets/svs.py"},
        "ZipFile(": {"common/archives.py", "common/checkpoint.py", "common/torch_files.py"},
        "= load_file(": {"common/exported.py"},
        "extractall(": set(),
    }
    sources = [p for p in root.rglob("*.py") if p.parts[len(root.parts)] not in ("tests", "benchmarks", ".venv")]
    for call, expected in places.items():
        assert {str(p.relative_to(root)) for p in sources if call in p.read_text()} == expected, call
    assert len(sources) > 100
