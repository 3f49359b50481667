"""Sealed checkpoints: tensors, numbers, strings, lists and dicts only, looked through first, digest checked.

A checkpoint is one file, {"kind": ..., "digest": ..., "state": {...}}. The digest is a SHA-256 over the content of
`state` (names, dtypes, shapes, bytes), so it names the model itself: a GAN stores its VAE's, a metric its generator's.
"""

import errno
import hashlib
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from common.archives import read_torch, refuse_unusual
from common.errors import NO_SPACE, InputError, did_you_mean, out_of_memory
from common.exported import WEIGHTS, read_exported
from common.files import atomic_path

SUFFIXES = (".model", ".pt")  # a run may be named by its folder with one of these appended
PROBE = 1 << 20  # bytes that are written, or read at a time, to learn why torch could not


class NonFiniteError(ValueError):
    """A weight is NaN or infinite."""


class DamagedCheckpoint(InputError):
    """The file is cut short, or its content is not what was written."""


def save_checkpoint(path: str | Path, kind: str, state: dict[str, Any], previous: str | Path | None = None) -> str:
    """Write `state` to `path`, whole or not at all, and return its digest. NonFiniteError on a bad weight.

    It is read back from the disk before it takes the old file's place, which stays as `previous` where that is named.
    OSError where the disk is full, with the bytes that are needed, or where what was read back differs.
    """
    digest = content_digest(state)
    if name := first_non_finite(state):
        raise NonFiniteError(f"{path}: {name} holds NaN or infinity; not saved")
    try:
        with atomic_path(path, previous) as partial:
            _write({"kind": kind, "digest": digest, "state": state}, partial)
            _read_back(partial)
    except OSError as error:
        if error.errno in NO_SPACE:
            error.needed = bytes_of(state)
        raise
    return digest


def _write(content: dict[str, Any], path: Path) -> None:
    try:
        torch.save(content, path)
    except RuntimeError:  # torch hides why it could not write: try ourselves
        with open(path, "ab") as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
        raise


def _read_back(path: Path) -> None:
    """OSError where the file at `path`, read from the disk and not from memory, is not what was written to it."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            with zipfile.ZipFile(file) as archive:
                whole = archive.testzip() is None  # the CRC32 of each record
        except zipfile.BadZipFile:
            whole = False
    if not whole:
        raise OSError(errno.EIO, "what was read back differs from what was written: check the disk", str(path))


def load_checkpoint(path: str | Path, kind: str | None = None) -> tuple[dict[str, Any], str]:
    """Return (state, digest) of the checkpoint at `path`, on the CPU.

    `kind` names what the caller can use ("betavae", "gan", ...). InputError where the file is missing, cut short, not
    one of ours, altered since it was written, or of another kind; OSError and MemoryError where a file that may be
    whole cannot be read. No pickled code is ever executed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; train it first, or check the path")
    try:
        if path.name == WEIGHTS:
            refuse_unusual(saved := read_exported(path), str(path))
        else:
            saved = read_torch(path)
    except OSError:  # the disk's fault, or the network's: the file may be whole
        raise
    except InputError as error:
        raise DamagedCheckpoint(str(error)) from None
    except Exception as error:  # a damaged zip, a foreign pickle and a text file all fail in their own ways
        if out_of_memory(error):
            raise MemoryError(f"{path} does not fit into what is free") from None
        _read_through(path)
        raise DamagedCheckpoint(
            f"{path}: not a readable checkpoint, or cut short ({type(error).__name__}); copy or train it again"
        ) from None
    if not isinstance(saved, dict) or set(saved) != {"kind", "digest", "state"}:
        raise InputError(
            f"{path}: not a checkpoint of this toolkit; name the best.pt or <run>.model that a training "
            "command writes, or its run folder"
        )
    if content_digest(saved["state"]) != saved["digest"]:
        raise DamagedCheckpoint(
            f"{path}: content differs from its digest: the file was altered or damaged; copy it again"
        )
    if kind is not None and saved["kind"] != kind:
        raise InputError(
            f"{path}: holds a {saved['kind']} checkpoint, a {kind} checkpoint was expected; check the path"
        )
    return saved["state"], saved["digest"]


def _read_through(path: Path) -> None:
    """OSError where the disk does not give the file's bytes, which torch tells as it tells of damage."""
    with open(path, "rb") as file:
        while file.read(PROBE):
            pass


def resolve_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint file that `path` names: a file, a run folder, or a run folder with .model or .pt appended.

    In a run folder `<run>.model` is taken, else `best.pt`, in an exported one model.safetensors. InputError names what
    is there instead.
    """
    path = Path(path)
    if path.is_file():
        return path
    folders = [path] + [path.with_suffix("") for suffix in SUFFIXES if path.suffix == suffix]
    for folder in folders:
        if folder.is_dir():
            for name in (f"{folder.name}.model", "best.pt", WEIGHTS):
                if (folder / name).is_file():
                    return folder / name
            raise InputError(f"{folder}: the run has no {folder.name}.model or best.pt yet; finish its training first")
    runs = [str(p) for p in path.parent.glob("[!.]*")] if path.parent.is_dir() else []
    raise InputError(f"{path}: no such checkpoint or run folder{did_you_mean(str(path), runs)}; train it first")


def content_digest(value: Any) -> str:
    """Return the SHA-256 (hex) of a nested value of tensors, numbers, strings, None, lists, tuples and dicts."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous()
        digest.update(f"tensor {data.dtype} {tuple(data.shape)}".encode())
        digest.update(memoryview(data.reshape(-1).view(torch.uint8).numpy()))
    elif isinstance(value, dict):
        digest.update(f"dict {len(value)}".encode())
        for key in sorted(value, key=str):
            _feed(digest, key)
            _feed(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)}".encode())
        for item in value:
            _feed(digest, item)
    elif isinstance(value, float):
        digest.update(b"float" + struct.pack("<d", value))
    elif value is None or isinstance(value, bool | int | str):
        digest.update(f"{type(value).__name__} {value}\0".encode())
    else:
        raise TypeError(f"a checkpoint holds tensors, numbers, strings, lists and dicts only, not {type(value)}")


def bytes_of(value: Any) -> int:
    """Return about how many bytes the tensors in a nested value take on disk."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size() + 512  # a record of the archive begins at a multiple of 64
    if isinstance(value, dict | list | tuple):
        return sum(bytes_of(v) for v in (value.values() if isinstance(value, dict) else value))
    return 0


def first_non_finite(value: Any, name: str = "state") -> str | None:
    """Return the name of the first number or tensor in a nested value that is not finite, None where all are."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        ends = torch.stack(torch.aminmax(value)) if value.numel() else value  # NaN is both least and largest
        return None if bool(torch.isfinite(ends).all()) else name
    if isinstance(value, dict):
        found = (first_non_finite(v, f"{name}.{k}") for k, v in value.items())
    elif isinstance(value, list | tuple):
        found = (first_non_finite(v, f"{name}[{i}]") for i, v in enumerate(value))
    else:
        return name if isinstance(value, float) and not math.isfinite(value) else None
    return next((f for f in found if f), None)
