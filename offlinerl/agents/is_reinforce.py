"""Off-policy REINFORCE: the policy gradient estimated from another policy's episodes by importance sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offlinerl.agents.base import Agent, Config, Noise, setting
from offlinerl.learning import losses
from offlinerl.nn.actors import stochastic_policy
from offlinerl.nn.layers import soft_update
from offlinerl.types import ACTION_MARGIN, Batch, Metrics
from offlinerl.util.trees import tree_map


@dataclass(frozen=True)
class ISREINFORCEConfig(Config):
    gamma: float = setting(0.99, "discount factor per step", low=0, high=1)
    lr: float = setting(3e-4, "Adam's learning rate of the policy", above=0, per_seed=True)
    behavior_lr: float = setting(1e-3, "Adam's learning rate of the behaviour clone", above=0, per_seed=True)
    behavior_updates: int = setting(2_000, "updates for which the behaviour clone is trained before the policy", low=0)
    self_normalized: bool = setting(
        True, "divide the importance weights of a step by their mean over the batch: less variance, some bias"
    )
    max_weight: float = setting(
        100.0, "upper bound of an importance weight; inf: no bound", above=0, choices=(float("inf"),)
    )
    entropy: float = setting(0.0, "coefficient of the policy's entropy, in units of reward", low=0)
    hidden: tuple[int, ...] = setting((64, 64), "sizes of the hidden layers")
    max_grad_norm: float | None = setting(10.0, "maximum gradient norm per seed; null: no limit", above=0)


class ISREINFORCE(Agent):
    """Maximises ``sum_t gamma^t w_t r_t``, an estimate of the policy's return from the dataset's episodes, where
    ``w_t`` is the likelihood ratio of the first t steps, policy over behaviour (Precup, Sutton & Singh, ICML 2000).

    The behaviour's probabilities come from a behaviour clone (Hanna, Niekum & Stone, ICML 2019), which also initialises
    the policy. As the policy moves away from the data, the weights explode or vanish: watch ``effective_episodes``, at
    most B, and ``largest_weight``. Self-normalised weights are weighted importance sampling.
    """

    config_class = ISREINFORCEConfig
    kinds = ("episodes",)
    divisible = False
    discrete = None

    LATER = ("policy_loss", "effective_episodes", "largest_weight", "mean_weight")
    """Metrics of the updates after behaviour cloning."""

    def build(self) -> None:
        for name in ("policy", "behavior"):
            policy = stochastic_policy(self.spec, self.encoder(name), self.config.hidden, self.init_rng(name))
            self.add_module(name, policy)
        soft_update(self.policy, self.behavior, 1.0)

    def configure_optimizers(self):
        rates = dict(policy=self.config.lr, behavior=self.config.behavior_lr)
        return self.adam(rates, policy=self.policy, behavior=self.behavior)

    def phase(self) -> int:
        """0 during behaviour cloning, then 1."""
        return int(self.updates >= self.config.behavior_updates)

    def update(self, batch: Batch, noise: Noise, k: int) -> Metrics:
        B, T = batch.reward.shape[1:]
        obs, action = (tree_map(lambda x: x.flatten(1, 2), x) for x in (batch.obs, batch.action))  # [S, B T, ...]
        mask = torch.ones_like(batch.last)  # [S, B, T]  1 up to the last step of an episode, 0 after it
        mask[..., 1:] = (1 - batch.last[..., :-1]).cumprod(-1)
        behavior = self.log_likelihood(self.behavior(obs), action).unflatten(1, (B, T))
        if k == 0:
            likelihood = (mask * behavior).sum(-1) / mask.sum((1, 2)).unsqueeze(-1) * B  # [S, B], of a step
            loss = self.descend("behavior", -likelihood)
            soft_update(self.policy, self.behavior, 1.0)
            return dict(behavior_loss=loss) | dict.fromkeys(self.LATER, torch.full_like(loss, torch.nan))
        policy = self.policy(obs)
        log_ratio = mask * (self.log_likelihood(policy, action).unflatten(1, (B, T)) - behavior.detach())
        expected, weight = self.expected_return(log_ratio, mask * batch.reward)  # [S, B], [S, B, T]
        entropy = (mask * policy.entropy().unflatten(1, (B, T))).sum(-1)
        loss = self.descend("policy", -expected - self.config.entropy * entropy, self.config.max_grad_norm)
        whole = log_ratio.detach().sum(-1)  # [S, B], of an episode
        found = loss, losses.effective_sample_size(whole), whole.amax(-1).exp(), weight.detach().mean((1, 2))
        return dict(zip(self.LATER, found, strict=True))

    def log_likelihood(self, policy: Any, action: Tensor) -> Tensor:
        """``[S, B T]``, of the actions that a policy takes in the environment: samples beyond a bound are clipped to
        it, so that an action on a bound has the probability of all of them."""
        if self.spec.num_actions:
            return policy.log_prob(action)
        taken = self.to_env(action / (1 - ACTION_MARGIN))
        return self.log_prob_under(policy, taken).to(action)

    def expected_return(self, log_ratio: Tensor, reward: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted return of each episode, ``[S, B]``, whose mean estimates the policy's return, and the weights,
        ``[S, B, T]``; both arguments are ``[S, B, T]``."""
        weight = losses.trajectory_weights(log_ratio, self.config.max_weight, self.config.self_normalized)
        discount = self.gamma ** torch.arange(reward.shape[-1], device=reward.device)
        return (discount * weight * reward).sum(-1), weight

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        action = self.policy.act(obs, self.exploring(obs) if explore else None)
        return action if self.spec.num_actions else self.to_env(action.clamp(-1, 1))

    def log_prob(self, obs: Tensor, action: Tensor, explore: bool = False) -> Tensor:
        return self.log_prob_under(self.policy(obs), action)
