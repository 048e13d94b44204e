"""Running statistics to normalise by."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningNorm(nn.Module):
    """The mean and the variance of every dimension of all that was seen, a seed: what is to be normalised by them
    is ``[S, B, D]``. Before anything was seen it changes nothing.

    Chan, Golub & LeVeque, 1979, for the merging of two sets' moments.
    """

    def __init__(self, seeds: int, size: int, limit: float = 10.0):
        super().__init__()
        self.limit = limit
        # No buffers, for what each seed has of its own is a parameter, of which a part of a stack takes its share.
        self.mean = nn.Parameter(torch.zeros(seeds, 1, size), requires_grad=False)
        self.var = nn.Parameter(torch.ones(seeds, 1, size), requires_grad=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def see(self, x: Tensor) -> None:
        """Take ``[S, B, D]`` into account."""
        count, total = x.shape[1], self.count + x.shape[1]
        share = (count / total).to(x.dtype)
        mean = x.mean(1, keepdim=True)
        apart = (mean - self.mean).square()
        self.var += share * (x.var(1, correction=0, keepdim=True) - self.var + (1 - share) * apart)
        self.mean += share * (mean - self.mean)
        self.count.copy_(total)

    def scale(self, x: Tensor) -> Tensor:
        """In units of the deviation, and within the limit."""
        return (x * (self.var + 1e-8).rsqrt()).clamp(-self.limit, self.limit)

    def forward(self, x: Tensor) -> Tensor:
        """Likewise, from the mean on."""
        return self.scale(x - self.mean)
