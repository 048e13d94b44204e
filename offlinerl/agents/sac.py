"""SAC: Soft Actor-Critic with a learned temperature (Haarnoja et al., 2018, arXiv 1812.05905)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from offlinerl.agents.base import Agent, Noise
from offlinerl.learning import losses
from offlinerl.nn.actors import SquashedGaussianActor
from offlinerl.nn.critics import Critic
from offlinerl.nn.layers import soft_update, uniform
from offlinerl.types import Batch, Metrics, Spec, WeightedBatch


class Temperature(nn.Module):
    """alpha, the price of entropy in units of reward, one a seed: ``[S, 1]``."""

    def __init__(self, seeds: int, start: float):
        super().__init__()
        self.log_alpha = nn.Parameter(torch.full((seeds, 1), start).log())

    def forward(self) -> Tensor:
        return self.log_alpha.exp()


class SAC(Agent):
    """Maximum-entropy actor-critic (paper, algorithm 1).

    Args:
        spec: shapes and bounds of the task.
        seeds: S integers.
        gamma: discount factor.
        n_step: steps of the reward sum.
        tau: rate of the target critics.
        lr: Adam's learning rate.
        hidden: sizes of the hidden layers of every network.
        critics: N; the targets take their minimum.
        alpha: the temperature at the start.
        learn_alpha: adapt it until the policy's entropy is ``target_entropy`` (paper, section 5).
        target_entropy: in nats; None: minus the number of action dimensions.
    """

    def __init__(
        self,
        spec: Spec,
        seeds: Sequence[int] = (0,),
        *,
        gamma: float = 0.99,
        n_step: int = 1,
        tau: float = 0.005,
        lr: float = 3e-4,
        hidden: Sequence[int] = (256, 256),
        critics: int = 2,
        alpha: float = 1.0,
        learn_alpha: bool = True,
        target_entropy: float | None = None,
    ):
        super().__init__(spec, seeds, gamma, n_step)
        self.save_hyperparameters()
        A = spec.action_dim
        self.tau, self.lr, self.learn_alpha = tau, lr, learn_alpha
        self.target_entropy = -float(A) if target_entropy is None else target_entropy
        self.critic = Critic(self.encoder("critic"), A, hidden, self.init_rng("critic"), critics, uniform)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor = SquashedGaussianActor(self.encoder("actor"), A, hidden, self.init_rng("actor"))
        self.temperature = Temperature(len(self.seeds), alpha)

    def configure_optimizers(self):
        return self.adam(self.lr, critic=self.critic, actor=self.actor, temperature=self.temperature)

    def update(self, batch: Batch, noise: Noise, k: int) -> Metrics:
        alpha = self.temperature().detach()  # [S, 1]
        metrics = self.update_critic(batch, noise, alpha)
        action, log_prob = self.actor(batch.obs, noise["action"])
        q = self.critic(batch.obs, action).amin(1)  # [S, B]
        metrics["actor_loss"] = self.descend("actor", alpha * log_prob - q)
        log_prob = log_prob.detach()
        if self.learn_alpha:
            self.descend("temperature", -self.temperature.log_alpha * (log_prob + self.target_entropy))
        soft_update(self.target_critic, self.critic, self.tau)
        return metrics | dict(alpha=alpha.squeeze(-1), entropy=-log_prob.mean(-1))

    def update_critic(self, batch: Batch, noise: Noise, alpha: Tensor) -> Metrics:
        with torch.no_grad():
            action, log_prob = self.actor(batch.next_obs, noise["next_action"])
            next_value = self.target_critic(batch.next_obs, action).amin(1) - alpha * log_prob  # [S, B]
        return self.regress(batch, batch.reward + batch.discount * next_value)

    def regress(self, batch: Batch, target: Tensor) -> Metrics:
        """One step of the critics towards ``[S, B]``."""
        error = target.unsqueeze(1) - (q := self.critic(batch.obs, batch.action))  # [S, N, B]
        loss = self.weighted(batch, 0.5 * losses.squared(error))
        metrics = dict(critic_loss=self.descend("critic", loss), q=q.detach().mean((1, 2)))
        if isinstance(batch, WeightedBatch):
            metrics["priority"] = error.detach().abs().mean(1)  # [S, B]
        return metrics

    def draw(self, batch_size: int) -> Noise:
        rng, shape = self.rng.to(self.device), (batch_size, self.spec.action_dim)
        return dict(action=rng.normal(shape), next_action=rng.normal(shape))

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        mean, std = self.actor.mean_and_std(obs)
        if explore:
            mean = mean + std * self.exploring(obs).normal(mean.shape[2:]).to(mean.device)
        return self.to_env(torch.tanh(mean))
