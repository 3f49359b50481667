"""What the parts of gpu.py share: its sizes, the device and the clock, time limits, attempts that may fail."""

import gc
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from steps import timed

Result = dict[str, Any]


@dataclass
class Sizes:
    """How large things are; `QUICK` is for a check on a CPU."""

    matrix: int = 8192
    side: int = 256
    dcgan: tuple[int, int] = (2048, 64)  # encoding_dims, step_channels
    dcgan_batches: tuple[int, ...] = (8, 64)
    residual: tuple[tuple[int, int], ...] = ((32, 32), (64, 32), (32, 128))  # step_channels, batch
    latent: int = 2048
    warm: int = 8  # steps of a training that are not timed: one round of penalties
    steps: int = 48  # that are timed, and again that are traced
    tiles: int = 512  # drawn
    feature_batch: int = 64
    genes: int = 19_198
    widths: tuple[int, int, int] = (6000, 4000, 2048)  # of the beta-VAE
    inception_side: int = 299


QUICK = Sizes(256, 32, (32, 4), (8,), ((4, 4),), 16, 2, 4, 16, 2, 500, (64, 32, 16), 96)


@dataclass
class Bench:
    """What the parts share: the device, the sizes, the time left, and the bf16 rate once it is known."""

    device: torch.device
    sizes: Sizes
    bar: float
    out: Path | None
    ends: float  # time.monotonic()
    rate: float = 0.0  # FLOP/s
    peer_ms: dict[int, float] = field(
        default_factory=dict
    )  # batch -> ms of a DCGAN step, torchgan's way, torch's defaults

    @property
    def gpu(self) -> bool:
        """Whether there is a GPU to wait for and to trace."""
        return self.device.type == "cuda"

    def autocast(self, precision: str) -> Any:
        """Return what `precision` runs in."""
        return torch.autocast(self.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()

    def ms(self, action: Callable[[], Any], warm: int = 3) -> float:
        """Return the median milliseconds of `action` on the device."""
        for _ in range(warm if self.gpu else 1):
            action()
        self.wait()
        return round(1e3 * timed(action, self.device, least=5 if self.gpu else 1, enough=1.0 if self.gpu else 0)[0], 3)

    def wait(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.gpu:
            torch.cuda.synchronize(self.device)

    def attempt(self, label: str, action: Callable[[], Result], seconds: float = 90, quiet: bool = False) -> Result:
        """Return what `action` found, within `seconds`; where it fails, the reason. Prints it, unless `quiet`."""
        seconds = min(seconds, self.ends - time.monotonic())
        try:
            if seconds <= 1:
                raise OutOfTime("no time left")
            if self.gpu:
                gc.collect()  # what refers to itself may hold memory of the GPU
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(self.device)
            with limit(seconds):
                found = action()
            if self.gpu:
                found["peak_gb"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)
        except (Exception, OutOfTime) as error:
            traceback.print_exc(file=sys.stdout)
            found = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        if not quiet or "error" in found:
            print(f"  {label}: {json.dumps(found)}", flush=True)
        return found


class OutOfTime(BaseException):
    """Time is up. No Exception: code that goes on whatever fails, as models/compiling.py does, must not catch it."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """OutOfTime once `seconds` have passed, as soon as Python has the word again."""

    def stop(*_: object) -> None:
        raise OutOfTime(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def tf32_allowed(backend: Any, allowed: bool) -> Iterator[None]:
    """Have products of fp32 numbers rounded to TF32, or not. By default torch does so in convolutions only."""
    before = backend.allow_tf32
    backend.allow_tf32 = allowed
    try:
        yield
    finally:
        backend.allow_tf32 = before
