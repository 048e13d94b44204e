"""TD3: Twin Delayed Deep Deterministic policy gradient (Fujimoto, van Hoof & Meger, ICML 2018)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offlinerl.agents.base import Agent, Noise
from offlinerl.learning import losses
from offlinerl.learning.exploration import exploration_of
from offlinerl.nn.actors import DeterministicActor
from offlinerl.nn.critics import Critic
from offlinerl.nn.layers import Init, soft_update, uniform
from offlinerl.types import Batch, Metrics, Spec, WeightedBatch


class TD3(Agent):
    """Clipped double Q-learning, delayed policy updates and target policy smoothing (paper, algorithm 1).

    Args:
        spec: shapes and bounds of the task.
        seeds: S integers.
        gamma: discount factor.
        n_step: steps of the reward sum.
        tau: rate of the targets.
        actor_lr: Adam's learning rate of the actor.
        critic_lr: and of the critics.
        hidden: sizes of the hidden layers of every network.
        critics: N; the targets take their minimum.
        policy_delay: critic updates for every one of the actor and the targets.
        target_noise: deviation of the noise on the target's action, in units of half the action's range.
        target_noise_clip: bound of that noise.
        exploration: "gaussian", "ou" (Ornstein-Uhlenbeck) or "parameter".
        sigma: of the exploration, in units of half the action's range.
        layer_norm: LayerNorm in the actor, which parameter noise wants.
        decay_steps: updates after which both learning rates are zero; None: constant, as the paper has them.
        hold: share of these, in [0, 1), for which the rates stay as they are before a cosine takes them down.
    """

    last_init: Init | None = None
    """How the last layers start, if not like the others."""
    atoms: int | None = None
    """Atoms of a critic that is a distribution."""

    def __init__(
        self,
        spec: Spec,
        seeds: Sequence[int] = (0,),
        *,
        gamma: float = 0.99,
        n_step: int = 1,
        tau: float = 0.005,
        actor_lr: float = 3e-4,
        critic_lr: float = 3e-4,
        hidden: Sequence[int] = (256, 256),
        critics: int = 2,
        policy_delay: int = 2,
        target_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        exploration: str = "gaussian",
        sigma: float = 0.1,
        layer_norm: bool = False,
        decay_steps: int | None = None,
        hold: float = 0.0,
    ):
        super().__init__(spec, seeds, gamma, n_step)
        self.save_hyperparameters()
        self.tau, self.actor_lr, self.critic_lr = tau, actor_lr, critic_lr
        self.decay_steps, self.hold = decay_steps, hold
        self.period = policy_delay
        self.target_noise, self.target_noise_clip = target_noise, target_noise_clip
        self.exploration = exploration_of(exploration, sigma)
        A, last = spec.action_dim, self.last_init
        self.critic = Critic(
            self.encoder("critic"), A, hidden, self.init_rng("critic"), critics, uniform, last, self.atoms
        )
        self.actor = DeterministicActor(
            self.encoder("actor"), A, hidden, self.init_rng("actor"), layer_norm, uniform, last
        )
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)

    def configure_optimizers(self):
        rates = dict(critic=self.critic_lr, actor=self.actor_lr)
        return self.adam(rates, critic=self.critic, actor=self.actor)

    def before_update(self) -> None:
        for name in self.optim:
            self.cosine(name, self.decay_steps, self.hold)

    def critic_loss(self, error: Tensor) -> Tensor:
        return losses.squared(error)

    def update(self, batch: Batch, noise: Noise, k: int) -> Metrics:
        metrics = self.update_critic(batch, noise)
        if k == self.period - 1:
            metrics["actor_loss"] = self.descend("actor", -self.action_value(batch.obs, self.actor(batch.obs)))
            soft_update(self.target_critic, self.critic, self.tau)
            soft_update(self.target_actor, self.actor, self.tau)
        return metrics

    def update_critic(self, batch: Batch, noise: Noise) -> Metrics:
        with torch.no_grad():
            next_q = self.target_critic(batch.next_obs, self.next_action(batch, noise)).amin(1)  # [S, B]
            target = batch.reward + batch.discount * next_q  # [S, B]
        q = self.critic(batch.obs, batch.action)  # [S, N, B]
        loss = self.weighted(batch, self.critic_loss(target.unsqueeze(1) - q))  # [S, N, B]
        metrics = dict(critic_loss=self.descend("critic", loss), q=q.detach().mean((1, 2)))
        if isinstance(batch, WeightedBatch):
            metrics["priority"] = (target.unsqueeze(1) - q.detach()).abs().mean(1)  # [S, B]
        return metrics

    def next_action(self, batch: Batch, noise: Noise) -> Tensor:
        """The target policy's action, smoothed (paper, equation 14), ``[S, B, A]``."""
        action = self.target_actor(batch.next_obs)
        if "target" not in noise:
            return action
        clip = self.target_noise_clip
        return (action + (self.target_noise * noise["target"]).clamp(-clip, clip)).clamp(-1, 1)

    def action_value(self, obs: Tensor, action: Tensor) -> Tensor:
        """What the actor climbs, ``[S, B]``: the first critic."""
        return self.critic.first(obs, action)

    def draw(self, batch_size: int) -> Noise:
        if not self.target_noise:
            return {}
        return dict(target=self.rng.to(self.device).normal((batch_size, self.spec.action_dim)))

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        if explore:
            return self.to_env(self.exploration.act(self.actor, obs, self.exploring(obs)))
        return self.to_env(self.actor(obs))

    def begin(self, began: np.ndarray, episodes: np.ndarray) -> None:
        super().begin(began, episodes)
        self.exploration.begin(began)

    def explore_state(self) -> dict[str, Any]:
        return dict(super().explore_state(), exploration=self.exploration.state_dict())

    def load_explore_state(self, state: dict[str, Any]) -> None:
        super().load_explore_state(state)
        self.exploration.load_state_dict(state["exploration"])
