"""Files that are archives, opened only where what they promise can be true: PyTorch's, NumPy's .npz, HDF5.

A directory of a few bytes may promise terabytes, and whoever believes it takes the memory before a byte is read. Here
sizes are compared with the file's own first, and with the memory that is free. Nothing is ever executed.
"""

import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.errors import InputError
from common.memory import free_memory
from common.torch_pickle import describe

MOST_DENSE = 1040  # bytes that one byte of deflate can stand for: 1032 by its format (RFC 1951), and a little
SMALL = 1 << 26  # bytes of HDF5 data that are never too many, whatever the file says of their storage
MAX_DEPTH = 64  # of nested lists, dicts and groups
MAX_VALUES = 10_000_000  # in all of them
ZIP_START = b"PK\3\4"
REMEDY = "nothing of it was used; get the file again from who made it"


def read_torch(path: str | Path, other_forms: bool = False) -> Any:
    """Return what a file of torch.save holds: tensors on the CPU, numbers, strings, lists and dicts; nothing is run.

    Its pickle is looked through first, by opcodes, and refused by name where it asks for anything but tensors: torch's
    own list of what is safe has bytearray and the storages' classes, which a number makes as large as it likes.
    InputError also where the archive promises more than the file has, or where a value is of another kind or is larger
    than its storage; torch's and zipfile's own errors where it is damaged. `other_forms`: also files of PyTorch before
    1.6.
    """
    import torch

    with open(path, "rb") as file:
        is_zip = file.read(len(ZIP_START)) == ZIP_START  # as torch decides it
    if is_zip or not other_forms:
        _refuse_torch_zip(path, is_zip)
    else:
        _refuse_old_torch(path)
    value = torch.load(path, map_location="cpu", weights_only=True)
    refuse_unusual(value, str(path))
    return value


def _refuse_torch_zip(path: str | Path, is_zip: bool) -> None:
    import torch

    from common.torch_files import LOADED, WIDTHS

    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    promised, size = sum(member.file_size for member in members), Path(path).stat().st_size
    if not is_zip or promised > size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise InputError(f"{path}: promises {promised:,} bytes and has {size:,}, not as PyTorch writes it; {REMEDY}")
    pickled = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")  # by torch's reader: the bytes it will read
    storages = describe(pickled, str(path), only=LOADED).storages
    there = {member.filename.split("/", 1)[-1]: member.file_size for member in members}
    for key, storage in storages.items():
        if there.get(f"data/{key}") != storage.numel * WIDTHS[storage.kind]:
            raise InputError(f"{path}: data/{key}: not the {storage.numel:,} numbers that it should hold; {REMEDY}")


def _refuse_old_torch(path: str | Path) -> None:
    from common.torch_files import LOADED, MAX_PICKLE, WIDTHS

    size, end = Path(path).stat().st_size, 0
    with open(path, "rb") as file:
        head = file.read(MAX_PICKLE)
    for _ in range(5):  # magic number, version, system, object, keys of the storages
        described = describe(head, str(path), end, only=LOADED)
        end = described.end
        promised = sum(storage.numel * WIDTHS[storage.kind] for storage in described.storages.values())
        if promised > size:
            raise InputError(f"{path}: promises {promised:,} bytes of numbers and has {size:,}; {REMEDY}")


def refuse_unusual(value: Any, path: str) -> None:
    """InputError where a value is no plain data, is nested too deeply, or would grow by being written out."""
    import torch

    level, count = [value], 0
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple):
                below += item
            elif isinstance(item, torch.Tensor):
                plain = item.layout == torch.strided and item.device.type == "cpu" and not item.is_quantized
                if not plain or item.numel() * item.element_size() > item.untyped_storage().nbytes():
                    raise InputError(
                        f"{path}: a tensor of shape {tuple(item.shape)} that its data do not fill; {REMEDY}"
                    )
            elif not (item is None or isinstance(item, bool | int | float | str)):
                raise InputError(f"{path}: holds a {type(item).__name__}, plain data were expected; {REMEDY}")
            if len(below) > MAX_VALUES:
                raise InputError(f"{path}: more than {MAX_VALUES:,} values; {REMEDY}")
        if not below:
            return
        level, count = below, count + len(below)
        if count > MAX_VALUES:
            raise InputError(f"{path}: more than {MAX_VALUES:,} values; {REMEDY}")
    raise InputError(f"{path}: nested deeper than {MAX_DEPTH}; {REMEDY}")


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz by name. InputError where it promises what cannot be true, or is more than fits.

    ValueError, OSError, EOFError or BadZipFile where it is no .npz, or damaged; ValueError for an array of objects.
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if total > free_memory():
            raise InputError(f"{path}: promises {total:,} bytes, more than this machine has free; {REMEDY}")
        for member in members:
            if member.file_size > MOST_DENSE * (member.compress_size + 1):
                raise InputError(
                    f"{path}: {member.filename}: {member.file_size:,} bytes of {member.compress_size:,} cannot be; "
                    f"{REMEDY}"
                )
            with archive.open(member) as file:
                arrays[member.filename.removesuffix(".npy")] = _read_array(file, member, path)
    return arrays


def _read_array(file: BinaryIO, member: zipfile.ZipInfo, path: str | Path) -> np.ndarray:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{member.filename}: a header of version {version}")
    read_header = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError(f"{member.filename}: holds objects, which are not read")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=1) < 0 or size > member.file_size:
        raise InputError(f"{path}: {member.filename}: a shape of {shape} in {member.file_size:,} bytes; {REMEDY}")
    data = file.read(size)
    if len(data) != size or file.read(1):  # read to its end, where zipfile compares the CRC32
        raise ValueError(f"{member.filename}: {len(data)} bytes of data, {size} expected")
    array = np.frombuffer(data, dtype).copy() if size else np.empty(math.prod(shape), dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def refuse_false_hdf5(path: str | Path) -> None:
    """InputError where an HDF5 file has a dataset larger than what is stored of it can fill, or than fits in memory.

    Also for links to other files or places, which neither AnnData nor the makers of coordinates write. OSError where
    it is no HDF5 file.
    """
    import h5py

    with h5py.File(path) as file:
        total = _promised(file, str(path), 0)
    if total > free_memory():
        raise InputError(f"{path}: promises {total:,} bytes, more than this machine has free; {REMEDY}")


def _promised(group: Any, path: str, depth: int) -> int:
    import h5py

    if depth > MAX_DEPTH:
        raise InputError(f"{path}: groups nested deeper than {MAX_DEPTH}; {REMEDY}")
    total = 0
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise InputError(f"{path}: {group.name}/{name}: a link to elsewhere, data were expected; {REMEDY}")
        item = group[name]
        if isinstance(item, h5py.Group):
            total += _promised(item, path, depth + 1)
        elif isinstance(item, h5py.Dataset) and item.shape is not None:
            stored = item.id.get_storage_size()
            if item.external or item.is_virtual:
                raise InputError(f"{path}: {item.name}: its data are in other files; {REMEDY}")
            if item.nbytes > max(SMALL, MOST_DENSE * stored):
                raise InputError(
                    f"{path}: {item.name}: a shape of {item.shape} promises {item.nbytes:,} bytes, {stored:,} are "
                    f"stored; {REMEDY}"
                )
            total += item.nbytes
    return total
