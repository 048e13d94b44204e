"""REINFORCE (Williams, 1992), with reward-to-go and a baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from offlinerl.agents.policy_gradient import PolicyGradient, Sample
from offlinerl.learning import losses
from offlinerl.types import Batch, Metrics, Spec
from offlinerl.util.errors import UserError


class REINFORCE(PolicyGradient):
    """One step up the policy gradient, estimated by what followed each action, for every rollout.

    Without a learnt value nothing tells what would have followed where a rollout is cut, so that only the steps of
    finished episodes count then.

    Args:
        spec: shapes and bounds of the task.
        seeds: S integers.
        gamma: discount factor of the rewards to go.
        baseline: "none"; "average", the moving average of the returns; or "value", a learnt one.
        baseline_rate: of that average, a rollout.
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
        baseline: str = "value",
        baseline_rate: float = 0.1,
        lr: float = 1e-2,
        value_lr: float = 1e-3,
        entropy: float = 0.0,
        hidden: Sequence[int] = (64, 64),
        normalize_obs: bool = False,
        normalize_reward: bool = False,
        normalize_advantage: bool = False,
        value_epochs: int = 10,
        minibatch: int = 128,
        max_grad_norm: float = 10.0,
        decay_steps: int | None = None,
    ):
        super().__init__(
            spec, seeds, gamma=gamma, lam=1.0, lr=dict(policy=lr, value=value_lr), hidden=hidden,
            normalize_obs=normalize_obs, normalize_reward=normalize_reward, normalize_advantage=normalize_advantage,
            value_epochs=value_epochs, minibatch=minibatch, entropy=entropy, max_grad_norm=max_grad_norm,
            decay_steps=decay_steps,
        )  # fmt: skip
        if normalize_advantage and baseline != "value":
            raise UserError("normalize_advantage takes a mean away, as a baseline does: it needs baseline: value")
        self.kind, self.baseline_rate = baseline, baseline_rate
        self.register_buffer("average", torch.zeros(len(self.seeds), 1))  # [S, 1] of the returns so far

    def improve(self, sample: Sample) -> Metrics:
        policy = self.policy(sample.obs)
        loss = losses.policy_gradient(policy.log_prob(sample.action), self.advantage_of(sample))
        metrics = dict(policy_loss=self.descend("policy", self.policy_loss(policy, loss), self.max_grad_norm))
        self.updates += 1
        return metrics | (self.passes(sample) if self.kind == "value" else {})

    def compute_advantages(self, rollout: Batch) -> Sample:
        sample = super().compute_advantages(rollout)
        if self.kind == "value":
            return sample
        # 1 at every step after which an episode ends within the rollout
        finished = losses.accumulate(rollout.last, 1 - rollout.last).flatten(1)  # [S, B]
        share = finished.mean(-1, keepdim=True).clamp(min=1e-8)
        returns, against = sample.target, self.average if self.kind == "average" else 0.0
        advantage = finished * (returns - against) / share
        mean = (finished * returns).mean(-1, keepdim=True) / share
        self.average.lerp_(mean, self.baseline_rate * finished.amax(-1, keepdim=True))
        return sample._replace(advantage=advantage)

    def baseline(self, obs: Tensor) -> Tensor:
        return super().baseline(obs) if self.kind == "value" else obs.new_zeros(obs.shape[:-1])
