"""DQN: Deep Q-Network (Mnih et al., Nature 2015), and Double DQN (van Hasselt et al., AAAI 2016) as an option."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from offlinerl.agents.base import Agent, Config, Noise, setting
from offlinerl.learning import densities, losses
from offlinerl.learning.exploration import best_of, epsilon_greedy, linear
from offlinerl.nn.critics import ActionValues
from offlinerl.nn.layers import soft_update
from offlinerl.types import Batch, Metrics


@dataclass(frozen=True)
class DQNConfig(Config):
    gamma: float = setting(0.99, "discount factor per step", low=0, high=1, per_seed=True)
    n_step: int = setting(1, "number of steps in the n-step return", low=1)
    double_q: bool = setting(
        False, "choose the next action with the online network and evaluate it with the target network"
    )
    lr: float = setting(1e-3, "Adam's learning rate", above=0, per_seed=True)
    hidden: tuple[int, ...] = setting((256, 256), "sizes of the hidden layers")
    decay_steps: int | None = setting(
        None,
        "updates over which the learning rate decays to zero along a cosine; `updates`: the whole run",
        low=1,
        choices=("updates",),
    )
    max_grad_norm: float | None = setting(None, "maximum gradient norm per seed; null: no limit", above=0)
    target_every: int = setting(250, "updates between copies of the network to the target network", low=1)
    epsilon: float = setting(1.0, "initial probability of a random action", low=0, high=1)
    final_epsilon: float = setting(0.05, "probability of a random action after epsilon_steps", low=0, high=1)
    epsilon_steps: int = setting(
        10_000, "steps (updates, on a dataset) over which epsilon falls linearly to final_epsilon", low=0
    )


class DQN(Agent):
    """Q-learning on a replay buffer, with a target network and epsilon-greedy actions (paper, algorithm 1).

    With a constant learning rate, some tasks never converge, CartPole among them; see ``decay_steps``.
    """

    config_class = DQNConfig
    discrete = True

    def build(self) -> None:
        self.q = ActionValues(self.encoder("q"), self.spec.num_actions, self.config.hidden, self.init_rng("q"))
        self.target = copy.deepcopy(self.q).requires_grad_(False)

    def configure_optimizers(self):
        return self.adam(self.config.lr, q=self.q)

    def update(self, batch: Batch, noise: Noise, k: int) -> Metrics:
        with torch.no_grad():
            next_q = self.target(batch.next_obs)  # [S, B, actions]
            best = (self.q(batch.next_obs) if self.config.double_q else next_q).argmax(-1, keepdim=True)  # [S, B, 1]
            target = batch.reward + batch.discount * next_q.gather(-1, best).squeeze(-1)  # [S, B]
        values = self.q(batch.obs)  # [S, B, actions]
        q = values.gather(-1, batch.action.long()).squeeze(-1)  # [S, B]
        terms = self.further_terms(values, q)
        loss = self.weighted(batch, losses.huber(target - q, 1.0) + sum(terms.values()))
        metrics = dict(q_loss=self.descend("q", loss, self.config.max_grad_norm), q=q.detach().mean(-1))
        priority = (target - q.detach()).abs()  # [S, B]
        return metrics | {name: term.detach().mean(-1) for name, term in terms.items()} | dict(priority=priority)

    def further_terms(self, values: Tensor, q: Tensor) -> Metrics:
        """Terms to add to the loss, by name, ``[S, B]`` each: functions of the values of all actions,
        ``[S, B, actions]``, and of those taken, ``[S, B]``."""
        return {}

    def before_update(self) -> None:
        self.cosine("q", self.config.decay_steps)
        if self.updates % self.config.target_every == 0:
            soft_update(self.target, self.q, 1.0)

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        greedy = best_of(self.q(obs))  # [S, E, 1]
        if not explore:
            return greedy
        return epsilon_greedy(greedy, self.share_of_random(), self.spec.num_actions, self.exploring(obs))

    def share_of_random(self) -> float:
        """The current epsilon of the schedule."""
        config = self.config
        return linear(config.epsilon, config.final_epsilon, config.epsilon_steps, self.progress)

    def log_prob(self, obs: Tensor, action: Tensor, explore: bool = False) -> Tensor:
        epsilon = self.share_of_random() if explore else 0.0
        return densities.epsilon_greedy(action, self.act(obs), epsilon, self.spec.num_actions)
