"""TRPO: Trust Region Policy Optimisation (Schulman et al., ICML 2015)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from offlinerl.agents.base import setting
from offlinerl.agents.npg import NPG, NPGConfig
from offlinerl.types import Metrics


@dataclass(frozen=True)
class TRPOConfig(NPGConfig):
    backtracks: int = setting(10, "number of step lengths to try", low=1)
    shrink: float = setting(0.8, "ratio of each step length to the one before", above=0, below=1)


class TRPO(NPG):
    """A natural gradient step with a backtracking line search, until the surrogate improves and the KL divergence is at
    most ``max_kl`` (paper, appendix C). Each seed searches on its own, and takes no step if no length satisfies
    both."""

    config_class = TRPOConfig

    def search(self, at: Callable[[Tensor], tuple[Tensor, Tensor]], seeds: torch.Size) -> Metrics:
        share = torch.zeros(seeds, device=self.device)  # [S]
        for i in range(self.config.backtracks):
            tried = torch.where(share > 0, share, self.config.shrink**i)
            gain, kl = at(tried)
            share = torch.where((gain > 0) & (kl <= self.config.max_kl), tried, 0.0)
            if (share > 0).all():
                break
        else:
            gain, kl = at(share)
        return dict(gain=gain, kl=kl, step_share=share)
