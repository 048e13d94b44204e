"""Normalisation by running statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningNorm(nn.Module):
    """Normalises ``[S, B, D]`` by the running mean and variance of every dimension, separately per seed. Before the
    first ``see`` the mean is 0 and the variance 1.

    Chan, Golub & LeVeque, 1979, for merging the moments of two sets.
    """

    def __init__(self, seeds: int, size: int, limit: float = 10.0):
        super().__init__()
        self.limit = limit
        # Parameters rather than buffers, so that a part of the seeds gets its slice of them; see ``Agent.part``.
        self.mean = nn.Parameter(torch.zeros(seeds, 1, size), requires_grad=False)
        self.var = nn.Parameter(torch.ones(seeds, 1, size), requires_grad=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def see(self, x: Tensor) -> None:
        """Update the statistics with ``[S, B, D]``."""
        count, total = x.shape[1], self.count + x.shape[1]
        share = (count / total).to(x.dtype)
        mean = x.mean(1, keepdim=True)
        apart = (mean - self.mean).square()
        self.var += share * (x.var(1, correction=0, keepdim=True) - self.var + (1 - share) * apart)
        self.mean += share * (mean - self.mean)
        self.count.copy_(total)

    def scale(self, x: Tensor) -> Tensor:
        """Divide by the standard deviation and clip to the limit."""
        return (x * (self.var + 1e-8).rsqrt()).clamp(-self.limit, self.limit)

    def forward(self, x: Tensor) -> Tensor:
        """Subtract the mean, divide by the standard deviation and clip to the limit."""
        return self.scale(x - self.mean)
