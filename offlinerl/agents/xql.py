"""XQL: Extreme Q-Learning (Garg, Hejna, Geist & Ermon, ICLR 2023), as its authors run it offline."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from offlinerl.agents.base import Agent, Noise
from offlinerl.learning import losses
from offlinerl.nn.actors import GaussianActor
from offlinerl.nn.critics import Critic, Value
from offlinerl.nn.layers import dropout_masks, soft_update
from offlinerl.types import Batch, Metrics, Spec


class XQL(Agent):
    """Gumbel regression of the soft value on the dataset's own actions, then advantage-weighted extraction.

    Args:
        spec: shapes and bounds of the task.
        seeds: S integers.
        beta: temperature of the Gumbel regression, in units of reward (paper, table 4).
        clip: upper bound of ``(Q - V) / beta`` in it.
        temperature: inverse temperature of the advantage weights; not beta.
        gamma: discount factor.
        n_step: steps of the reward sum.
        tau: rate of the target critics.
        lr: Adam's learning rate.
        hidden: sizes of the hidden layers of every network.
        dropout: rate of dropout in the actor.
        decay_steps: updates over which a cosine takes the actor's learning rate to zero; None: constant.
        value_layer_norm: LayerNorm in the value network.
        huber: where the critics' loss turns linear, in units of reward.
        value_updates: steps of V for every step of the rest.
        random_actions: uniform actions added to every row when V is regressed, the half-uniform reference
            distribution of the authors' scripts.
        action_noise: deviation of the noise added to those actions, clipped to 0.5; 0: none.
    """

    def __init__(
        self,
        spec: Spec,
        seeds: Sequence[int] = (0,),
        *,
        beta: float = 2.0,
        clip: float = 7.0,
        temperature: float = 0.5,
        gamma: float = 0.99,
        n_step: int = 1,
        tau: float = 0.005,
        lr: float = 3e-4,
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.0,
        decay_steps: int | None = None,
        value_layer_norm: bool = True,
        huber: float = 20.0,
        value_updates: int = 1,
        random_actions: int = 0,
        action_noise: float = 0.0,
    ):
        super().__init__(spec, seeds, gamma, n_step)
        self.save_hyperparameters()
        self.beta, self.clip, self.temperature = beta, clip, temperature
        self.tau, self.lr, self.decay_steps, self.huber = tau, lr, decay_steps, huber
        self.hidden, self.dropout = tuple(hidden), dropout
        self.value_updates, self.random_actions, self.action_noise = value_updates, random_actions, action_noise
        A = spec.action_dim
        self.value = Value(self.encoder("value"), hidden, self.init_rng("value"), layer_norm=value_layer_norm)
        self.critic = Critic(self.encoder("critic"), A, hidden, self.init_rng("critic"))
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor = GaussianActor(self.encoder("actor"), A, hidden, self.init_rng("actor"), dropout)

    def configure_optimizers(self):
        return self.adam(self.lr, value=self.value, actor=self.actor, critic=self.critic)

    def value_loss(self, error: Tensor) -> Tensor:
        return losses.gumbel(error, self.beta, self.clip)

    def critic_loss(self, error: Tensor) -> Tensor:
        return losses.huber(error, self.huber)

    def update(self, batch: Batch, noise: Noise, k: int) -> Metrics:
        with torch.no_grad():
            q = self.target(batch.obs, batch.action).amin(-2)  # [S, B]
            obs, q_seen = self.reference_rows(batch, q, noise)
        for _ in range(self.value_updates):
            value_loss = self.descend("value", self.value_loss(q_seen - self.value(obs)))
        with torch.no_grad():
            value = self.value(batch.obs)  # [S, B]
            target = batch.reward + batch.discount * self.value(batch.next_obs)  # [S, B]
        log_prob = self.actor(batch.obs, noise.get("dropout")).log_prob(batch.action)  # [S, B]
        actor_loss = self.descend("actor", losses.awr(log_prob, q - value, self.temperature))
        error = target.unsqueeze(1) - self.critic(batch.obs, batch.action)  # [S, N, B]
        critic_loss = self.descend("critic", self.critic_loss(error))
        soft_update(self.target, self.critic, self.tau)
        return dict(
            value_loss=value_loss, actor_loss=actor_loss, critic_loss=critic_loss,
            value=value.mean(-1), advantage=(q - value).mean(-1),
        )  # fmt: skip

    def reference_rows(self, batch: Batch, q: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """The rows V is regressed on, ``[S, B', O]`` and ``[S, B']``: the batch's own unless it is smoothed."""
        if not noise.keys() & {"random", "jitter"}:
            return batch.obs, q
        obs, action = batch.obs, batch.action
        if "random" in noise:
            obs = torch.cat([obs] * (1 + self.random_actions), -2)
            action = torch.cat([action, noise["random"]], -2)
        if "jitter" in noise:
            action = (action + (self.action_noise * noise["jitter"]).clamp(-0.5, 0.5)).clamp(-1, 1)
        return obs, self.target(obs, action).amin(-2)

    def draw(self, batch_size: int) -> Noise:
        rng, noise = self.rng.to(self.device), {}
        if self.dropout:
            noise["dropout"] = dropout_masks(rng, self.dropout, batch_size, self.hidden)
        if self.random_actions:
            noise["random"] = rng.uniform(-1, 1, (self.random_actions * batch_size, self.spec.action_dim))
        if self.action_noise:
            noise["jitter"] = rng.normal(((1 + self.random_actions) * batch_size, self.spec.action_dim))
        return noise

    def before_update(self) -> None:
        self.cosine("actor", self.decay_steps)

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        return self.to_env(self.actor.act(obs, self.exploring(obs) if explore else None))
