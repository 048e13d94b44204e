"""DQN: Deep Q-Network (Mnih et al., Nature 2015), and Double DQN (van Hasselt et al., AAAI 2016) as an option."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from offlinerl.agents.base import Agent, Noise
from offlinerl.learning import losses
from offlinerl.learning.exploration import epsilon_greedy, linear
from offlinerl.nn.critics import ActionValues
from offlinerl.nn.layers import soft_update
from offlinerl.types import Batch, Metrics, Spec, WeightedBatch


class DQN(Agent):
    """Q-learning on a replay, with a target network and epsilon-greedy actions (paper, algorithm 1).

    Args:
        spec: shapes of the task, with discrete actions.
        seeds: S integers.
        gamma: discount factor.
        n_step: steps of the reward sum.
        double_q: choose the next action by the network and value it by the target.
        lr: Adam's learning rate.
        hidden: sizes of the hidden layers.
        decay_steps: updates over which a cosine takes the learning rate to zero; None: constant. A constant one
            keeps some tasks, CartPole among them, from ever settling.
        max_grad_norm: of a step's gradient, a seed; None: no limit.
        target_every: updates between two copies of the network to the target.
        epsilon: share of random actions at the start.
        final_epsilon: and from ``epsilon_steps`` on.
        epsilon_steps: environment steps over which it falls linearly.
    """

    discrete = True

    def __init__(
        self,
        spec: Spec,
        seeds: Sequence[int] = (0,),
        *,
        gamma: float = 0.99,
        n_step: int = 1,
        double_q: bool = False,
        lr: float = 1e-3,
        hidden: Sequence[int] = (256, 256),
        decay_steps: int | None = None,
        max_grad_norm: float | None = None,
        target_every: int = 250,
        epsilon: float = 1.0,
        final_epsilon: float = 0.05,
        epsilon_steps: int = 10_000,
    ):
        super().__init__(spec, seeds, gamma, n_step)
        self.save_hyperparameters()
        self.double_q, self.lr, self.decay_steps, self.target_every = double_q, lr, decay_steps, target_every
        self.max_grad_norm = max_grad_norm
        self.epsilon, self.final_epsilon, self.epsilon_steps = epsilon, final_epsilon, epsilon_steps
        self.q = ActionValues(self.encoder("q"), spec.num_actions, hidden, self.init_rng("q"))
        self.target = copy.deepcopy(self.q).requires_grad_(False)

    def configure_optimizers(self):
        return self.adam(self.lr, q=self.q)

    def update(self, batch: Batch, noise: Noise, k: int) -> Metrics:
        with torch.no_grad():
            next_q = self.target(batch.next_obs)  # [S, B, actions]
            best = (self.q(batch.next_obs) if self.double_q else next_q).argmax(-1, keepdim=True)  # [S, B, 1]
            target = batch.reward + batch.discount * next_q.gather(-1, best).squeeze(-1)  # [S, B]
        q = self.q(batch.obs).gather(-1, batch.action.long()).squeeze(-1)  # [S, B]
        loss = self.weighted(batch, losses.huber(target - q, 1.0))
        metrics = dict(q_loss=self.descend("q", loss, self.max_grad_norm), q=q.detach().mean(-1))
        if isinstance(batch, WeightedBatch):
            metrics["priority"] = (target - q.detach()).abs()
        return metrics

    def before_update(self) -> None:
        self.cosine("q", self.decay_steps)
        if self.updates % self.target_every == 0:
            soft_update(self.target, self.q, 1.0)

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        greedy = self.q(obs).argmax(-1, keepdim=True).float()  # [S, E, 1]
        if not explore:
            return greedy
        epsilon = linear(self.epsilon, self.final_epsilon, self.epsilon_steps, self.steps)
        return epsilon_greedy(greedy, epsilon, self.spec.num_actions, self.exploring(obs))
