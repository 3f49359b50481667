"""A run folder: settings, log, checkpoints; the device; seeds; and a clean stop when a signal asks for one."""

import hashlib
import json
import netrc
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import torch

from common.checkpoint import load_checkpoint, save_checkpoint
from common.distributed import ALONE, Ranks, agree, on_this_machine, under_torchrun
from common.errors import InputError, Stopped, shorten, warn
from common.files import read_json, remove_partials, write_json, write_text

# Settings that may differ when a run is resumed: they do not change what a step computes.
FREE_TO_CHANGE = {
    "max_steps",
    "device",
    "n_workers",
    "log_interval",
    "save_every",
    "cache",
    "compile",
    "flag",
    "image_dir",
    "save_dir",
}
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Run:
    """One run folder. `last.pt` holds everything that changes; typing the same command again goes on from it.

    Of several ranks the first alone writes; each reads last.pt, and all stop after the same step.

    A run may be used as a context manager: inside it SIGTERM, SIGINT and SIGUSR1 set `stop_requested`, and a second
    signal leaves at once. The loop asks `should_stop()` after each step, saves, and calls `stop()`.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: dict[str, Any],
        restart: bool = False,
        defaults: dict[str, Any] | None = None,
        ranks: Ranks = ALONE,
        free: Collection[str] = (),
    ) -> None:
        """Create or re-open `folder`. InputError where it holds another run's settings (`restart` moves it aside).

        `defaults`: what settings that an older run's config.json does not have were in effect. `free`: settings that,
        beside FREE_TO_CHANGE, may differ in this run.
        """
        if not str(folder):
            raise InputError("no run folder: set save_dir in the config or name one with --save_dir / --model_dir")
        self.folder, self.ranks, self._free = Path(folder), ranks, FREE_TO_CHANGE | set(free)
        self.stop_requested = False
        self._wandb: Any = None
        self._handlers: dict[int, Any] = {}
        agree(f"{folder}: the settings and the data", json.dumps(settings, sort_keys=True, default=str))
        if ranks.main:
            self._open(settings, restart, defaults or {})
        ranks.wait()

    def _open(self, settings: dict[str, Any], restart: bool, defaults: dict[str, Any]) -> None:
        folder = self.folder
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{folder}: is a file, a run folder was expected; choose another name")
        if restart and (self.folder / "config.json").exists():
            aside = self.folder.with_name(f"{self.folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
            self.folder.rename(aside)
            warn(f"{folder}: the earlier run was moved to {aside}")
        self._refuse_other_settings(settings, defaults)
        remove_partials(self.folder)
        write_json(self.folder / "config.json", settings)

    @property
    def name(self) -> str:
        """The run's name: its folder's."""
        return self.folder.resolve().name

    def restore(self, kind: str) -> dict[str, Any] | None:
        """Return the state in last.pt, or None in a new folder; log lines after its `step` are dropped."""
        if not (self.folder / "last.pt").exists():
            agree(f"{self.folder}: last.pt", "no such file")
            if self.ranks.main:
                (self.folder / "log.jsonl").unlink(missing_ok=True)
            return None
        state, digest = load_checkpoint(self.folder / "last.pt", kind)
        agree(f"{self.folder}: last.pt", digest)
        log = self.folder / "log.jsonl"
        if log.exists() and self.ranks.main:
            write_text(
                log, "".join(f"{line}\n" for line in log.read_text().splitlines() if _step_of(line) <= state["step"])
            )
        return state

    def save(self, name: str, kind: str, state: dict[str, Any]) -> str:
        """Write a checkpoint into the folder, sealed; return its digest. Rank 0 only."""
        return save_checkpoint(self.folder / name, kind, state)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Append one JSON line to log.jsonl (and to wandb where it is on); other ranks than the first do nothing."""
        if not self.ranks.main:
            return
        plain = {k: v.item() if hasattr(v, "item") else v for k, v in values.items()}
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **plain}) + "\n")
        if self._wandb is not None:
            self._wandb.log(plain, step=step)

    def start_wandb(self, settings: dict[str, Any]) -> None:
        """Log to wandb too, as setting `flag` or the folder's name; offline, under the run folder, if not logged in."""
        if not self.ranks.main:
            return
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if _wandb_knows_us() else "offline")
        name = settings.get("flag") or self.name
        self._wandb = wandb.init(
            project="rna-gan", name=name, config=settings, dir=str(self.folder), mode=mode, resume="allow"
        )

    def should_stop(self) -> bool:
        """Return True once a signal has asked any rank to stop. All ranks ask, once after each step."""
        self.stop_requested = self.ranks.any(self.stop_requested)
        return self.stop_requested

    def stop(self, step: int) -> None:
        """Leave, after saving, with exit status 75; the other ranks not before the first has saved."""
        self.ranks.wait()
        raise Stopped(f"{self.folder}: stopped by a signal after step {step}; everything is saved")

    def __enter__(self) -> "Run":
        try:
            self._handlers = {s: signal.signal(s, self._on_signal) for s in SIGNALS}
        except ValueError:  # not the main thread: signals stay with whoever has it
            self._handlers = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._wandb is not None:
            self._wandb.finish()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.stop_requested:
            os._exit(75)
        self.stop_requested = True
        warn(f"{signal.Signals(number).name}: finishing this step, then saving; a second signal leaves at once")

    def _refuse_other_settings(self, settings: dict[str, Any], defaults: dict[str, Any]) -> None:
        path = self.folder / "config.json"
        if not path.exists():
            return
        before = {**defaults, **read_json(path)}  # a run from before a setting was there had its default
        changed = {k for k in set(before) | set(settings) if before.get(k) != settings.get(k)} - self._free
        if settings.get("num_epochs", 0) > before.get("num_epochs", 0):
            changed -= {"num_epochs"}  # it may grow
        if "cohort_digest" not in before:
            changed -= {"cohort_digest"}  # a run from before it was kept
        if changed:
            pairs = [f"{k} ({before.get(k)} there, {settings.get(k)} now)" for k in sorted(changed)]
            raise InputError(
                f"{self.folder}: holds a run with other settings: {shorten(pairs, 3)}; "
                "use another folder, or --restart to move the old run aside"
            )


def seed_for(seed: int, *place: int | str) -> int:
    """Return a 63-bit seed that depends on `seed` and `place` (a name, a step, an index) alone."""
    text = ":".join(str(p) for p in (seed, *place))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(seed: int, *place: int | str) -> torch.Generator:
    """Return a CPU generator whose numbers depend on `seed` and `place` alone: the same on every machine and resume."""
    return torch.Generator().manual_seed(seed_for(seed, *place))


def pick_device(setting: str) -> torch.device:
    """Return the device that `setting` names.

    "cpu"; "cuda" or "cuda:1": that GPU, InputError without it; "0": that GPU, or the CPU with a warning. With several
    ranks "cuda" and "0" are each process's own GPU.
    """
    if setting == "cpu":
        return torch.device("cpu")
    if under_torchrun() and (setting == "cuda" or setting.isdigit()):
        gpus, processes = torch.cuda.device_count(), on_this_machine()
        if gpus >= processes:
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if gpus or setting == "cuda":
            raise InputError(
                f"device {setting}: {processes} processes on this machine, but {gpus} GPUs; start as many as there are "
                "GPUs, or use --device cpu"
            )
    elif under_torchrun() and setting.startswith("cuda:"):
        raise InputError(f"device {setting}: with several processes each has its own GPU; use --device cuda")
    if setting.isdigit():
        if torch.cuda.is_available() and int(setting) < torch.cuda.device_count():
            return torch.device("cuda", int(setting))
        warn(f"device {setting}: no such GPU on this machine, using the CPU (--device cuda insists on a GPU)")
        return torch.device("cpu")
    if setting == "cuda" or setting.startswith("cuda:"):
        index = int(setting[5:]) if setting[5:].isdigit() else 0
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            raise InputError(f"device {setting}: a GPU was asked for and PyTorch finds none; use --device cpu")
        return torch.device("cuda", index)
    raise InputError(f"device {setting!r}: expected cpu, cuda, cuda:N or a GPU's index")


def _wandb_knows_us() -> bool:
    """Return whether a wandb key is set (WANDB_API_KEY) or stored by `wandb login`, without asking the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    try:
        return host in netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line).get("step", 0))
    except ValueError:  # a line cut short by a kill
        return 1 << 62
