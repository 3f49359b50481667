"""A batch in several passes, where the device's memory is too small for all of it at once (setting micro_batch).

The result is the whole batch's, but for batch norm, whose statistics are then those of each pass.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from common.distributed import Ranks, alone, current
from common.errors import InputError
from common.run import Run

TRIED_FIRST = ("cuda",)  # devices that refuse memory, which is tried out before several ranks begin


class Passes:
    """How many rows of this rank's share of a batch pass through the networks at a time; `size` 0: all.

    `changed`: what to tell the user once memory ran out and another size was chosen.
    """

    def __init__(self, size: int, *networks: nn.Module, least: int = 1) -> None:
        """`networks` are told by their attribute `passes` in how many parts to go; `least`: the fewest rows of one."""
        self.size, self.networks, self.least, self.changed = size, networks, least, ""

    def count(self, n: int) -> int:
        """Return in how many passes each rank takes its share of a batch of `n`: the same for all ranks."""
        world = current().world
        most = max(n // world // self.least, 1)
        return min(-(-n // world // self.size), most) if self.size else 1

    def rows(self, n: int) -> int:
        """Return how many rows, at most, of a batch of `n` go through at once."""
        return (first := self.of(n)[0]).stop - first.start

    def of(self, n: int) -> list[slice]:
        """Return the rows of each pass, of a batch of `n`."""
        share = current().share(n)
        rows = pieces(share.stop - share.start, self.count(n))
        return [slice(share.start + part.start, share.start + part.stop) for part in rows]

    def tell(self, run: Run, step: int) -> None:
        """Tell the user and the log, once, that another size was chosen."""
        if self.changed:
            print(f"{run.folder}: step {step}: {self.changed}", flush=True)
            run.log(step, {"micro_batch": self.size})
            self.changed = ""

    def settle(self, n: int, play: Callable[[list[slice]], None], device: torch.device, held: int = 0) -> None:
        """Halve the rows of a pass until each of several ranks can `play` a step with a batch of `n`, before the first.

        In the midst of a step it would be too late: the others wait for what the rank that ran out of memory does not
        send, and do not know why. One process finds out as it goes. `play` is given this rank's rows of each pass; it
        asks no other rank and changes nothing. `held`: bytes that training will hold besides.
        """
        ranks = current()
        if ranks.world == 1 or device.type not in TRIED_FIRST:
            return
        ranks.sum(torch.zeros(1, device=device))  # nccl takes memory of its own with its first sum
        for trial in self.trials(n, agreed=True):
            parts = self.of(n)
            with trial, alone():
                _play_twice(play, parts, held, device)
            trial.out_of_memory = ranks.any(trial.out_of_memory)
        for network in self.networks:
            network.passes = 1  # as before; every trial says it again
        _give_back()

    def trials(self, n: int, agreed: bool = False) -> Iterator["Trial"]:
        """Yield trials of an update with a batch of `n`, each with half the rows a pass of the last.

        `for trial in passes.trials(n): with trial: ...`: an update changes weights with its last act, so that one that
        ran out of memory has changed none. InputError where a pass cannot be smaller, or other ranks would not know
        (unless `agreed`: they are told).
        """
        again = False
        while True:
            for network in self.networks:
                network.passes = self.count(n)
            yield (trial := Trial(again))
            if not trial.out_of_memory:
                return
            again, count = True, self.count(n)
            rows = -(-n // current().world // count)
            smaller = max(rows // 2, self.least)
            of_each = " of a process" if current().world > 1 else ""
            reason = f"the GPU's memory is too small for {rows} rows in a pass{of_each}"
            if Passes(smaller, least=self.least).count(n) == count:
                raise InputError(f"{reason}; use a smaller batch_size or networks (step_channels), or a larger GPU")
            if current().world > 1 and not agreed:
                raise InputError(f"{reason}; type the command again with --micro_batch {smaller}")
            self.size = smaller
            self.changed = f"{reason}: going on with --micro_batch {smaller}; the batch is still {n}"
            _give_back()


class Trial:
    """One trial of an update; `again`: it is not the first. Ends without an error where memory runs out."""

    def __init__(self, again: bool) -> None:
        self.again, self.out_of_memory = again, False

    def __enter__(self) -> "Trial":
        return self

    def __exit__(self, kind: type | None, *_: object) -> bool:
        self.out_of_memory = kind is not None and issubclass(kind, torch.OutOfMemoryError)
        return self.out_of_memory


def _play_twice(play: Callable[[list[slice]], None], parts: list[slice], held: int, device: torch.device) -> None:
    kept = torch.empty(held, dtype=torch.uint8, device=device)
    for _ in range(2):  # in the second, the gradients of the first are there
        play(parts)
    del kept


def _give_back() -> None:
    """Give the memory that freed tensors had back to the GPU, where it lies in pieces of the wrong sizes."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pieces(n: int, count: int) -> list[slice]:
    """Return n rows in `count` parts, as ranks share them, and torch.tensor_split's."""
    return [Ranks(i, count).share(n) for i in range(count)]


def in_passes(network: Callable[..., torch.Tensor], count: int, *inputs: torch.Tensor | None) -> torch.Tensor:
    """Return network(*inputs), computed `count` parts after another; in the backward pass each is computed again.

    So that only one part's intermediate results are held at a time. For networks that draw nothing themselves.
    """
    if count == 1:
        return network(*inputs)
    parts = zip(*([None] * count if x is None else x.tensor_split(count) for x in inputs), strict=True)
    return torch.cat([checkpoint(network, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])
