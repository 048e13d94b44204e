"""TRPO: Trust Region Policy Optimisation (Schulman et al., ICML 2015)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from offlinerl.agents.npg import NPG
from offlinerl.types import Metrics, Spec


class TRPO(NPG):
    """The natural gradient's step, shortened until the surrogate gains and the KL divergence is at most ``max_kl``
    (paper, appendix C): each seed by itself, and not at all where nothing of it will do.

    Args:
        backtracks: lengths to try.
        shrink: each is so much of the one before.

    The others are NPG's.
    """

    def __init__(
        self,
        spec: Spec,
        seeds: Sequence[int] = (0,),
        *,
        backtracks: int = 10,
        shrink: float = 0.8,
        **settings: Any,
    ):
        super().__init__(spec, seeds, **settings)
        self.backtracks, self.shrink = backtracks, shrink

    def search(self, at: Callable[[Tensor], tuple[Tensor, Tensor]], seeds: torch.Size) -> Metrics:
        share = torch.zeros(seeds, device=self.device)  # [S]
        for i in range(self.backtracks):
            tried = torch.where(share > 0, share, self.shrink**i)
            gain, kl = at(tried)
            share = torch.where((gain > 0) & (kl <= self.max_kl), tried, 0.0)
            if (share > 0).all():
                break
        else:
            gain, kl = at(share)
        return dict(gain=gain, kl=kl, step_share=share)
