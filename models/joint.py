"""Where the rows of a batch meet: statistics over all of it, also where several ranks have a share each.

Differentiable, so that a gradient (and a penalty's second derivative) is that of the whole batch. Torch's own
SyncBatchNorm does the first of this on GPUs only.
"""

import math

import torch
from torch import nn

from common.distributed import current
from common.joint_sums import joint_sum


def batch_moments(x: torch.Tensor, *more: int) -> tuple[torch.Tensor, torch.Tensor, int | torch.Tensor]:
    """Return mean, variance (biased), and over how many: over dimension 0 of `x`, the dimensions `more`, and the ranks.

    A rank's share may be empty. In two sums over the ranks: the difference of squares in one would lose digits.
    """
    dims = (0, *more)
    n = math.prod(x.shape[d] for d in dims)
    if current().world == 1:
        return x.mean(dims), x.var(dims, unbiased=False), n
    sums = x.sum(dims, keepdim=True)
    total = joint_sum(torch.cat([sums.flatten(), sums.new_full((1,), n)]))
    mean = total[:-1].view_as(sums) / total[-1]
    variance = joint_sum((x - mean).square().sum(dims)) / total[-1]
    return mean.view_as(variance), variance, total[-1]


class _Joint:
    """Batch norm over the shares of all ranks; with one process, or in eval mode, torch's own, and its state always."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if current().world == 1 or not self.training:
            return super().forward(x)
        mean, variance, n = batch_moments(x.float(), *range(2, x.ndim))
        with torch.no_grad():
            self.num_batches_tracked += 1
            momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * n / (n - 1), momentum)  # unbiased, as torch's
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        shape = (1, -1, *[1] * (x.ndim - 2))
        return (x * scale.view(shape) + shift.view(shape)).to(x.dtype)


class JointBatchNorm1d(_Joint, nn.BatchNorm1d):
    """Of rows (n, c)."""


class JointBatchNorm2d(_Joint, nn.BatchNorm2d):
    """Of images (n, c, h, w)."""
