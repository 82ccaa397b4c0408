"""Batch normalisation whose statistics are those of the whole batch, however many processes share it."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d`; when several processes train, mean and variance are taken over all of them.

    PyTorch's own `SyncBatchNorm` needs GPUs; this one needs only a differentiable sum. The processes may hold
    different numbers of rows.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        from torch.distributed.nn.functional import all_reduce  # slow to import, and few need it

        values = x.float()
        sums = all_reduce(_with_count(values.sum(0), len(x)))
        count = sums[-1]
        mean = sums[:-1] / count
        centred = values - mean
        variance = all_reduce(centred.square().sum(0)) / count
        self.follow(mean.detach(), (variance * count / (count - 1)).detach())
        normed = centred * (variance + self.eps).rsqrt()
        return (normed * self.weight + self.bias).to(x.dtype)

    def follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics as the parent does: unbiased variance, a plain mean if momentum is None."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def _with_count(sums: Tensor, count: int) -> Tensor:
    """A sum and how many rows it is of, in one tensor: one message instead of two."""
    return nn.functional.pad(sums, (0, 1), value=float(count))


def sum_over_processes(values: Tensor) -> Tensor:
    """In place and without gradients; nothing when this process trains alone."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values
