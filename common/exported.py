"""A checkpoint as a folder for others: model.safetensors and config.json, read back with nothing lost; README.md.

model.safetensors holds the tensors, named by their place in the state with / between; config.json all else that a
checkpoint has: kind, digest, and the state without its tensors. Both formats hold data only; neither can run anything.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from common.errors import InputError
from common.files import atomic_path, make_folder, read_json, write_text

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FORMAT = "rna-gan toolkit, safetensors, 1"
REMEDY = "export it again with prepare_data.py export"


def write_exported(folder: str | Path, kind: str, digest: str, state: dict[str, Any], card: str) -> Path:
    """Write the three files of a checkpoint's `state` into `folder`, config.json last; return model.safetensors.

    InputError where the folder has files already, or a name in the state has a / in it.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: there already; name a folder that is new or empty")
    make_folder(folder)
    tensors = {name: _alone(value) for name, value in _tensors(state)}
    with atomic_path(folder / WEIGHTS) as partial:
        save_file(tensors, str(partial), metadata={"format": "pt", "kind": kind, "digest": digest})
    write_text(folder / CARD, card)
    about = {"format": FORMAT, "kind": kind, "digest": digest, "state": _plain(state)}
    write_text(folder / CONFIG, json.dumps(about, indent=1, allow_nan=False) + "\n")
    return folder / WEIGHTS


def read_exported(path: str | Path) -> dict[str, Any]:
    """Return kind, digest and state of an exported folder's model.safetensors, on the CPU; InputError where damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    about = read_json(path.with_name(CONFIG))
    if not isinstance(about, dict) or about.get("format") != FORMAT or not isinstance(about.get("state"), dict):
        raise InputError(f"{path.with_name(CONFIG)}: not of an exported model ({FORMAT!r} was expected); {REMEDY}")
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path}: not readable, or cut short ({str(error)[:80]}); {REMEDY}") from None
    for name, tensor in tensors.items():
        *folders, last = name.split("/")
        target = about["state"]
        for key in folders:
            target = target.get(key)
            if not isinstance(target, dict):
                raise InputError(f"{path}: {name[:80]} has no place in {CONFIG} beside it; {REMEDY}")
        target[last] = tensor
    return {key: about.get(key) for key in ("kind", "digest", "state")}


def _tensors(value: dict[str, Any], place: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    for key, item in value.items():
        if "/" in key:
            raise InputError(f"{place}{key}: a name with / in it cannot be exported")
        if isinstance(item, torch.Tensor):
            yield f"{place}{key}", item
        elif isinstance(item, dict):
            yield from _tensors(item, f"{place}{key}/")


def _plain(value: Any) -> Any:
    """Return the value without its tensors, for JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if not isinstance(item, torch.Tensor)}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in a piece of memory of its own, in order."""
    tensor = tensor.detach().cpu().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()
