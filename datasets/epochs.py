"""The order in which an epoch shows the rows of a table, in batches: of (seed, epoch) alone."""

import torch
from torch import Tensor

from common.run import generator_for


class Epochs:
    """The batches of each epoch over `n` rows; `at_most` of them, None: all. `steps`: how many."""

    def __init__(self, n: int, batch_size: int, seed: int, at_most: int | None = None) -> None:
        self.n, self.batch_size, self.seed, self.at_most = n, batch_size, seed, at_most
        self.steps = len(self.batches(0))

    def batches(self, epoch: int) -> list[Tensor]:
        """Return the row numbers of each batch of epoch 0, 1, 2..."""
        return epoch_batches(self.n, self.batch_size, self.seed, epoch)[: self.at_most]

    def of_step(self, step: int) -> Tensor:
        """Return the row numbers of step 1, 2, 3..."""
        epoch, number = divmod(step - 1, self.steps)
        return self.batches(epoch)[number]

    def shown(self, epoch: int, batch: int) -> int:
        """Return how many rows were shown before batch `batch` of `epoch`, in all."""
        return epoch * self.n + sum(map(len, self.batches(epoch)[:batch]))


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """Return the row numbers of each batch of an epoch: a permutation of (seed, epoch), in batches of `batch_size`.

    A last batch of a single row, which batch norm cannot use, joins the batch before it.
    """
    batches = list(torch.randperm(n, generator=generator_for(seed, "order", epoch)).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
