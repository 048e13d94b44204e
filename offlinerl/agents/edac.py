"""EDAC: uncertainty-based offline RL with a diversified Q-ensemble (An, Moon, Kim & Song, NeurIPS 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from offlinerl.agents.base import fixed, setting
from offlinerl.agents.sac import SAC, SACConfig
from offlinerl.learning import losses
from offlinerl.types import Batch, Metrics


@dataclass(frozen=True)
class EDACConfig(SACConfig):
    critics: int = setting(10, "number of critics; the targets and the actor take their minimum", low=2)
    eta: float = setting(1.0, "weight of the critics' diversity; 0: SAC-N", low=0, per_seed=True)
    hidden: tuple[int, ...] = (256, 256, 256)
    n_step: int = fixed(1)


class EDAC(SAC):
    """SAC with many critics, whose minimum is low where they disagree, as they do on actions outside the data. So that
    fewer of them suffice, they are kept from agreeing there: their gradients with respect to the action should not be
    aligned (paper, algorithm 1 and equation 4). As in the authors' code, the squared errors are not halved.
    """

    config_class = EDACConfig

    def regress(self, batch: Batch, target: Tensor) -> Metrics:
        q, slopes = self.critic.with_slopes(batch.obs, batch.action)  # [S, N, B] and [S, N, B, A]
        error = target.unsqueeze(1) - q  # [S, N, B]
        alignment = losses.alignment(slopes)  # [S, B]
        loss = self.weighted(batch, losses.squared(error).sum(1)) + self.config.eta * alignment
        critic_loss, q = self.descend("critic", loss), q.detach()
        cosine = alignment.detach().mean(-1) / self.config.critics
        return dict(
            critic_loss=critic_loss, q=q.mean((1, 2)), spread=q.std(1).mean(-1), alignment=cosine,
            priority=error.detach().abs().mean(1),
        )  # fmt: skip
