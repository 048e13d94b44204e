"""REINFORCE (Williams, 1992), with reward-to-go and a baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from offlinerl.agents.base import fixed, setting
from offlinerl.agents.policy_gradient import PolicyGradient, PolicyGradientConfig, Sample
from offlinerl.learning import losses
from offlinerl.types import Batch, Metrics
from offlinerl.util.errors import UserError


@dataclass(frozen=True)
class REINFORCEConfig(PolicyGradientConfig):
    lam: float = fixed(1.0)
    baseline: str = setting(
        "value", "what is subtracted from the returns: nothing, their moving average or a learned value function",
        choices=("none", "average", "value"),
    )  # fmt: skip
    baseline_rate: float = setting(0.1, "update rate of the moving average, per rollout", above=0, high=1)
    lr: float = setting(1e-2, "Adam's learning rate of the policy", above=0, per_seed=True)
    value_lr: float = setting(1e-3, "Adam's learning rate of the value function", above=0, per_seed=True)
    normalize_advantage: bool = False
    max_grad_norm: float | None = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalize_advantage and self.baseline != "value":
            raise UserError(
                "normalize_advantage subtracts a mean, which is a baseline itself: it needs baseline: value"
            )


class REINFORCE(PolicyGradient):
    """One gradient step of the policy for every rollout, by the policy gradient with reward-to-go.

    Without a learned value function there is nothing to bootstrap from where a rollout is cut, so that only the steps
    of finished episodes count.
    """

    config_class = REINFORCEConfig

    def build(self) -> None:
        super().build()
        self.register_buffer("average", torch.zeros(len(self.seeds), 1))  # [S, 1] moving average of returns

    def improve(self, sample: Sample) -> Metrics:
        policy = self.policy(sample.obs)
        loss = losses.policy_gradient(policy.log_prob(sample.action), self.advantage_of(sample))
        metrics = dict(policy_loss=self.descend("policy", self.policy_loss(policy, loss), self.config.max_grad_norm))
        self.updates += 1
        return metrics | (self.passes(sample) if self.config.baseline == "value" else {})

    def compute_advantages(self, rollout: Batch) -> Sample:
        sample = super().compute_advantages(rollout)
        if self.config.baseline == "value":
            return sample
        # 1 at every step of an episode that ends within the rollout
        finished = losses.accumulate(rollout.last, 1 - rollout.last).flatten(1)  # [S, B]
        share = finished.mean(-1, keepdim=True).clamp(min=1e-8)
        returns, against = sample.target, self.average if self.config.baseline == "average" else 0.0
        advantage = finished * (returns - against) / share
        mean = (finished * returns).mean(-1, keepdim=True) / share
        self.average.lerp_(mean, self.config.baseline_rate * finished.amax(-1, keepdim=True))
        return sample._replace(advantage=advantage)

    def baseline(self, obs: Tensor) -> Tensor:
        return super().baseline(obs) if self.config.baseline == "value" else obs.new_zeros(obs.shape[:-1])
