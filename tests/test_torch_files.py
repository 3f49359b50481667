"""Files of torch.save, read without torch's unpickler: what is there comes over, and nothing of it can do anything."""

import io
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from common.torch_files import TorchFile, open_torch_file
from common.torch_pickle import Opaque, Skipped, Stored, describe
from models.published import open_published, vae_inside

OLD = {"_use_new_zipfile_serialization": False}


def write_zip(path, pickled, storages=None, compression=zipfile.ZIP_STORED, **more):
    """Write what torch.save would have written around this pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        for name, data in more.items():
            archive.writestr(f"archive/{name}", data)
    return path


class Persistent(pickle.Pickler):
    """Writes `Ref` as a persistent id, as torch.save does storages."""

    def persistent_id(self, value):
        return value.value if isinstance(value, Ref) else None


class Ref:
    def __init__(self, value):
        self.value = value


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def pickled(value, protocol=2):
    buffer = io.BytesIO()
    Persistent(buffer, protocol).dump(value)
    return buffer.getvalue()


def storage(key="0", numel=6, kind=torch.FloatStorage, **parts):
    return Ref(("storage", kind, key, "cpu", numel, *parts.get("more", ())))


def tensor(size, stride, offset=0, **parts):
    return Call(torch._utils._rebuild_tensor_v2, storage(**parts), offset, size, stride, False, {})


def peak_of(function):
    tracemalloc.start()
    try:
        return function(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# ---- What is there comes over ----


@pytest.mark.parametrize("how", [{}, OLD, {"pickle_protocol": 4}], ids=["zip", "old", "protocol 4"])
def test_tensors_come_over_exactly(tmp_path, how):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    made = {
        "plain": base.clone(),
        "transposed": base.t(),
        "view": base[1:3, ::2],
        "count": torch.tensor(7),
        "half": base.half(),
        "bf16": base.bfloat16() / 3,
        "double": base.double() / 7,
        "parameter": torch.nn.Parameter(base * 2),
        "expanded": base[:1].expand(3, 6),
        "int": base.int(),
    }
    torch.save(
        {"weights": made, "epoch": 3, "name": "x", "bool": torch.tensor([True]), "rate": 0.5}, tmp_path / "a", **how
    )
    file = open_torch_file(tmp_path / "a")
    assert file.value["epoch"] == 3 and file.value["name"] == "x" and file.value["rate"] == 0.5
    found = file.tensors(file.value["weights"])
    assert list(found) == list(made)
    for name, value in made.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value.detach()), name
        assert found[name].is_contiguous()
    with pytest.raises(InputError, match=r"bool: a tensor of numbers was expected, found torch.BoolStorage"):
        file.tensors({"bool": file.value["bool"]})
    with pytest.raises(InputError, match="epoch: a tensor of numbers was expected, found int"):
        file.tensors({"epoch": 3})


def test_objects_are_described_and_not_made(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save({"network": module, "device": torch.device("cpu"), "type": torch.float32, "set": {1, 2}}, tmp_path / "a")
    value = open_torch_file(tmp_path / "a").value
    network = value["network"]
    assert isinstance(network, Opaque) and network.name == "torch.nn.modules.container.Sequential"
    linear = network.state["_modules"]["0"]
    assert linear.name == "torch.nn.modules.linear.Linear" and linear.state["_parameters"]["weight"].size == (2, 3)
    assert isinstance(value["set"], Opaque) and isinstance(value["device"], Opaque)


def test_what_is_not_asked_for_is_not_read(tmp_path):
    torch.save(
        {"small": torch.ones(3), "huge": torch.zeros(20_000_000), "log": [k / 3 for k in range(300_000)]},
        tmp_path / "a",
    )
    file, peak = peak_of(lambda: open_torch_file(tmp_path / "a"))
    assert peak < 12_000_000  # the pickle of the log, 2.7 MB, and a copy; the numbers would take 90 MB
    assert {type(x) for x in file.value["log"]} == {Skipped} and sum(x.count for x in file.value["log"]) == 300_000
    found, peak = peak_of(lambda: file.tensors({"small": file.value["small"]}))
    assert peak < 1_000_000 and torch.equal(found["small"], torch.ones(3))


def test_a_run_of_numbers_is_skipped_and_a_few_are_kept():
    assert describe(pickle.dumps([0.5, 1.5, -2.0], 2), "here").value == [0.5, 1.5, -2.0]
    pairs = {f"k{i}": i / 3 for i in range(500)}
    assert describe(pickle.dumps(pairs, 2), "here").value == pairs


@pytest.mark.parametrize("data", [b"", b"PK", b"hello" * 100, b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(200)])
def test_other_files_are_none_of_torch(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    assert open_torch_file(tmp_path / "a") is None and open_published(tmp_path / "a") is None


# ---- Nothing is executed ----


class Touch:
    """Would make a file when it is set up."""

    def __init__(self, path):
        self.path = path

    def __setstate__(self, state):
        open(state["path"], "w").close()


def payloads(path):
    """Yield pickles that would make the file `path` in every way there is."""
    import posix

    calls = (
        (os.system, f"touch {path}"),
        (posix.system, f"touch {path}"),
        (eval, f"open({str(path)!r}, 'w')"),
        (exec, f"open({str(path)!r}, 'w')"),
        (open, str(path), "w"),
        (getattr, os, "system"),
    )
    for function, *arguments in calls[:5]:
        for protocol in (0, 1, 2, 4, 5):
            call = Call(function, *arguments)
            yield from (pickle.dumps(value, protocol) for value in (call, {"generator": {"model.0.0.weight": call}}))
        yield pickle.dumps({"loss_objects": {"a": Call(Call, state={"x": Call(function, *arguments)})}}, 2)
    yield from (pickle.dumps({"x": Touch(path)}, protocol) for protocol in (2, 4))  # BUILD calls __setstate__
    word = str(path)
    yield f"(S'touch {word}'\nios\nsystem\n.".encode()  # INST
    yield f"(cos\nsystem\nS'touch {word}'\no.".encode()  # OBJ
    yield f"\x80\x02cos\nsystem\nU{chr(len(word) + 6)}touch {word}\x85\x81.".encode("latin-1")  # NEWOBJ
    yield b"\x80\x04cbuiltins\nopen\n)}\x92."  # NEWOBJ_EX
    yield from (b"\x80\x02cthis\ns\n.", b"\x80\x04\x8c\x04this\x8c\x01s\x93.")  # a module that says something
    yield b"\x80\x02\x82\x01." + b"\x80\x02\x83\x01\x00."  # EXT1, EXT2
    yield b"\x80\x02\x84\x01\x00\x00\x00."  # EXT4
    yield f"P{word}\n.".encode()  # PERSID
    yield f"\x80\x02(U\x07storageU{chr(len(word))}{word}tQ.".encode("latin-1")  # BINPERSID


def test_hostile_files_touch_nothing_and_import_nothing(tmp_path):
    touched, count = tmp_path / "touched", 0
    for payload in payloads(touched):
        for write in (
            lambda p, data: write_zip(p, data, {"0": bytes(24)}),
            lambda p, data: p.write_bytes(old_form(data)),
        ):
            write(tmp_path / "a.model", payload)
            try:
                if published := open_published(tmp_path / "a.model"):
                    published.gan()
            except InputError as error:
                assert str(tmp_path) in str(error) and "\n" not in str(error)
            count += 1
    assert count > 100 and not touched.exists()
    assert "this" not in sys.modules
    pickle.loads(pickle.dumps(Call(open, str(touched), "w"))).close()
    assert touched.exists()  # the payloads are real ones


def old_form(data, keys=("0",), numbers=6):
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    parts = [*(pickle.dumps(x, 2) for x in head), data, pickle.dumps(list(keys), 2)]
    return b"".join(parts) + struct.pack("<q", numbers) + bytes(4 * numbers)


@pytest.mark.parametrize(
    "identifier",
    [
        "storage",
        (),
        ("storage",),
        ("storage", torch.FloatStorage, "0", "cpu"),
        ("storage", "torch.FloatStorage", "0", "cpu", 6),
        ("storage", torch.FloatStorage, 0, "cpu", 6),
        ("storage", torch.FloatStorage, "0", "cpu", -6),
        ("storage", torch.FloatStorage, "0", "cpu", 6.0),
        ("storage", torch.FloatStorage, "0", "cpu", True),
        ("storage", torch.FloatStorage, "0", "cpu", 2**70),
        ("storage", torch.FloatStorage, "0", "cpu", 6, ("view", 0, 3)),
        ("storage", torch.FloatStorage, "0", "cpu", 6, None, None),
        ("file", torch.FloatStorage, "/etc/passwd", "cpu", 6),
        ("module", "os", "x", "y"),
    ],
    ids=str,
)
def test_odd_references_are_refused(tmp_path, identifier):
    write_zip(tmp_path / "a", pickled({"x": Ref(identifier)}))
    with pytest.raises(InputError, match=r"persistent id at byte .*a storage was expected.*nothing of it was executed"):
        open_torch_file(tmp_path / "a")


def test_values_in_themselves_and_doubled_values_end(tmp_path):
    loop, deep = [], ()
    loop.append(loop)
    for _ in range(90):
        deep = (deep, deep)  # 2^90 when walked through
    write_zip(tmp_path / "a", pickle.dumps({"loss_objects": {"loop": loop, "deep": deep}}, 2))
    losses = open_torch_file(tmp_path / "a").value["loss_objects"]
    assert vae_inside(losses, "here") == (None, []) and losses["loop"][0] is losses["loop"]
    key = b")q\x010" + b"h\x01h\x01\x86q\x010" * 90 + b"h\x01"  # such a tuple, of which a hash would be taken
    assert describe(b"\x80\x02}" + key + b"K\x02sK\x01K\x02s.", "here").value == {1: 2}
    module = Opaque("m", {"_modules": {}})
    top = module
    for _ in range(15):  # each part twice: 2^15 paths, more parts: more
        top = Opaque("m", {"_modules": {str(k): top for k in range(50)}})
    assert vae_inside({"loss": Opaque("L", {"_modules": {"betavae": top}})}, "here")[0] == {}


@settings(max_examples=300, deadline=None)
@given(
    data=st.binary(max_size=80), start=st.sampled_from([b"", b"\x80\x02", b"\x80\x02}(", b"\x80\x02ctorch\nx\n(K\x01"])
)
def test_any_bytes_are_described_or_refused(data, start):
    try:
        describe(start + data, "here")
    except InputError as error:
        assert str(error).startswith("here: ")


def test_opcodes_that_torch_does_not_write_are_refused():
    for opcode in (b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", b"\x97", b"\x98", b"2", b"Pname\n"):
        with pytest.raises(InputError, match=r"here: .*opcode"):
            describe(b"\x80\x02K\x01" + opcode + b".", "here")
    for data in (b"\x80\x02K\x01}b.", b"\x80\x02]}b.", b"\x80\x02K\x01K\x02\x81.", b"\x80\x02K\x01)R.", b"\x80\x02Na."):
        with pytest.raises(InputError, match="here: "):
            describe(data, "here")


# ---- Sizes are checked before memory is taken ----

HUGE = 2**42  # numbers: 16 TiB
BAD = {
    "beyond the storage": (tensor((2, 4), (4, 1)), "reaches beyond its 6 numbers"),
    "offset": (tensor((1,), (1,), 6), "reaches beyond its 6 numbers"),
    "stride": (tensor((2, 2), (HUGE, 1)), "reaches beyond its 6 numbers"),
    "strides of one number": (tensor((2**20, 2**20), (0, 0)), "tensors of 4398046511104 bytes in a file of"),
    "terabytes": (tensor((HUGE,), (1,), numel=HUGE), "bytes of numbers were expected, the file has 24"),
    "another size": (tensor((2,), (1,), numel=5), "20 bytes of numbers were expected, the file has 24"),
    "another type": (
        tensor((2,), (1,), kind=torch.DoubleStorage),
        "48 bytes of numbers were expected, the file has 24",
    ),
    "no such storage": (tensor((2,), (1,), key="9"), "24 bytes of numbers were expected, the file has none"),
    "a path": (tensor((2,), (1,), key="../data.pkl"), "bytes of numbers were expected, the file has none"),
    "empty": (tensor((0, HUGE), (1, 1)), "or is empty"),
    "opaque": (Call(os.getpid), "a tensor of numbers was expected, found Opaque"),
}


@pytest.mark.parametrize("fault", BAD)
def test_sizes_that_cannot_be_are_refused_without_memory(tmp_path, fault):
    value, message = BAD[fault]
    write_zip(tmp_path / "a", pickled({"x": value}), {"0": bytes(24)})
    file = open_torch_file(tmp_path / "a")

    def read():
        with pytest.raises(InputError, match=message):
            file.tensors(file.value)

    assert peak_of(read)[1] < 1_000_000


@pytest.mark.parametrize(
    "value",
    [
        tensor((-1,), (1,)),
        tensor((2,), (-1,)),
        tensor((2, 3), (1,)),
        tensor((2**70,), (1,)),
        tensor([2, 3], [3, 1]),
        tensor((2,), (1,), -1),
        tensor((1,) * 9, (1,) * 9),
        tensor((2.0,), (1,)),
        Call(torch._utils._rebuild_tensor_v2, 1, 0, (1,), (1,), False, {}),
        [tensor((2,), (1,)), tensor((2,), (1,), numel=7)],
    ],
)
def test_tensors_that_cannot_be_are_refused(tmp_path, value):
    write_zip(tmp_path / "a", pickled({"x": value}), {"0": bytes(24)})
    with pytest.raises(InputError, match=r"a tensor without storage|storage 0: two types or sizes"):
        open_torch_file(tmp_path / "a")


def test_many_tensors_of_the_same_numbers_are_refused(tmp_path):
    value = {f"x{k}": tensor((1000,), (1,), numel=1000) for k in range(100)}
    write_zip(tmp_path / "a", pickled(value), {"0": bytes(4000)})
    file = open_torch_file(tmp_path / "a")
    with pytest.raises(InputError, match="tensors of 400000 bytes in a file of"):
        file.tensors(file.value)


def test_zip_bombs_are_not_unpacked(tmp_path):
    write_zip(tmp_path / "a", bytes(40_000_000), compression=zipfile.ZIP_DEFLATED)
    found, peak = peak_of(lambda: open_torch_file(tmp_path / "a"))
    assert found is None and peak < 5_000_000
    with zipfile.ZipFile(tmp_path / "b", "w") as archive:
        archive.writestr("archive/data.pkl", pickled({"x": tensor((10_000_000,), (1,), numel=10_000_000)}))
        archive.writestr("archive/data/0", bytes(40_000_000), zipfile.ZIP_DEFLATED)
    file = open_torch_file(tmp_path / "b")

    def read():
        with pytest.raises(InputError, match="40000000 bytes"):
            file.tensors(file.value)

    assert peak_of(read)[1] < 5_000_000


def test_sizes_that_a_zip_only_claims_take_no_memory(tmp_path):
    for number, (data, at) in enumerate(((pickled({}), 0), (pickled({"x": tensor((HUGE,), (1,), numel=HUGE)}), 1))):
        path = tmp_path / str(number)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/data/0", bytes(24))
            archive.infolist()[at].file_size = archive.infolist()[at].compress_size = (4 * HUGE, 1 << 27)[at == 0]

        def read(path=path):
            if file := open_torch_file(path):
                file.tensors(file.value)
                return "read"
            return "none of torch"

        tracemalloc.start()
        if at:
            with pytest.raises(InputError, match="bytes of numbers were expected, the file has"):
                read()
        else:
            assert read() == "none of torch"
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


def test_a_list_of_members_that_is_too_long_is_not_read(tmp_path, monkeypatch):
    write_zip(tmp_path / "a", pickled({}), {str(k): b"1234" for k in range(100)})
    assert len(open_torch_file(tmp_path / "a").members) == 100
    monkeypatch.setattr("common.torch_files.MAX_DIRECTORY", 5000)
    assert open_torch_file(tmp_path / "a") is None
    monkeypatch.undo()
    data = bytearray((tmp_path / "a").read_bytes())
    data[-10:-6] = struct.pack("<L", 1 << 31)  # bytes of the list
    (tmp_path / "a").write_bytes(data)
    assert open_torch_file(tmp_path / "a") is None


def number(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)  # LONG1


def text(value):
    return b"X" + struct.pack("<L", len(value)) + value.encode()


@pytest.mark.parametrize(
    "opcodes",
    [
        text("a" * 233) + b"q\x00h\x00\x93",
        b"c" + b"a" * 150 + b"\n" + b"b" * 150 + b"\n",
        b"(i" + b"a" * 150 + b"\n" + b"b" * 150 + b"\n",
    ],
    ids=["STACK_GLOBAL", "GLOBAL", "INST"],
)
def test_long_names_are_refused(opcodes):
    with pytest.raises(InputError, match=r"here: a name of \d+ characters"):
        describe(b"\x80\x04" + opcodes + b".", "here")


def test_two_long_texts_are_not_joined_over_and_over():
    data = b"\x80\x04(" + text("a" * 10**6) + b"q\x00" + b"h\x00h\x00\x93" * 100 + b"l."

    def read():
        with pytest.raises(InputError, match="a name of 1000000 characters"):
            describe(data, "here")

    assert peak_of(read)[1] < 10_000_000  # joined, they take 200 MB


def test_a_tensor_has_few_dimensions(monkeypatch):
    looked = []
    monkeypatch.setattr("common.torch_pickle._is_count", lambda value: looked.append(value) or True)
    with pytest.raises(InputError, match="a tensor without storage, size and stride"):
        describe(pickled(tensor((1,) * 1000, (1,) * 1000)), "here")
    assert len(looked) < 20
    assert describe(pickled(tensor((1,) * 8, (1,) * 8)), "here").value.size == (1,) * 8


@pytest.mark.parametrize("value", [2**60, -(2**60), 2**61 - 1, 3 * (2**61 - 1)])
def test_keys_that_share_one_hash_are_refused(value):
    for data in (b"}" + number(value) + b"Ns", b"(" + number(value) + b"Nd", b"}(" + number(value) + b"Nu"):
        with pytest.raises(InputError, match=r"here: a dict's key is a number of 2\^60 or more"):
            describe(b"\x80\x02" + data + b".", "here")
    assert describe(b"\x80\x02}" + number(2**60 - 1) + b"Ns.", "here").value == {2**60 - 1: None}


def test_long_keys_are_refused():
    with pytest.raises(InputError, match="a dict's key has 1001 characters"):
        describe(b"\x80\x02}" + text("a" * 1001) + b"Ns.", "here")
    with pytest.raises(InputError, match="a name of 201 characters"):
        describe(pickled(storage("0" * 201)), "here")


def test_memo_places_that_share_one_hash_are_refused():
    for place in (2**61 - 1, 4_000_001, -1):
        with pytest.raises(InputError, match="PUT at byte 3: a place beyond all that are filled"):
            describe(b"\x80\x02Np%d\n." % place, "here")
    assert describe(b"\x80\x02Np4000000\n.", "here").value is None


def test_modules_that_share_their_names_do_not_multiply(tmp_path):
    shared = {"_parameters": {f"p{k}": 1 for k in range(200)}}
    inside = Opaque("betaVAE", {"_modules": {f"m{k}": Opaque("L", shared) for k in range(200)}})
    with pytest.raises(InputError, match=r"here: its beta-VAE has more than 10,000 parts"):
        vae_inside({"l": Opaque("W", {"_modules": {"betavae": inside}})}, "here")
    few = Opaque("betaVAE", {"_modules": {f"m{k}": Opaque("L", shared) for k in range(20)}})
    assert len(vae_inside({"l": Opaque("W", {"_modules": {"betavae": few}})}, "here")[0]) == 4000


def test_long_names_of_modules_do_not_multiply():
    module = Opaque("L", {"_parameters": {f"p{k}": 1 for k in range(100)}})
    for _ in range(10):
        module = Opaque("L", {"_modules": {"a" * 999: module}})
    found, _ = vae_inside({"l": Opaque("W", {"_modules": {"betavae": module}})}, "here")
    assert found == {}


def test_keys_that_are_no_text_are_no_names(tmp_path):
    torch.save({10**6000: 1, "b": torch.zeros(2)}, tmp_path / "a")
    with pytest.raises(InputError, match=r"a dict's key is a number of 2\^60 or more"):
        open_published(tmp_path / "a")
    torch.save({7: 1, "b": torch.zeros(2)}, tmp_path / "a")
    assert open_published(tmp_path / "a") is None


def test_a_long_pickle_is_stopped(monkeypatch):
    monkeypatch.setattr("common.torch_pickle._Describer.most", 1000)
    with pytest.raises(InputError, match="more than 1000 values"):
        describe(b"\x80\x02(" + b"K\x01" * 1100 + b"t.", "here")
    with pytest.raises(InputError, match="more than 4000 opcodes"):
        describe(b"\x80\x02" + b"(" * 4100 + b".", "here")


def test_big_endian_numbers_and_other_versions_are_refused(tmp_path):
    write_zip(tmp_path / "a", pickled({}), byteorder="big")
    with pytest.raises(InputError, match="big endian"):
        open_torch_file(tmp_path / "a")
    (tmp_path / "b").write_bytes(old_form(pickled({})).replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
    with pytest.raises(InputError, match="big endian"):
        open_torch_file(tmp_path / "b")


@pytest.mark.parametrize("how", [{}, OLD], ids=["zip", "old"])
def test_cut_and_damaged_files_give_one_error(tmp_path, how):
    torch.save({"x": torch.arange(600.0), "y": torch.ones(5)}, tmp_path / "whole", **how)
    whole = (tmp_path / "whole").read_bytes()
    read = 0
    for size in range(0, len(whole), 53):
        (tmp_path / "a").write_bytes(whole[:size])
        try:
            if file := open_torch_file(tmp_path / "a"):
                file.tensors(file.value)
                read += 1
        except InputError as error:
            assert str(tmp_path / "a") in str(error)
    assert read == 0
    for place in range(0, len(whole), 37):
        (tmp_path / "a").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            file = open_torch_file(tmp_path / "a")
            file and file.tensors({k: v for k, v in file.value.items() if isinstance(v, Stored)})
        except InputError as error:
            assert str(tmp_path / "a") in str(error)


def test_a_changed_number_fails_its_checksum(tmp_path):
    torch.save({"x": torch.arange(600.0)}, tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    place = data.index(struct.pack("<3f", 100, 101, 102))
    (tmp_path / "a").write_bytes(data[:place] + b"\1" + data[place + 1 :])
    file = open_torch_file(tmp_path / "a")
    assert isinstance(file, TorchFile)
    with pytest.raises(InputError, match=r"x: Bad CRC-32.*damaged"):
        file.tensors(file.value)
