"""A2C: advantage actor-critic, the synchronous form of A3C (Mnih et al., ICML 2016)."""

from __future__ import annotations

from dataclasses import dataclass

from offlinerl.agents.base import Noise, fixed, setting
from offlinerl.agents.policy_gradient import PolicyGradient, PolicyGradientConfig, Sample
from offlinerl.learning import losses
from offlinerl.types import Metrics


@dataclass(frozen=True)
class A2CConfig(PolicyGradientConfig):
    lam: float = setting(1.0, "lambda of generalised advantage estimation; 1: the paper's n-step return", low=0, high=1)
    lr: float = setting(7e-4, "Adam's learning rate of the policy", above=0, per_seed=True)
    value_lr: float = setting(7e-4, "Adam's learning rate of the value function", above=0, per_seed=True)
    normalize_advantage: bool = False
    value_epochs: int = fixed(1)
    minibatch: int | None = fixed(None)
    max_grad_norm: float | None = 0.5


class A2C(PolicyGradient):
    """One gradient step of the policy and the value function for every short rollout (paper, algorithm S3), with Adam
    instead of the paper's RMSProp."""

    config_class = A2CConfig

    def improve(self, sample: Sample) -> Metrics:
        return self.passes(sample)

    def update(self, batch: Sample, noise: Noise, k: int) -> Metrics:
        policy = self.policy(batch.obs)
        loss = losses.policy_gradient(policy.log_prob(batch.action), self.advantage_of(batch))
        return self.descend_both(policy, loss, batch)
