"""PPO: Proximal Policy Optimisation (Schulman et al., 2017, arXiv 1707.06347)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from offlinerl.agents.base import Noise
from offlinerl.agents.policy_gradient import PolicyGradient, Sample
from offlinerl.learning import losses
from offlinerl.types import Metrics, Spec


class PPO(PolicyGradient):
    """Several passes over a rollout with a surrogate that gains nothing by going far (paper, algorithm 1).

    Args:
        spec: shapes and bounds of the task.
        seeds: S integers.
        lr: Adam's learning rate of policy and value.
        epochs: passes over a rollout.
        minibatch: rows of a step.
        clip: how far the ratio of probabilities may leave 1 with gain (paper, equation 7).
        target_kl: if given, a penalty on the KL divergence whose coefficient, one a seed, doubles or halves so as to
            keep it near this, in nats a rollout (paper, section 4), besides the clip.

    The others are ``PolicyGradient``'s.
    """

    def __init__(
        self,
        spec: Spec,
        seeds: Sequence[int] = (0,),
        *,
        gamma: float = 0.99,
        lam: float = 0.95,
        lr: float = 3e-4,
        epochs: int = 10,
        minibatch: int = 64,
        clip: float = 0.2,
        target_kl: float | None = None,
        entropy: float = 0.0,
        hidden: Sequence[int] = (64, 64),
        normalize_obs: bool = False,
        normalize_reward: bool = False,
        normalize_advantage: bool = True,
        max_grad_norm: float = 0.5,
        decay_steps: int | None = None,
    ):
        super().__init__(
            spec, seeds, gamma=gamma, lam=lam, lr=lr, hidden=hidden, normalize_obs=normalize_obs,
            normalize_reward=normalize_reward, normalize_advantage=normalize_advantage, value_epochs=epochs,
            minibatch=minibatch, entropy=entropy, max_grad_norm=max_grad_norm, decay_steps=decay_steps,
        )  # fmt: skip
        self.clip, self.target_kl = clip, target_kl
        self.register_buffer("penalty", torch.ones(len(self.seeds), 1))  # [S, 1] coefficient of the divergence

    def improve(self, sample: Sample) -> Metrics:
        metrics = self.passes(sample)
        with torch.no_grad():
            kl = losses.sampled_kl(self.policy(sample.obs).log_prob(sample.action), sample.old_log_prob).mean(-1)
        if self.target_kl is not None:
            far = torch.where(kl > 1.5 * self.target_kl, 2.0, 1.0)
            near = torch.where(kl < self.target_kl / 1.5, 0.5, 1.0)
            self.penalty *= (far * near).unsqueeze(-1)
        return metrics | dict(kl=kl)

    def draw(self, batch_size: int) -> Noise:
        return {} if self.target_kl is None else dict(penalty=self.penalty)

    def update(self, batch: Sample, noise: Noise, k: int) -> Metrics:
        policy = self.policy(batch.obs)
        log_prob = policy.log_prob(batch.action)  # [S, B]
        loss = losses.ppo_clip(log_prob, batch.old_log_prob, self.advantage_of(batch), self.clip)
        if "penalty" in noise:
            loss = loss + noise["penalty"] * losses.sampled_kl(log_prob, batch.old_log_prob)
        return self.descend_both(policy, loss, batch)
