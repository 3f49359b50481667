"""Steps after which a loss or a weight was not finite: the run goes back to its last checkpoint and leaves them out.

Left out means: its batch passes by, no weight changes, and all later steps draw what they would have drawn. So a run
with skipped steps is as reproducible as any other. The steps are kept in last.pt, so that a resumed run leaves out the
same ones. The third time the run ends: then it is not one bad batch, but the rates, or the data.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.checkpoint import first_non_finite
from common.errors import InputError, shorten, warn

MOST = 2  # steps that a run may leave out


class Skips:
    """The steps that are left out, and what they held; `step in skips`, `skips[step]`.

    `named(step)` says in words what the batch of a step holds.
    """

    def __init__(self, folder: Path, named: Callable[[int], list[str]]) -> None:
        self.folder, self._named = folder, named
        self._steps: dict[int, list[str]] = {}
        self._careful_until = 0

    def load(self, saved: dict[str, Any]) -> None:
        """Take up those of a checkpoint; one from before there were any has none."""
        kept = saved.get("skips", {"steps": {}, "careful_until": 0})
        self._steps = {int(step): list(names) for step, names in kept["steps"].items()}
        self._careful_until = kept["careful_until"]

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it."""
        steps = {str(step): names for step, names in sorted(self._steps.items())}
        return {"skips": {"steps": steps, "careful_until": self._careful_until}}

    def __contains__(self, step: int) -> bool:
        return step in self._steps

    def __getitem__(self, step: int) -> list[str]:
        return self._steps[step]

    def careful(self, step: int) -> bool:
        """Say whether this step is to be looked at by itself: it is taken again after a fault."""
        return step <= self._careful_until

    def first_bad(self, looked_at: dict[int, bool], step: int, state: Callable[[], dict[str, Any]]) -> int | None:
        """Return the first step whose losses were not finite, None where all were. `step`: the one just taken.

        After a fault all weights are looked at too, step by step, as far as it came: a loss may be finite and the
        update that follows not, and then it is not the batch with the infinite loss that is to blame.
        """
        if bad := [number for number, finite in sorted(looked_at.items()) if not finite]:
            return bad[0]
        return step if self.careful(step) and first_non_finite(state()) else None

    def blame(self, step: int, what: str, remedy: str) -> None:
        """Leave out `step` from now on; InputError the third time. The caller goes back to the last checkpoint."""
        if step < self._careful_until:  # the later one was only its consequence
            self._steps.pop(self._careful_until, None)
        names = self._named(step)
        if len(self._steps) >= MOST:
            before = ", ".join(map(str, sorted(self._steps)))
            raise InputError(
                f"{self.folder}: {what} at step {step}, on {shorten(names)}, for the third time (before: {before}); "
                f"nothing of it was saved; {remedy}"
            )
        self._steps[step] = names
        self._careful_until = max(step, self._careful_until)
        warn(
            f"{self.folder}: {what} at step {step}; going back to the last checkpoint, or to the start, and leaving "
            f"out this step's batch from now on: {shorten(names)}"
        )
