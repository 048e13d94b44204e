"""TD3: Twin Delayed Deep Deterministic policy gradient (Fujimoto, van Hoof & Meger, ICML 2018)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offlinerl.agents.base import Agent, Config, Noise, setting
from offlinerl.learning import losses
from offlinerl.learning.exploration import Gaussian, exploration_of
from offlinerl.nn.actors import DeterministicActor
from offlinerl.nn.critics import Critic
from offlinerl.nn.layers import Init, soft_update, uniform
from offlinerl.types import Batch, Metrics
from offlinerl.util.errors import UserError


@dataclass(frozen=True)
class TD3Config(Config):
    gamma: float = setting(0.99, "discount factor per step", low=0, high=1, per_seed=True)
    n_step: int = setting(1, "number of steps in the n-step return", low=1)
    tau: float = setting(0.005, "update rate of the target networks", above=0, high=1, per_seed=True)
    actor_lr: float = setting(3e-4, "Adam's learning rate of the actor", above=0, per_seed=True)
    critic_lr: float = setting(3e-4, "Adam's learning rate of the critics", above=0, per_seed=True)
    hidden: tuple[int, ...] = setting((256, 256), "sizes of the hidden layers of every network")
    critics: int = setting(2, "number of critics; the targets take their minimum", low=1)
    policy_delay: int = setting(2, "critic updates per update of the actor and the target networks", low=1)
    target_noise: float = setting(
        0.2, "standard deviation of the noise on the target action, in units of half the action range", low=0
    )
    target_noise_clip: float = setting(0.5, "clipping bound of that noise", low=0)
    exploration: str = setting(
        "gaussian", "exploration noise; ou is Ornstein-Uhlenbeck", choices=("gaussian", "ou", "parameter")
    )
    sigma: float = setting(0.1, "standard deviation of the exploration noise, in units of half the action range", low=0)
    layer_norm: bool = setting(False, "LayerNorm in the actor, recommended for parameter noise")
    decay_steps: int | None = setting(
        None,
        "updates over which both learning rates decay to zero; `updates`: the whole run",
        low=1,
        choices=("updates",),
    )
    hold: float = setting(
        0.0, "fraction of decay_steps for which the rates are constant before they decay along a cosine", low=0, below=1
    )


class TD3(Agent):
    """Clipped double Q-learning, delayed policy updates and target policy smoothing (paper, algorithm 1)."""

    config_class = TD3Config
    last_init: Init | None = None
    """Initialisation of the last layers, if it differs from that of the others."""
    critic_layer_norm = False

    def build(self) -> None:
        config, A, init, last = self.config, self.spec.action_dim, self.init_rng, self.last_init
        hidden, atoms = config.hidden, getattr(config, "num_atoms", None)
        self.period = config.policy_delay
        if config.exploration == "parameter" and not self.kept_spec.is_vector:
            raise UserError(
                "exploration parameter needs networks that see one vector, not images or several parts: use gaussian"
                " or ou"
            )
        self.exploration = exploration_of(config.exploration, config.sigma)
        self.critic = Critic(
            self.encoder("critic"), A, hidden, init("critic"), config.critics, uniform, last, atoms,
            self.critic_layer_norm,
        )  # fmt: skip
        self.actor = DeterministicActor(
            self.encoder("actor"), A, hidden, init("actor"), config.layer_norm, uniform, last
        )
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)

    def configure_optimizers(self):
        rates = dict(critic=self.config.critic_lr, actor=self.config.actor_lr)
        return self.adam(rates, critic=self.critic, actor=self.actor)

    def before_update(self) -> None:
        for name in self.optim:
            self.cosine(name, self.config.decay_steps, self.config.hold)

    def critic_loss(self, error: Tensor) -> Tensor:
        return losses.squared(error)

    def update(self, batch: Batch, noise: Noise, k: int) -> Metrics:
        metrics = self.update_critic(batch, noise)
        if k == self.period - 1:
            metrics["actor_loss"] = self.descend("actor", self.actor_loss(batch))
            soft_update(self.target_critic, self.critic, self.config.tau)
            soft_update(self.target_actor, self.actor, self.config.tau)
        return metrics

    def update_critic(self, batch: Batch, noise: Noise) -> Metrics:
        with torch.no_grad():
            target = batch.reward + batch.discount * self.next_value(batch, noise)  # [S, B]
        q = self.critic(batch.obs, batch.action)  # [S, N, B]
        loss = self.weighted(batch, self.critic_loss(target.unsqueeze(1) - q))  # [S, N, B]
        priority = (target.unsqueeze(1) - q.detach()).abs().mean(1)  # [S, B]
        return dict(critic_loss=self.descend("critic", loss), q=q.detach().mean((1, 2)), priority=priority)

    def next_value(self, batch: Batch, noise: Noise) -> Tensor:
        """The target critics' value of the next state, ``[S, B]``."""
        return self.target_critic(batch.next_obs, self.next_action(batch, noise)).amin(1)

    def next_action(self, batch: Batch, noise: Noise) -> Tensor:
        """The target policy's action with smoothing noise (paper, equation 14), ``[S, B, A]``."""
        action = self.target_actor(batch.next_obs)
        if "target" not in noise:
            return action
        clip = self.config.target_noise_clip
        return (action + (self.config.target_noise * noise["target"]).clamp(-clip, clip)).clamp(-1, 1)

    def actor_loss(self, batch: Batch) -> Tensor:
        """``-Q(s, pi(s))``, ``[S, B]`` (paper, algorithm 1)."""
        return -self.action_value(batch.obs, self.actor(batch.obs))

    def action_value(self, obs: Tensor, action: Tensor) -> Tensor:
        """The action value that the actor maximises, ``[S, B]``: that of the first critic."""
        return self.critic.first(obs, action)

    def draw(self, batch_size: int) -> Noise:
        if not self.config.target_noise:
            return {}
        return dict(target=self.rng.normal((batch_size, self.spec.action_dim)))

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        if explore:
            rng = self.exploring(obs)  # first, since it may reset the exploration
            return self.to_env(self.exploration.act(self.actor, obs, rng))
        return self.to_env(self.actor(obs))

    def log_prob(self, obs: Tensor, action: Tensor, explore: bool = False) -> Tensor | None:
        if not explore or not isinstance(self.exploration, Gaussian) or not self.exploration.sigma:
            return None
        return self.clipped_normal(action, self.actor(obs), action.new_tensor(self.exploration.sigma))

    def explore_in(self, lanes: Sequence[int]) -> None:
        super().explore_in(lanes)
        self.exploration = copy.copy(self.exploration)
        self.exploration.forget()

    def begin(self, where: np.ndarray, episodes: np.ndarray) -> None:
        super().begin(where, episodes)
        self.exploration.begin(where)

    def explore_state(self) -> dict[str, Any]:
        return dict(super().explore_state(), exploration=self.exploration.state_dict())

    def load_explore_state(self, state: dict[str, Any]) -> None:
        super().load_explore_state(state)
        self.exploration.load_state_dict(state["exploration"])
