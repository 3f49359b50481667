"""A run folder: settings, log, checkpoints; the device; seeds; and a clean stop when a signal asks for one."""

import errno
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from common.checkpoint import DamagedCheckpoint, load_checkpoint, save_checkpoint
from common.distributed import ALONE, Ranks, on_this_machine, under_torchrun
from common.errors import InputError, Stopped, shorten, warn
from common.files import read_json, remove_partials, write_json, write_text
from common.stopping import Interrupted, hold_signals, release_signals, signals_handled, stop_requested
from common.together import agree
from common.wandb_log import open_wandb

# Settings that may differ when a run is resumed: they do not change what a step computes.
FREE_TO_CHANGE = {
    "max_steps",
    "device",
    "n_workers",
    "read_timeout",
    "log_interval",
    "save_every",
    "cache",
    "compile",
    "flag",
    "image_dir",
    "save_dir",
    "eval_every",
    "eval_tiles",
    "eval_extractor",
    "eval_weights",
}
LAST, PREVIOUS = "last.pt", "previous.pt"
SAVE_SHARE = 0.05  # of the time, at most, goes into saving


class Run:
    """One run folder. `last.pt` holds everything that changes; typing the same command again goes on from it.

    `previous.pt` is the last.pt before it, in case the disk damages last.pt. A run is used as a context manager: inside
    it SIGTERM, SIGINT and SIGUSR1 end the run at once, with status 75, except between `hold_signals()` and
    `release_signals()`: there the loop asks `after_step()` after each step, saves, and calls `stop()`. A second signal
    leaves at once. Of several ranks the first alone writes; each reads last.pt, and all stop after the same step.
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
        refuse_no_folder(folder)
        self.folder, self.ranks, self._free = Path(folder), ranks, FREE_TO_CHANGE | set(free)
        self._wandb: Any = None
        self._inside, self._holds = ExitStack(), False
        self._last_is_whole = False  # last.pt was written or read, and checked, by this process
        self._saved_at, self._save_seconds, self._told = time.monotonic(), 0.0, False
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
        """Return the state in last.pt, or None in a new folder; log lines after its `step` are dropped.

        Where last.pt is damaged or gone, that in previous.pt, with a warning; InputError where that is no better.
        """
        state = self._newest(kind)
        log = self.folder / "log.jsonl"
        if state is None and self.ranks.main:
            log.unlink(missing_ok=True)
        elif log.exists() and self.ranks.main:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            write_text(log, "".join(f"{line}\n" for line in lines if _step_of(line) <= state["step"]))
        self._saved_at = time.monotonic()
        return state

    def _newest(self, kind: str) -> dict[str, Any] | None:
        last, previous = self.folder / LAST, self.folder / PREVIOUS
        if not last.exists() and not previous.exists():
            agree(f"{self.folder}: {LAST}", "no such file")
            return None
        try:
            if not last.exists():
                raise DamagedCheckpoint(f"{last}: gone, though {PREVIOUS} is there")
            state, digest = load_checkpoint(last, kind)
            self._last_is_whole = True
        except DamagedCheckpoint as error:
            self._last_is_whole = False  # it may have been, before the run went back to it
            if not previous.exists():
                raise
            try:
                state, digest = load_checkpoint(previous, kind)
            except InputError as second:
                raise InputError(f"{error}; nor can the one before it be used: {second}") from None
            warn(f"{error}. Going on from {previous}, after step {state['step']}; the next save replaces {LAST}")
        agree(f"{self.folder}: {LAST}", digest)
        return state

    def save(self, name: str, kind: str, state: dict[str, Any]) -> str:
        """Write a checkpoint into the folder, sealed; return its digest. The last.pt before stays as previous.pt.

        Where the disk has no room for a third file while it is written, previous.pt makes room. Rank 0 only.
        """
        return self._save_last(kind, state) if name == LAST else save_checkpoint(self.folder / name, kind, state)

    def _save_last(self, kind: str, state: dict[str, Any]) -> str:
        previous = self.folder / PREVIOUS
        try:
            digest = save_checkpoint(self.folder / LAST, kind, state, previous if self._last_is_whole else None)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not (self._last_is_whole and previous.exists()):
                raise
            previous.unlink()
            warn(f"{error.filename}: no space for a third checkpoint while it is written; {previous} made room")
            digest = save_checkpoint(self.folder / LAST, kind, state, previous)
        self._last_is_whole = True
        return digest

    def after_step(self, epoch_ends: bool = False, every: float = 0) -> tuple[bool, bool]:
        """Return whether to stop, a signal having asked any rank to, and whether to save. All ranks ask, once a step.

        It is time to save when an epoch ends, or when `every` seconds (0: no such limit) went by since the last save;
        but not yet where saving again would take more than SAVE_SHARE of the time. Where that puts off what `every`
        asks for, it is said once. `saving()` measures what a save takes: all that a training saves, it saves there.
        """
        stopping, due = stop_requested(), self.ranks.main and self._save_is_due(epoch_ends, every)
        if self.ranks.world == 1:
            return stopping, due
        told = self.ranks.sum(torch.tensor([int(stopping), int(due)])).tolist()
        return bool(told[0]), bool(told[1])

    def _save_is_due(self, epoch_ends: bool, every: float) -> bool:
        waited = time.monotonic() - self._saved_at
        asked = bool(every) and waited >= every
        least = self._save_seconds * (1 / SAVE_SHARE - 1)
        paid = waited >= least
        if asked and not paid and not self._told:
            self._told = True
            warn(
                f"{self.folder}: saving takes {self._save_seconds:.1f} s: the next one comes after {least:.0f} s, not "
                f"after save_every = {every:g}, so that saving takes {SAVE_SHARE:.0%} of the time at most"
            )
        return (asked or epoch_ends) and paid

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Count the block's time as that of a save."""
        start = time.monotonic()
        yield
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - start

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
        """Log to wandb too, as setting `flag` or the folder's name; offline, under the run folder, if not logged in.

        A run that is resumed goes on under its first id, which the run folder keeps.
        """
        if self.ranks.main:
            self._wandb = open_wandb(self.folder, settings.get("flag") or self.name, settings)

    def hold_signals(self) -> None:
        """From here on a first signal is only what `after_step()` tells, until `release_signals()` or the run's end."""
        if not self._holds:
            self._holds = True
            hold_signals(aloud=True)

    def release_signals(self) -> None:
        """From here on a signal ends the run at once; one that came meanwhile does so here. Everything is saved."""
        if self._holds:
            self._holds = False
            release_signals()

    def stop(self, step: int) -> None:
        """Leave, after saving, with exit status 75; the other ranks not before the first has saved."""
        self.ranks.wait()
        raise Stopped(f"{self.folder}: stopped by a signal after step {step}; everything is saved")

    def __enter__(self) -> "Run":
        self._inside.enter_context(signals_handled())
        return self

    def __exit__(self, *_: object) -> None:
        if self._wandb is not None:
            self._wandb.finish()
        with suppress(Interrupted):  # the run is over, well or not: there is nothing left to stop
            self.release_signals()
        self._inside.close()

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


def refuse_no_folder(folder: str | Path) -> None:
    """InputError where no run folder is named."""
    if not str(folder):
        raise InputError("no run folder: set save_dir in the config or name one with --save_dir / --model_dir")


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


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line).get("step", 0))
    except (ValueError, TypeError, AttributeError, RecursionError):  # a line cut short by a kill, or no line of ours
        return 1 << 62
