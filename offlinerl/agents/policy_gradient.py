"""The base of policy-gradient algorithms: advantages from rollouts, and a value function fitted to the returns."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from offlinerl.agents.base import Agent, Config, Noise, setting
from offlinerl.learning import losses
from offlinerl.learning.seeds import per_seed
from offlinerl.nn.actors import stochastic_policy
from offlinerl.nn.critics import Value
from offlinerl.nn.layers import orthogonal
from offlinerl.nn.normalize import RunningNorm
from offlinerl.types import Batch, Metrics
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_map


class Sample(NamedTuple):
    """The B = E T steps of a rollout, as an agent learns from them."""

    obs: Tensor  # [S, B, O]  normalised if the agent normalises observations
    action: Tensor  # [S, B, A]  as sampled by the policy, possibly out of bounds
    old_log_prob: Tensor  # [S, B]  under the policy that collected the rollout
    advantage: Tensor  # [S, B]
    target: Tensor  # [S, B]  regression target of the value function


@dataclass(frozen=True)
class PolicyGradientConfig(Config):
    gamma: float = setting(0.99, "discount factor per step", low=0, high=1, per_seed=True)
    lam: float = setting(0.95, "lambda of generalised advantage estimation; 1: Monte-Carlo returns", low=0, high=1)
    hidden: tuple[int, ...] = setting(
        (64, 64), "sizes of the hidden layers of the policy and of the value function, which are separate networks"
    )
    normalize_obs: bool = setting(False, "normalise observations by their running mean and standard deviation")
    normalize_reward: bool = setting(False, "divide rewards by the running standard deviation of the discounted return")
    normalize_advantage: bool = setting(
        True, "normalise advantages to mean 0 and standard deviation 1 in every seed's rollout or minibatch"
    )
    value_epochs: int = setting(10, "passes over a rollout to fit the value function", low=1)
    minibatch: int = setting(128, "rows per gradient step of the value function", low=1)
    entropy: float = setting(0.0, "coefficient of the policy's entropy, in units of the advantage", low=0)
    max_grad_norm: float | None = setting(
        None,
        "maximum gradient norm per seed, of policy and value function together if they share a step; null: no limit",
        above=0,
    )
    decay_steps: int | None = setting(
        None,
        "steps over which the learning rates fall linearly to zero; `updates`: the whole run",
        low=1,
        choices=("updates",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalize and self.normalize_obs:
            raise UserError("normalize and normalize_obs would normalise observations twice: use only one of them")


class PolicyGradient(Agent):
    """An algorithm defines ``improve``, and ``update`` if its policy takes gradient steps on minibatches.

    Observations are normalised by statistics of all earlier rollouts, so that the policy is the same function while it
    collects a rollout and while it learns from it. Rewards are divided by the standard deviation of the discounted
    return, as in PPO's code (Engstrom et al., ICLR 2020).

    Besides those of ``PolicyGradientConfig``, its settings include ``lr`` of the policy and ``value_lr``.
    """

    config_class = PolicyGradientConfig
    EPS = 1e-5
    """Adam's epsilon, as in PPO's code. Scaled rewards make the gradients of the value function small, and clipping
    them jointly with the policy's makes them smaller still: in its hidden layers they approach this epsilon, which
    slows learning."""

    kinds = ("rollouts",)
    discrete = None

    def build(self) -> None:
        S, hidden = len(self.seeds), self.config.hidden
        self.policy = stochastic_policy(self.spec, self.encoder("policy"), hidden, self.init_rng("policy"))
        self.value = Value(
            self.encoder("value"),
            hidden,
            self.init_rng("value"),
            last_init=partial(orthogonal, gain=1.0),
            activation=torch.tanh,
        )
        self.obs_norm = RunningNorm(S, self.kept_spec.obs_dim)
        self.return_norm = RunningNorm(S, 1)
        self.running = torch.zeros(S, 1)  # [S, E] discounted return of the current episode so far

    def configure_optimizers(self):
        rates = dict(policy=self.config.lr, value=self.config.value_lr)
        return self.adam(rates, self.EPS, policy=self.policy, value=self.value)

    @property
    def epochs(self) -> int:
        """Number of passes over a rollout in minibatches."""
        return self.config.value_epochs

    # What an algorithm defines

    @abstractmethod
    def improve(self, sample: Sample) -> Metrics:
        """Update the policy and the value function on a rollout."""

    def update(self, batch: Sample, noise: Noise, k: int) -> Metrics:
        """One gradient step of the value function on a minibatch."""
        return dict(value_loss=self.descend("value", self.value_loss(batch), self.config.max_grad_norm))

    # What this class provides

    def value_loss(self, batch: Sample) -> Tensor:
        """Squared error of the value function, ``[S, B]``."""
        return losses.squared(batch.target - self.value(batch.obs))

    def policy_loss(self, policy: Distribution, loss: Tensor) -> Tensor:
        """A policy loss ``[S, B]`` minus the entropy bonus."""
        return loss - self.config.entropy * policy.entropy()

    def descend_both(self, policy: Distribution, loss: Tensor, batch: Sample) -> Metrics:
        """One gradient step of the policy on a loss ``[S, B]`` and of the value function on half its squared error,
        clipped jointly as one loss (PPO, equation 9, with the coefficient of stable-baselines3)."""
        both = dict(policy=self.policy_loss(policy, loss), value=0.5 * self.value_loss(batch))
        found = self.descend_together(both, self.config.max_grad_norm)
        return dict(policy_loss=found["policy"], value_loss=2 * found["value"])

    def learn(self, block: Batch) -> tuple[Metrics, None]:
        """Learn from one rollout, ``[1, S, E, T, ...]``."""
        self.prepare()
        rollout = tree_map(lambda x: x[0], block)
        self.linear(self.config.decay_steps)
        with torch.no_grad():
            sample = self.compute_advantages(rollout)
        metrics = self.improve(sample)
        with torch.no_grad():
            if self.config.normalize_obs:
                self.obs_norm.see(rollout.obs.flatten(1, 2))
            metrics["entropy"] = self.policy(sample.obs).entropy().mean(-1)
        if "value_loss" in metrics:
            metrics["explained_variance"] = explained_variance(sample)
        return metrics, None

    def compute_advantages(self, rollout: Batch) -> Sample:
        """Advantages and value targets of a rollout ``[S, E, T, ...]``."""
        obs, next_obs = (self.normalized(x.flatten(1, 2)) for x in (rollout.obs, rollout.next_obs))  # [S, E T, O]
        action = rollout.action.flatten(1, 2)
        value, next_value = (self.baseline(x).view_as(rollout.reward) for x in (obs, next_obs))  # [S, E, T]
        reward = self.scaled(rollout) if self.config.normalize_reward else rollout.reward
        advantage = losses.gae(reward, rollout.discount, rollout.last, value, next_value, self.config.lam)
        target = advantage + value
        log_prob = self.policy(obs).log_prob(action)
        return Sample(obs, action, log_prob, *(x.flatten(1, 2) for x in (advantage, target)))

    def baseline(self, obs: Tensor) -> Tensor:
        """The baseline of the advantage, also used to bootstrap where a rollout is cut: ``[S, B, O] -> [S, B]``."""
        return self.value(obs)

    def normalized(self, obs: Tensor) -> Tensor:
        """The observations that the networks take, normalised if the setting says so, ``[S, B, O]``."""
        return self.obs_norm(self.policy.encoder(obs)) if self.config.normalize_obs else obs

    def scaled(self, rollout: Batch) -> Tensor:
        """Rewards divided by the standard deviation of the discounted return, ``[S, E, T]``."""
        goes_on = per_seed(self.gamma, rollout.last) * (1 - rollout.last)  # [S, E, T]
        before = torch.zeros_like(goes_on)  # factor of the return up to the previous step
        before[..., 1:] = goes_on[..., :-1]
        reward = rollout.reward.clone()
        reward[..., 0] += self.running.to(reward.device)
        returns = losses.accumulate(reward.flip(-1), before.flip(-1)).flip(-1)
        self.running = returns[..., -1] * goes_on[..., -1]
        self.return_norm.see(returns.flatten(1).unsqueeze(-1))
        return self.return_norm.scale(rollout.reward)

    def passes(self, sample: Sample) -> Metrics:
        """Update on every row once per epoch, in minibatches reshuffled each epoch; an incomplete last one is
        dropped."""
        rows = sample.obs.shape[1]
        size = min(self.config.minibatch or rows, rows)
        rng, used = self.rng.to(self.device), rows // size * size
        order = torch.cat([rng.permutation(rows)[:, :used] for _ in range(self.epochs)], 1)  # [S, K B]
        seeds = torch.arange(len(order), device=order.device).unsqueeze(1)  # [S, 1]
        return super().learn(Sample(*(x[seeds, order].unflatten(1, (-1, size)).transpose(0, 1) for x in sample)))[0]

    def advantage_of(self, sample: Sample) -> Tensor:
        """The advantage, normalised if the setting says so: ``[S, B]``."""
        return losses.standardized(sample.advantage) if self.config.normalize_advantage else sample.advantage

    def updates_in(self, rows: int) -> int:
        """Number of gradient steps for a rollout of ``rows`` steps."""
        return self.epochs * (rows // min(self.config.minibatch or rows, rows))

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        action = self.policy.act(self.normalized(obs), self.exploring(obs) if explore else None)
        if self.spec.num_actions:
            return action
        # A sample is not clipped, since its log-probability is needed; the environment clips it.
        return self.to_env(action if explore else action.clamp(-1, 1))

    def log_prob(self, obs: Tensor, action: Tensor, explore: bool = False) -> Tensor:
        return self.log_prob_under(self.policy(self.normalized(obs)), action)

    def explore_state(self) -> dict[str, Any]:
        return dict(super().explore_state(), running=self.running)

    def load_explore_state(self, state: dict[str, Any]) -> None:
        super().load_explore_state(state)
        self.running = state["running"]


def explained_variance(sample: Sample) -> Tensor:
    """Fraction of the targets' variance that the value function explains, ``[S]``; 1 is all of it."""
    spread = sample.target.var(-1)
    return 1 - sample.advantage.var(-1) / spread.clamp(min=1e-8)
