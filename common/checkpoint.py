"""Sealed checkpoints: tensors, numbers, strings, lists and dicts only, opened with weights_only=True, digest checked.

A checkpoint is one file, {"kind": ..., "digest": ..., "state": {...}}. The digest is a SHA-256 over the content of
`state` (names, dtypes, shapes, bytes), so it names the model itself: a GAN stores its VAE's, a metric its generator's.
"""

import hashlib
import math
import struct
from pathlib import Path
from typing import Any

import torch

from common.errors import InputError, did_you_mean
from common.exported import WEIGHTS, read_exported
from common.files import atomic_path

SUFFIXES = (".model", ".pt")  # a run may be named by its folder with one of these appended


class NonFiniteError(ValueError):
    """A weight is NaN or infinite."""


def save_checkpoint(path: str | Path, kind: str, state: dict[str, Any]) -> str:
    """Write `state` to `path`, whole or not at all, and return its digest. NonFiniteError on a bad weight."""
    digest = content_digest(state)
    if name := _first_non_finite(state):
        raise NonFiniteError(f"{path}: {name} holds NaN or infinity; not saved")
    with atomic_path(path) as partial:
        try:
            torch.save({"kind": kind, "digest": digest, "state": state}, partial)
        except RuntimeError as error:  # torch hides a full disk behind its own error
            raise OSError(28, "no space left on the disk", str(path)) from error
    return digest


def load_checkpoint(path: str | Path, kind: str | None = None) -> tuple[dict[str, Any], str]:
    """Return (state, digest) of the checkpoint at `path`, on the CPU.

    `kind` names what the caller can use ("betavae", "gan", ...). InputError where the file is missing, cut short, not
    one of ours, altered since it was written, or of another kind. No pickled code is ever executed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; train it first, or check the path")
    try:
        if path.name == WEIGHTS:
            saved = read_exported(path)
        else:
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # a damaged zip, a foreign pickle and a text file all fail in their own ways
        raise InputError(
            f"{path}: not a readable checkpoint, or cut short ({type(error).__name__}); copy or train it again"
        ) from None
    if not isinstance(saved, dict) or set(saved) != {"kind", "digest", "state"}:
        raise InputError(
            f"{path}: not a checkpoint of this toolkit; name the best.pt or <run>.model that a training "
            "command writes, or its run folder"
        )
    if content_digest(saved["state"]) != saved["digest"]:
        raise InputError(f"{path}: content differs from its digest: the file was altered or damaged; copy it again")
    if kind is not None and saved["kind"] != kind:
        raise InputError(
            f"{path}: holds a {saved['kind']} checkpoint, a {kind} checkpoint was expected; check the path"
        )
    return saved["state"], saved["digest"]


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


def _first_non_finite(value: Any, name: str = "state") -> str | None:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return None if bool(torch.isfinite(value).all()) else name
    if isinstance(value, dict):
        found = (_first_non_finite(v, f"{name}.{k}") for k, v in value.items())
    elif isinstance(value, list | tuple):
        found = (_first_non_finite(v, f"{name}[{i}]") for i, v in enumerate(value))
    else:
        return name if isinstance(value, float) and not math.isfinite(value) else None
    return next((f for f in found if f), None)
