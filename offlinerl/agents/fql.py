"""FQL: Flow Q-Learning (Park, Li & Levine, ICML 2025)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offlinerl.agents.base import Agent, Config, Noise, setting
from offlinerl.learning import losses
from offlinerl.learning.rng import generator
from offlinerl.nn.actors import Flow, NoiseActor
from offlinerl.nn.critics import Critic
from offlinerl.nn.layers import soft_update, xavier
from offlinerl.types import Batch, Metrics


@dataclass(frozen=True)
class FQLConfig(Config):
    gamma: float = setting(0.99, "discount factor per step", low=0, high=1, per_seed=True)
    n_step: int = setting(1, "number of steps in the n-step return", low=1)
    tau: float = setting(0.005, "update rate of the target critics", above=0, high=1, per_seed=True)
    lr: float = setting(3e-4, "Adam's learning rate", above=0, per_seed=True)
    hidden: tuple[int, ...] = setting((512, 512, 512, 512), "sizes of the hidden layers of every network")
    critics: int = setting(2, "number of critics", low=1)
    targets: str = setting("mean", "what the targets take of the critics' values", choices=("mean", "min"))
    alpha: float = setting(10.0, "weight of staying near the flow's actions", low=0, per_seed=True)
    flow_steps: int = setting(10, "steps of the Euler method from noise to the flow's action", low=1)
    candidates: int = setting(16, "noises to choose the action from, by its value, where it does not explore", low=1)
    normalize_q: bool = setting(
        False, "scale the values so that their mean absolute value is 1 in every batch of the actor"
    )


class FQL(Agent):
    """A flow learns to imitate the data's actions, however many modes they have, and a policy that needs one step
    learns to end where the flow does, and to have high values (paper, algorithm 1). No gradient passes through the
    flow's steps.
    """

    config_class = FQLConfig

    def build(self) -> None:
        config, A = self.config, self.spec.action_dim
        layers: dict[str, Any] = dict(init=xavier, activation=nn.functional.gelu)
        self.critic = Critic(
            self.encoder("critic"), A, config.hidden, self.init_rng("critic"), config.critics, layer_norm=True, **layers
        )
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.flow = Flow(self.encoder("flow"), A, config.hidden, self.init_rng("flow"), **layers)
        self.actor = NoiseActor(self.encoder("actor"), A, config.hidden, self.init_rng("actor"), **layers)

    def configure_optimizers(self):
        return self.adam(self.config.lr, critic=self.critic, flow=self.flow, actor=self.actor)

    def update(self, batch: Batch, noise: Noise, k: int) -> Metrics:
        metrics = self.update_critic(batch, noise)
        metrics["flow_loss"] = self.descend("flow", self.flow_loss(batch, noise))
        metrics |= self.update_actor(batch, noise)
        soft_update(self.target_critic, self.critic, self.config.tau)
        return metrics

    def update_critic(self, batch: Batch, noise: Noise) -> Metrics:
        with torch.no_grad():
            values = self.target_critic(batch.next_obs, self.actor(batch.next_obs, noise["next"]).clamp(-1, 1))
            next_value = values.mean(1) if self.config.targets == "mean" else values.amin(1)  # [S, B]
            target = batch.reward + batch.discount * next_value
        error = target.unsqueeze(1) - (q := self.critic(batch.obs, batch.action))  # [S, N, B]
        loss = self.weighted(batch, losses.squared(error))
        priority = error.detach().abs().mean(1)  # [S, B]
        return dict(critic_loss=self.descend("critic", loss), q=q.detach().mean((1, 2)), priority=priority)

    def flow_loss(self, batch: Batch, noise: Noise) -> Tensor:
        """The error of the velocity at a point between noise and the data's action, ``[S, B]``; see ``Flow``."""
        start, time = noise["start"], noise["time"]
        point = (1 - time) * start + time * batch.action  # [S, B, A]
        return losses.squared(self.flow(batch.obs, point, time) - (batch.action - start)).mean(-1)

    def update_actor(self, batch: Batch, noise: Noise) -> Metrics:
        """One gradient step on the distance to the flow's action from the same noise, and minus the value."""
        with torch.no_grad():
            imitated = self.flow.generate(batch.obs, noise["actor"], self.config.flow_steps)  # [S, B, A]
        action = self.actor(batch.obs, noise["actor"])
        far = losses.squared(action - imitated).mean(-1)  # [S, B]
        q = self.critic(batch.obs, action.clamp(-1, 1)).mean(1)  # [S, B]
        if self.config.normalize_q:
            q = q / self.mean_of_all(q.detach().abs().mean(-1, keepdim=True))
        loss = self.descend("actor", self.config.alpha * far - q)
        return dict(actor_loss=loss, distance=far.detach().mean(-1))

    def draw(self, batch_size: int) -> Noise:
        shape = batch_size, self.spec.action_dim
        names = "next", "start", "actor"
        return {name: self.rng.normal(shape) for name in names} | dict(time=self.rng.uniform(0, 1, (batch_size, 1)))

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        """The action from noise; where it does not explore, from that of ``candidates`` fixed ones whose action the
        critics value most."""
        features = self.actor.encoder(obs)
        if explore:
            noise = self.exploring(obs).normal((self.spec.action_dim,)).to(features)
            return self.to_env(self.actor.of_features(features, noise).clamp(-1, 1))
        E, n = features.shape[1], self.config.candidates
        noise = torch.from_numpy(fixed_noise(self.seeds, n, self.spec.action_dim)).to(features)  # [S, n, A]
        each = features.unsqueeze(2).expand(-1, -1, n, -1).flatten(1, 2)  # [S, E n, F]
        actions = self.actor.of_features(each, noise.repeat(1, E, 1)).clamp(-1, 1).unflatten(1, (E, n))  # [S, E, n, A]
        best = self.critic.of_many(obs, actions).mean(1).argmax(-1)  # [S, E]
        return self.to_env(actions.take_along_dim(best[..., None, None], 2).squeeze(2))


@cache
def fixed_noise(seeds: tuple[int, ...], count: int, dims: int) -> np.ndarray:
    """``[S, count, dims]``, which depends on the seeds alone: random directions, and the typical length of standard
    normal noise. Shorter noise is near the middle, where the ways to different actions part."""
    drawn = [torch.randn(count, dims, generator=generator(seed, "fixed noise")).numpy() for seed in seeds]
    return np.stack([math.sqrt(dims) * noise / np.linalg.norm(noise, axis=-1, keepdims=True) for noise in drawn])
