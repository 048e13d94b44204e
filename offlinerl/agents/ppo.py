"""PPO: Proximal Policy Optimisation (Schulman et al., 2017, arXiv 1707.06347)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from offlinerl.agents.base import Noise, fixed, setting
from offlinerl.agents.policy_gradient import PolicyGradient, PolicyGradientConfig, Sample
from offlinerl.learning import losses
from offlinerl.types import Metrics

PENALTIES = (1e-3, 1e3)
"""Bounds of the coefficient of the KL penalty, from which it returns to 1 within ten rollouts."""


@dataclass(frozen=True)
class PPOConfig(PolicyGradientConfig):
    lr: float = setting(3e-4, "Adam's learning rate of the policy and the value function", above=0, per_seed=True)
    epochs: int = setting(10, "passes over a rollout", low=1)
    value_epochs: None = fixed(None)
    minibatch: int = setting(64, "rows per gradient step; advantages are normalised over them, which needs two", low=2)
    clip: float = setting(0.2, "clipping range of the probability ratio around 1 (paper, equation 7)", above=0)
    target_kl: float | None = setting(
        None, "target of the adaptive penalty on the KL divergence, in nats per rollout (paper, section 4)", above=0
    )
    max_grad_norm: float | None = 0.5


class PPO(PolicyGradient):
    """Several passes over a rollout with a clipped surrogate objective (paper, algorithm 1).

    With ``target_kl``, a KL penalty is added to the clipping; each seed's coefficient is doubled or halved after a
    rollout to keep the divergence near the target.
    """

    config_class = PPOConfig

    def build(self) -> None:
        super().build()
        self.register_buffer("penalty", torch.ones(len(self.seeds), 1))  # [S, 1] coefficient of the KL penalty

    def configure_optimizers(self):
        return self.adam(self.config.lr, self.EPS, policy=self.policy, value=self.value)

    @property
    def epochs(self) -> int:
        return self.config.epochs

    def improve(self, sample: Sample) -> Metrics:
        metrics = self.passes(sample)
        with torch.no_grad():
            kl = losses.sampled_kl(self.policy(sample.obs).log_prob(sample.action), sample.old_log_prob).mean(-1)
        if self.config.target_kl is not None:
            far = torch.where(kl > 1.5 * self.config.target_kl, 2.0, 1.0)
            near = torch.where(kl < self.config.target_kl / 1.5, 0.5, 1.0)
            self.penalty.mul_((far * near).unsqueeze(-1)).clamp_(*PENALTIES)
        return metrics | dict(kl=kl)

    def draw(self, batch_size: int) -> Noise:
        return {} if self.config.target_kl is None else dict(penalty=self.penalty)

    def update(self, batch: Sample, noise: Noise, k: int) -> Metrics:
        policy = self.policy(batch.obs)
        log_prob = policy.log_prob(batch.action)  # [S, B]
        loss = losses.ppo_clip(log_prob, batch.old_log_prob, self.advantage_of(batch), self.config.clip)
        if "penalty" in noise:
            loss = loss + noise["penalty"] * losses.sampled_kl(log_prob, batch.old_log_prob)
        return self.descend_both(policy, loss, batch)
