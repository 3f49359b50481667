"""Work divided among the ranks: each unit is done by one of them, and all have the result, in the order of one process.

A unit is what one process does at a time (a batch of an extractor, a strip of tiles), so that the numbers of several
processes are those of one to the bit, where the processors are of one kind and have as many threads.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from common.checkpoint import content_digest
from common.distributed import current
from common.together import agree, together

T = TypeVar("T")
KINDS = (torch.float32, torch.float64, torch.uint8)  # of rows


def divided(
    names: Sequence[str], units: Sequence[T], work: Callable[[Sequence[T]], Iterable[dict[str, np.ndarray]]]
) -> dict[str, np.ndarray]:
    """Return rows (n, d) by name for all units, in their order: every rank does its share of them, each has all.

    `work` takes a rank's units and yields, for each in turn, {name: rows}. An error on one rank ends all of them after
    the unit that they are at.
    """
    ranks = current()
    mine = units[ranks.share(len(units))]
    with together() as group:
        done = list(group.steps(work(mine), rounds=-(-len(units) // ranks.world)))
    return {name: gathered([rows[name] for rows in done]) for name in names}


def gathered(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the rows (n, d) of all ranks, in their order; each hands in its parts (m, d), or none."""
    ranks = current()
    if ranks.world == 1:
        return np.concatenate(parts)
    rows = torch.from_numpy(np.concatenate(parts)) if parts else None
    own = [-1, -1] if rows is None else [rows.shape[1], KINDS.index(rows.dtype)]
    width, kind = torch.stack(ranks.gather(torch.tensor([own]))).amax((0, 1)).tolist()  # of those that have rows
    rows = torch.empty((0, width), dtype=KINDS[kind]) if rows is None else rows
    return torch.cat(ranks.gather(rows)).numpy()


def agree_on(what: str, about: Any) -> None:
    """InputError, naming a rank, where one has opened something else than rank 0: `about`, in numbers and words."""
    agree(what, f"content {content_digest(about)[:12]}")


def from_main(values: np.ndarray) -> np.ndarray:
    """Return rank 0's values, on every rank; the others' say of what type and trailing dimensions they are."""
    ranks = current()
    if ranks.world == 1:
        return values
    return ranks.gather(torch.from_numpy(values if ranks.main else values[:0]))[0].numpy()
