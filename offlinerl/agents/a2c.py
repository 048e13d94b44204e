"""A2C: advantage actor-critic, the synchronous form of A3C (Mnih et al., ICML 2016)."""

from __future__ import annotations

from collections.abc import Sequence

from offlinerl.agents.base import Noise
from offlinerl.agents.policy_gradient import PolicyGradient, Sample
from offlinerl.learning import losses
from offlinerl.types import Metrics, Spec


class A2C(PolicyGradient):
    """One step of the policy and one of the value for every short rollout (paper, algorithm S3), with Adam where
    the paper has RMSProp.

    Args:
        spec: shapes and bounds of the task.
        seeds: S integers.
        lam: 1 is the paper's n-step return.
        lr: Adam's learning rate of the policy.
        value_lr: and of the value.

    The others are ``PolicyGradient``'s.
    """

    def __init__(
        self,
        spec: Spec,
        seeds: Sequence[int] = (0,),
        *,
        gamma: float = 0.99,
        lam: float = 1.0,
        lr: float = 7e-4,
        value_lr: float = 7e-4,
        entropy: float = 0.0,
        hidden: Sequence[int] = (64, 64),
        normalize_obs: bool = False,
        normalize_reward: bool = False,
        normalize_advantage: bool = False,
        max_grad_norm: float = 0.5,
        decay_steps: int | None = None,
    ):
        super().__init__(
            spec, seeds, gamma=gamma, lam=lam, lr=dict(policy=lr, value=value_lr), hidden=hidden,
            normalize_obs=normalize_obs, normalize_reward=normalize_reward, normalize_advantage=normalize_advantage,
            value_epochs=1, minibatch=None, entropy=entropy, max_grad_norm=max_grad_norm, decay_steps=decay_steps,
        )  # fmt: skip

    def improve(self, sample: Sample) -> Metrics:
        return self.passes(sample)

    def update(self, batch: Sample, noise: Noise, k: int) -> Metrics:
        policy = self.policy(batch.obs)
        loss = losses.policy_gradient(policy.log_prob(batch.action), self.advantage_of(batch))
        return self.descend_both(policy, loss, batch)
