"""Sums over the ranks: of gradients after a backward pass, and, differentiable, of what a batch's statistics need."""

from typing import Any

import torch

from common.distributed import current

BUCKET = 2**25  # numbers that are summed over the ranks at a time


def sum_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Sum the gradients of an optimiser's weights over the ranks, in buckets. Each has its share of a loss.

    Gradients that share a bucket are copied for it; one that fills a bucket alone is summed where it lies.
    """
    if current().world == 1:
        return
    bucket: list[torch.Tensor] = []
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    found = [weight.grad for weight in weights if weight.grad is not None]
    for i, grad in enumerate(found):
        bucket.append(grad)
        if i + 1 == len(found) or sum(g.numel() for g in bucket) + found[i + 1].numel() > BUCKET:
            _sum_bucket(bucket)
            bucket = []


def _sum_bucket(bucket: list[torch.Tensor]) -> None:
    if len(bucket) == 1:
        current().sum(bucket[0])
        return
    flat = current().sum(torch.cat([g.reshape(-1) for g in bucket]))
    for own, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
        own.copy_(part.view(own.shape))


class _JointSum(torch.autograd.Function):
    """The sum over the ranks. What all ranks' losses ask of it is in turn summed, and so on for second derivatives."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return current().sum(x.clone())

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> torch.Tensor:
        """The slope of all ranks' losses, of the same shape."""
        return _JointSum.apply(slope)


def joint_sum(x: torch.Tensor) -> torch.Tensor:
    """Return `x` summed over the ranks, differentiable as often as wanted: the loss is the sum of all ranks' losses."""
    return x if current().world == 1 else _JointSum.apply(x)
