"""What one rank cannot do, none goes on with: a fault of one rank reaches the others, and is said once."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import TypeVar

import torch

from common.distributed import current
from common.errors import Elsewhere, InputError, Stopped, exit_status

T = TypeVar("T")


class Together:
    """Several ranks at one piece of work, with places where each learns whether another has failed."""

    def check(self, status: int = 0) -> None:
        """Tell the other ranks this one's exit status (0: it goes on). Elsewhere where another has failed.

        Where several have, the first of them speaks. All ranks check equally often; a lost rank is an error here.
        """
        ranks = current()
        if ranks.world == 1:
            return
        said = torch.zeros(ranks.world, dtype=torch.int64)
        said[ranks.rank] = status
        failed = [rank for rank, status in enumerate(ranks.sum(said).tolist()) if status]
        if failed and failed[0] != ranks.rank:
            raise Elsewhere(int(said[failed[0]]))

    def steps(self, items: Iterable[T], rounds: int) -> Iterator[T]:
        """Yield the items and check after each, `rounds` times in all, also where there are fewer items."""
        done = 0
        for item in items:
            yield item
            self.check()
            done += 1
        for _ in range(rounds - done):
            self.check()


@contextmanager
def together(main_first: bool = False) -> Iterator[Together]:
    """Do what is inside on all ranks, or, where it fails on one, leave it on all: the first of those speaks.

    `main_first`: rank 0 is done before the others begin, so that they find what it leaves (a parsed table). An
    interruption is not told: it reaches every rank by itself, or the others miss this one.
    """
    group, main = Together(), current().main
    try:
        if main_first and not main:
            group.check()
        yield group
        if main_first and main:
            group.check()
    except (Elsewhere, Stopped):
        raise
    except Exception as error:
        group.check(exit_status(error))
        raise
    group.check()


def agree(what: str, value: str | float) -> None:
    """InputError, naming a rank, where not all ranks have the same `value` as rank 0."""
    codes = [p.tolist() for p in current().gather(torch.tensor(list(str(value).encode()), dtype=torch.uint8))]
    if differ := [rank for rank, code in enumerate(codes) if code != codes[0]]:
        pairs = [bytes(codes[k]).decode(errors="replace") for k in (0, differ[0])]
        same = (x == y for x, y in zip(*pairs, strict=False))
        first = max(sum(takewhile(bool, same)) - 30, 0)
        here, there = (text[first : first + 60] for text in pairs)
        raise InputError(
            f"{what}: rank 0 has {here}, rank {differ[0]} has {there}; all machines must see the same files and have "
            "the same versions"
        )
