"""Reductions over the processes that train one policy together, each on its part of every batch (data parallelism).

They are written so that a trace records them: a compiled update holds them as an uncompiled one does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor


def reduce_over_processes(x: Tensor, op: str) -> Tensor:
    """The "sum" or "max" of every entry over all processes, the same to the bit in each of them."""
    group, ops = torch.distributed.group.WORLD, torch.ops._c10d_functional
    assert group is not None, "there is no process group"
    return ops.wait_tensor(ops.all_reduce(x.contiguous(), op, group.group_name))


def mean_over_processes(tensors: Sequence[Tensor], processes: int) -> list[Tensor]:
    """The mean of each tensor over so many processes. All of them travel in one piece, for a message costs more than
    its content; and as a sum, for not every backend knows a mean."""
    total = reduce_over_processes(torch.cat([x.reshape(-1) for x in tensors]), "sum")
    pieces = (total / processes).split([x.numel() for x in tensors])
    return [piece.view_as(x) for piece, x in zip(pieces, tensors, strict=True)]
