"""How far a long preparation is: a bar on a terminal, a line a minute in a log."""

import sys
import time

from common.words import in_words

LOG_SECONDS = 60.0  # between two lines in a log


class Progress:
    """Slides and tiles done, their rate and the time left; slides that were done before do not count for the rate."""

    def __init__(self, what: str, slides: int) -> None:
        from tqdm import tqdm

        self._what, self._slides, self._tiles, self._kept = what, slides, 0, 0
        self._done, self._start = 0, time.monotonic()
        self._said = self._start
        self._bar = tqdm(total=slides, desc=what, unit="slide", smoothing=0, disable=None)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, tiles: int, kept: bool = False) -> None:
        """Count one slide; `kept`: it was done before, and took no time."""
        self._done, self._tiles, self._kept = self._done + 1, self._tiles + tiles, self._kept + kept
        if kept and not self._bar.disable:
            self._bar.initial += 1
        self._bar.update()
        self._bar.set_postfix(tiles=f"{self._tiles:,}", refresh=False)
        if self._bar.disable and time.monotonic() - self._said > LOG_SECONDS:
            self._said = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Make room for a line of text."""
        self._bar.clear()

    def line(self) -> str:
        """Return the state in words."""
        rate = (self._done - self._kept) / max(time.monotonic() - self._start, 1e-3)  # slides per second
        left = f"; {in_words((self._slides - self._done) / rate)} left" if rate else ""
        return f"{self._what}: {self._done:,} of {self._slides:,} slides, {self._tiles:,} tiles{left}"
