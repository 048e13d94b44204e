"""CQL for discrete actions: Conservative Q-Learning (Kumar, Zhou, Tucker & Levine, NeurIPS 2020)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from offlinerl.agents.base import setting
from offlinerl.agents.dqn import DQN, DQNConfig
from offlinerl.learning.seeds import per_seed
from offlinerl.types import Metrics


@dataclass(frozen=True)
class DiscreteCQLConfig(DQNConfig):
    alpha: float = setting(1.0, "weight of the conservative term, alpha in the paper", low=0, per_seed=True)
    double_q: bool = True


class DiscreteCQL(DQN):
    """Double DQN whose values are also pushed down where they are large and up on the dataset's actions: CQL(H) (paper,
    equation 4), with the Huber loss of DQN in place of half the squared error. The sum over all actions is exact."""

    config_class = DiscreteCQLConfig

    def further_terms(self, values: Tensor, q: Tensor) -> Metrics:
        gap = values.logsumexp(-1) - q  # [S, B]
        return dict(conservative_loss=per_seed(self.config.alpha, gap) * gap)
