"""Files that torch.save wrote and that are none of our checkpoints: described first, tensors read when asked for.

Two forms. A zip with <name>/data.pkl, the pickle of the object, and <name>/data/<key>, the numbers of each storage, not
compressed (torch 1.6 and later); or one file after the other: magic number, version, system, object, list of keys, then
for each key a count (int64) and its numbers (before, and _use_new_zipfile_serialization=False). Numbers are little
endian in both, as on every machine that torch runs on.

The pickle is interpreted by common/torch_pickle.py, which makes no object and imports nothing. Nothing is read
that was not asked for: what a file says of sizes is checked against the file before memory is taken for it.
"""

import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from common.errors import InputError
from common.torch_pickle import REBUILT, Stored, describe

MAX_PICKLE = 1 << 28  # bytes: of the object without its numbers. The published code's logs of losses take 9 a number
MAX_DIRECTORY = 1 << 24  # bytes of a zip's list of members; a file has some hundreds, of 70 bytes
END_OF_ZIP = struct.Struct("<4s4H2LH")  # signature, disks, members, bytes and place of their list, comment
MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization.MAGIC_NUMBER
LEGACY_START = b"\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."  # as a pickle, after the two bytes of its version
LEGACY_VERSION = 1001
DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
}
WIDTHS = {kind: dtype.itemsize for kind, dtype in DTYPES.items()} | {
    "torch.ShortStorage": 2,
    "torch.CharStorage": 1,
    "torch.ByteStorage": 1,
    "torch.BoolStorage": 1,
}
# What the pickle of a file that torch.load opens may ask for (common/archives.py).
LOADED = {*WIDTHS, *REBUILT, "torch._utils._rebuild_parameter", "collections.OrderedDict"}
OURS = {"kind", "digest", "state"}  # what a checkpoint of common/checkpoint.py holds
BLOCK = 1 << 24  # bytes read at a time
REMEDY = "copy it again"


@dataclass
class TorchFile:
    """What a file holds (`value`, as torch_pickle.describe returns it), and where each storage's numbers are."""

    path: Path
    value: Any
    members: dict[str, zipfile.ZipInfo] = field(default_factory=dict)  # of a zip: storage key -> member
    places: dict[str, int] = field(default_factory=dict)  # of the older form: storage key -> byte

    def tensors(self, described: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return name -> tensor, contiguous, on the CPU, of name -> Stored.

        InputError, before anything is read, for what is no tensor, for a type that no weight has, for one that reaches
        beyond its storage or a storage beyond the file, and where all together are larger than the file is (each of
        its numbers is one weight's only). Afterwards where a storage's checksum is another one.
        """
        size, total = self.path.stat().st_size, 0
        by_storage: dict[str, list[str]] = {}
        for name, stored in described.items():
            total += self._check(name, stored, size)
            by_storage.setdefault(stored.storage.key, []).append(name)
        if total > size:
            raise InputError(f"{self.path}: tensors of {total} bytes in a file of {size}: damaged; {REMEDY}")
        found = {}
        for names in by_storage.values():
            storage = described[names[0]].storage
            numbers = torch.frombuffer(self._read(storage, names[0]), dtype=DTYPES[storage.kind])
            for name in names:
                stored = described[name]
                part = numbers.as_strided(stored.size, stored.stride, stored.offset)
                found[name] = (
                    part if part.is_contiguous() and part.numel() == len(numbers) else part.clone().contiguous()
                )
        return {name: found[name] for name in described}

    def _check(self, name: str, stored: Any, size: int) -> int:
        """Return a tensor's bytes. InputError where the file cannot hold it."""
        if not isinstance(stored, Stored) or stored.storage.kind not in DTYPES:
            kind = stored.storage.kind if isinstance(stored, Stored) else type(stored).__name__
            raise InputError(f"{self.path}: {name}: a tensor of numbers was expected, found {kind[:60]}; {REMEDY}")
        storage, width = stored.storage, DTYPES[stored.storage.kind].itemsize
        count = math.prod(stored.size)
        last = stored.offset + sum((n - 1) * step for n, step in zip(stored.size, stored.stride, strict=True))
        if not count or last >= storage.numel:
            raise InputError(
                f"{self.path}: {name}: shape {str(stored.size)[:60]} reaches beyond its {storage.numel} numbers, or is "
                f"empty: damaged; {REMEDY}"
            )
        there = None
        if storage.key in self.members:
            there = self.members[storage.key].file_size
        elif storage.key in self.places:
            there = min(storage.numel * width, max(size - self.places[storage.key], 0))
        if there != storage.numel * width or there > size:
            raise InputError(
                f"{self.path}: {name}: {storage.numel * width} bytes of numbers were expected, the file has "
                f"{'none' if there is None else there}: cut short or damaged; {REMEDY}"
            )
        return count * width

    def _read(self, storage: Any, name: str) -> bytearray:
        width = DTYPES[storage.kind].itemsize
        try:
            with open(self.path, "rb") as file:
                if storage.key in self.places:
                    file.seek(self.places[storage.key])
                    data = bytearray(file.read(storage.numel * width))
                else:
                    with zipfile.ZipFile(file) as archive:
                        data = _member(archive, self.members[storage.key], storage.numel * width)
        except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, zlib.error, struct.error) as error:
            raise InputError(f"{self.path}: {name}: {str(error)[:100]}: damaged; {REMEDY}") from None
        if len(data) != storage.numel * width:
            raise InputError(f"{self.path}: {name}: cut short; {REMEDY}")
        return data


def open_torch_file(path: str | Path) -> TorchFile | None:
    """Return what the file describes; None where it is no whole file of torch.save.

    InputError where it is one, but what it describes cannot be (see torch_pickle.describe), or its numbers are big
    endian or compressed.
    """
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(2 + len(LEGACY_START))
        if start[2:] == LEGACY_START:
            return _open_legacy(path)
        if not start.startswith(b"PK") or path.stat().st_size < END_OF_ZIP.size:
            return None
        file.seek(-END_OF_ZIP.size, 2)
        signature, *_, directory, _, comment = END_OF_ZIP.unpack(file.read())
        if signature != b"PK\5\6" or comment or directory > MAX_DIRECTORY:
            return None
        try:
            with zipfile.ZipFile(file) as archive:
                return _open_zip(path, archive)
        except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, zlib.error, struct.error):
            return None  # damaged: whoever asked finds no checkpoint in it either


def is_foreign(path: str | Path) -> bool:
    """Return whether torch.save wrote a dict there that is none of our checkpoints."""
    file = open_torch_file(path)
    return file is not None and isinstance(file.value, dict) and set(file.value) != OURS


def _open_zip(path: Path, archive: zipfile.ZipFile) -> TorchFile | None:
    members = {info.filename: info for info in archive.infolist()}
    roots = [name.removesuffix("/data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        return None
    order = members.get(f"{roots[0]}/byteorder")
    if order is not None and bytes(_member(archive, order, 16)) != b"little":
        raise InputError(f"{path}: its numbers are big endian, little endian was expected; save it again on a PC")
    pickled = bytes(_member(archive, members[f"{roots[0]}/data.pkl"], min(MAX_PICKLE, path.stat().st_size)))
    data = f"{roots[0]}/data/"
    members = {k.removeprefix(data): v for k, v in members.items() if k.startswith(data)}
    return TorchFile(path, describe(pickled, str(path)).value, members)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytearray:
    """Return a member's bytes, checksum checked. ValueError where it is compressed, or larger than `most`."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ValueError(f"{info.filename[:60]} is compressed, which torch.save does not do")
    if info.file_size > most:
        raise ValueError(f"{info.filename[:60]} has {info.file_size} bytes, at most {most} were expected")
    data, at = bytearray(info.file_size), 0
    with archive.open(info) as member:
        while part := member.read(BLOCK):
            data[at : at + len(part)] = part
            at += len(part)
    return data[:at] if at < len(data) else data


def _open_legacy(path: Path) -> TorchFile:
    with open(path, "rb") as file:
        head = file.read(MAX_PICKLE)
    parts, end = [], 0
    for _ in range(5):  # magic number, version, system, object, keys
        parts.append(describe(head, str(path), end))
        end = parts[-1].end
    _, version, system, value, keys = (part.value for part in parts)
    if version != LEGACY_VERSION or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise InputError(f"{path}: of another version of torch.save, or big endian; save it again with torch 2")
    places, known = {}, parts[3].storages
    with open(path, "rb") as file:
        for key in keys if isinstance(keys, list) else []:
            file.seek(end)
            count = int.from_bytes(file.read(8), "little")
            storage = known.get(key) if isinstance(key, str) else None
            if storage is None or count != storage.numel or storage.kind not in WIDTHS:
                raise InputError(f"{path}: storage {str(key)[:40]}: not as described: cut short or damaged; {REMEDY}")
            places[key] = end + 8
            end += 8 + count * WIDTHS[storage.kind]
    return TorchFile(path, value, {}, places)
