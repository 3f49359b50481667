"""The log of a run in wandb: offline where nobody is logged in, and under its first id where the run is resumed."""

import netrc
import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common.files import write_text


def open_wandb(folder: Path, name: str, settings: dict[str, Any]) -> Any:
    """Return wandb's run `name` of the run folder, where it keeps its id and what is logged offline."""
    import wandb

    kept = folder / "wandb_id"
    if not kept.exists():
        write_text(kept, f"{secrets.token_hex(8)}\n")
    mode = os.environ.get("WANDB_MODE") or ("online" if wandb_knows_us() else "offline")
    again = {"id": kept.read_text().strip(), "resume": "allow"}
    return wandb.init(project="rna-gan", name=name, config=settings, dir=str(folder), mode=mode, **again)


def wandb_knows_us() -> bool:
    """Return whether a wandb key is set (WANDB_API_KEY) or stored by `wandb login`, without asking the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    try:
        return host in netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
