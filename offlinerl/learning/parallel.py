"""Reductions over the processes of data-parallel training, in which each process learns from its part of every batch.

Tracing records them as operations, so that they are also part of a compiled update.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor


def reduce_over_processes(x: Tensor, op: str) -> Tensor:
    """The "sum" or "max" of every entry over all processes, bitwise identical in each of them."""
    group, ops = torch.distributed.group.WORLD, torch.ops._c10d_functional
    assert group is not None, "there is no process group"
    return ops.wait_tensor(ops.all_reduce(x.contiguous(), op, group.group_name))


def mean_over_processes(tensors: Sequence[Tensor], processes: int) -> list[Tensor]:
    """The mean of each tensor over all processes. The tensors are sent as one message, since latency dominates, and
    reduced as a sum, since not every backend supports a mean."""
    total = reduce_over_processes(torch.cat([x.reshape(-1) for x in tensors]), "sum")
    pieces = (total / processes).split([x.numel() for x in tensors])
    return [piece.view_as(x) for piece, x in zip(pieces, tensors, strict=True)]
