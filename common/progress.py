"""How far a training is: one line with rate, time left and memory; the same numbers for the log.

A bar on a terminal; elsewhere, as in the log of a batch job, a line a minute.
"""

import sys
import time
from typing import Any

import torch
from tqdm import tqdm

from common.memory import in_use
from common.words import bytes_in_words, in_words

LOG_SECONDS = 60.0  # between two lines where there is no terminal
WINDOW = 30.0  # seconds over which the rate is measured, at least: steps differ, and some are saved or evaluated


class Progress:
    """Counts what a training has shown (`unit`: images, profiles) of `total`; `done` of them before this call.

    `quiet`: for all but the first of several processes.
    """

    def __init__(self, name: str, unit: str, total: int, done: int, device: torch.device, quiet: bool = False) -> None:
        self.name, self.unit, self.total, self.device, self.quiet = name, unit, max(total, done), device, quiet
        self._count = self._reported = done
        self._began = self._said = time.monotonic()
        self._marks = [(self._began, done)] * 2  # the rate is measured from the first on
        self._words = ""
        self._bar: Any = tqdm(
            total=self.total,
            initial=done,
            desc=name,
            unit=f" {unit}",
            unit_scale=True,
            mininterval=1,
            dynamic_ncols=True,
            disable=True if quiet else None,
        )

    def add(self, n: int) -> None:
        """Count `n` more, and show it."""
        self._count += n
        now = time.monotonic()
        if now - self._marks[1][0] > WINDOW:
            self._marks = [self._marks[1], (now, self._count)]
        self._bar.update(n)
        if self._bar.disable and not self.quiet and now - self._said > LOG_SECONDS:
            self._said = now
            print(self.line(), file=sys.stderr, flush=True)

    def go_to(self, count: int) -> None:
        """Count from `count` on: the training has gone back."""
        self._count = self._reported = count
        self._marks = [(time.monotonic(), count)] * 2
        self._bar.n = count
        self._bar.refresh()

    def report(self) -> dict[str, float]:
        """Return what belongs beside a loss in the log: seconds since the last report, rate in them, seconds left,
        memory in GB (1e9 bytes; see common.memory.in_use)."""
        now = time.monotonic()
        seconds = now - self._began
        rate = (self._count - self._reported) / max(seconds, 1e-9)
        self._began, self._reported = now, self._count
        left = {} if (remaining := self.seconds_left()) is None else {"seconds_left": remaining}
        return {"seconds": seconds, f"{self.unit}_per_second": rate, **left, "memory_gb": in_use(self.device) / 1e9}

    def show(self, words: str) -> None:
        """Set what stands at the line's end, after the memory: the losses."""
        self._words = words
        if not self._bar.disable:
            self._bar.set_postfix_str(", ".join(filter(None, (bytes_in_words(in_use(self.device)), words))), False)

    def seconds_left(self) -> float | None:
        """Return the time left at the present rate; None where nothing has been counted yet."""
        rate = self._rate()
        return (self.total - self._count) / rate if rate else None

    def line(self) -> str:
        """Return all of it in words."""
        remaining = self.seconds_left()
        parts = [
            f"{self.name}: {self._count:,} of {self.total:,} {self.unit}",
            f"{self._rate():.3g} {self.unit}/s",
            *([] if remaining is None else [f"{in_words(remaining)} left"]),
            bytes_in_words(in_use(self.device)),
            *([self._words] if self._words else []),
        ]
        return ", ".join(parts)

    def close(self) -> None:
        """End the line."""
        self._bar.close()

    def _rate(self) -> float:
        began, before = self._marks[0]
        return (self._count - before) / max(time.monotonic() - began, 1e-3)
