"""XQL: Extreme Q-Learning (Garg, Hejna, Geist & Ermon, ICLR 2023), offline as in the authors' code."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from offlinerl.agents.base import Agent, Config, Noise, setting
from offlinerl.learning import losses
from offlinerl.nn.actors import actor_of
from offlinerl.nn.critics import Value, critic_of
from offlinerl.nn.layers import dropout_masks, soft_update
from offlinerl.types import Batch, Metrics
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_map


@dataclass(frozen=True)
class XQLConfig(Config):
    beta: float = setting(
        2.0, "temperature of the Gumbel regression, in units of reward (paper, table 4)", above=0, per_seed=True
    )
    clip: float = setting(7.0, "upper bound of (Q - V) / beta in the Gumbel loss", above=0, per_seed=True)
    temperature: float = setting(
        0.5, "inverse temperature of the advantage weights; unrelated to beta", low=0, per_seed=True
    )
    gamma: float = setting(0.99, "discount factor per step", low=0, high=1, per_seed=True)
    n_step: int = setting(1, "number of steps in the n-step return", low=1)
    tau: float = setting(0.005, "update rate of the target critics", above=0, high=1, per_seed=True)
    lr: float = setting(3e-4, "Adam's learning rate", above=0, per_seed=True)
    hidden: tuple[int, ...] = setting((256, 256), "sizes of the hidden layers of every network")
    dropout: float = setting(0.0, "dropout rate of the actor", low=0, below=1)
    decay_steps: int | None = setting(
        None,
        "updates over which the actor's learning rate decays to zero along a cosine; `updates`: the whole run",
        low=1,
        choices=("updates",),
    )
    value_layer_norm: bool = setting(True, "LayerNorm in the value network")
    huber: float = setting(
        20.0, "error above which the critics' Huber loss is linear, in units of reward", above=0, per_seed=True
    )
    value_updates: int = setting(1, "updates of V per update of the other networks", low=1)
    random_actions: int = setting(
        0, "uniformly random actions added to every row when V is fitted, as in the authors' scripts", low=0
    )
    action_noise: float = setting(
        0.0, "standard deviation of the noise on the actions for which V is fitted, clipped to 0.5", low=0
    )


class XQL(Agent):
    """Gumbel regression of the soft value on the dataset's actions, with policy extraction by advantage-weighted
    regression.

    Random actions added to the dataset's give the half-uniform reference distribution of the authors' scripts.
    """

    config_class = XQLConfig
    discrete = None

    def build(self) -> None:
        config, spec = self.config, self.spec
        if config.action_noise and spec.num_actions:
            raise UserError("action_noise is added to vectors, but the actions are discrete: leave it out")
        hidden, init = config.hidden, self.init_rng
        self.value = Value(self.encoder("value"), hidden, init("value"), layer_norm=config.value_layer_norm)
        self.critic = critic_of(spec, self.encoder("critic"), hidden, init("critic"))
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor = actor_of(spec, self.encoder("actor"), hidden, init("actor"), dropout=config.dropout)

    def configure_optimizers(self):
        return self.adam(self.config.lr, value=self.value, actor=self.actor, critic=self.critic)

    def value_loss(self, error: Tensor) -> Tensor:
        return losses.gumbel(error, self.config.beta, self.config.clip, self.largest_of_all)

    def critic_loss(self, error: Tensor) -> Tensor:
        return losses.huber(error, self.config.huber)

    def update(self, batch: Batch, noise: Noise, k: int) -> Metrics:
        with torch.no_grad():
            q = self.target(batch.obs, batch.action).amin(-2)  # [S, B]
            obs, q_seen = self.reference_rows(batch, q, noise)
        for _ in range(self.config.value_updates):
            value_loss = self.descend("value", self.value_loss(q_seen - self.value(obs)))
        with torch.no_grad():
            value = self.value(batch.obs)  # [S, B]
            target = batch.reward + batch.discount * self.value(batch.next_obs)  # [S, B]
        log_prob = self.actor(batch.obs, noise.get("dropout")).log_prob(batch.action)  # [S, B]
        actor_loss = self.descend("actor", losses.awr(log_prob, q - value, self.config.temperature))
        error = target.unsqueeze(1) - self.critic(batch.obs, batch.action)  # [S, N, B]
        critic_loss = self.descend("critic", self.critic_loss(error))
        soft_update(self.target, self.critic, self.config.tau)
        return dict(
            value_loss=value_loss, actor_loss=actor_loss, critic_loss=critic_loss,
            value=value.mean(-1), advantage=(q - value).mean(-1),
        )  # fmt: skip

    def reference_rows(self, batch: Batch, q: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """The observations and Q values that V is regressed on, ``[S, B', O]`` and ``[S, B']``: those of the batch,
        unless random actions or action noise are set."""
        if not noise.keys() & {"random", "jitter"}:
            return batch.obs, q
        obs, action = batch.obs, batch.action
        if "random" in noise:
            obs = tree_map(lambda x: torch.cat([x] * (1 + self.config.random_actions), 1), obs)
            action = torch.cat([action, noise["random"]], -2)
        if "jitter" in noise:
            action = (action + (self.config.action_noise * noise["jitter"]).clamp(-0.5, 0.5)).clamp(-1, 1)
        return obs, self.target(obs, action).amin(-2)

    def draw(self, batch_size: int) -> Noise:
        rng, noise = self.rng, {}
        if self.config.dropout:
            noise["dropout"] = dropout_masks(rng, self.config.dropout, batch_size, self.config.hidden)
        if self.config.random_actions:
            shape, count = (self.config.random_actions * batch_size, self.spec.action_dim), self.spec.num_actions
            noise["random"] = rng.integers(count, shape).float() if count else rng.uniform(-1, 1, shape)
        if self.config.action_noise:
            noise["jitter"] = rng.normal(((1 + self.config.random_actions) * batch_size, self.spec.action_dim))
        return noise

    def before_update(self) -> None:
        self.cosine("actor", self.config.decay_steps)

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        return self.to_env(self.actor.act(obs, self.exploring(obs) if explore else None))

    def log_prob(self, obs: Tensor, action: Tensor, explore: bool = False) -> Tensor:
        return self.log_prob_under(self.actor(obs), action)
