"""What acts in environments: agents, random actions, scripts, policies with added noise, and users' own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from offlinerl.agents.base import Agent
from offlinerl.learning import densities
from offlinerl.learning.exploration import epsilon_greedy
from offlinerl.learning.rng import EnvStreams
from offlinerl.types import Spec
from offlinerl.util.errors import UserError
from offlinerl.util.trees import Tree


class Policy(Protocol):
    """S policies that act in E environments each. ``begin`` resets what a policy remembers of an episode, such as a
    frame stack, an action chunk, a recurrent state or a noise process.

    An agent is one. A class that derives from this one inherits the attributes.

    Attributes:
        seeds: S integers, by which messages and files name the policies.
        spec: the task that it acts in; None: any.
        device: where it takes observations.
    """

    seeds: Sequence[int] = (0,)
    spec: Spec | None = None
    device: torch.device | str = "cpu"

    def begin(self, where: np.ndarray, episodes: np.ndarray) -> None:  # noqa: B027  (most remember nothing)
        """Called where episodes begin, before ``act`` receives their first observations. Elsewhere the current episode
        continues, or none is in progress: such an environment repeats its latest observation and takes no action. If E
        differs from before, all earlier episodes are over.

        Args:
            where: ``[S, E]`` bool.
            episodes: ``[S, E]`` the number of the latest episode in every environment; -1 before the first one.
        """

    def receive(self, reward: np.ndarray) -> None:  # noqa: B027  (most do not ask)
        """Receives the rewards ``[S, E]`` of the step with the latest actions, as the environment gave them. A policy
        that does not derive from this class may omit this method."""

    def log_prob(self, obs: Tree, action: Tensor, explore: bool = False) -> Tensor | None:
        """Log-probabilities, or log-densities in the environment's units, with which the latest call of ``act`` drew
        these actions for these observations, ``[S, E]``; None if unknown. A policy that does not derive from this class
        may omit this method.

        Args:
            obs: as passed to ``act``.
            action: ``[S, E, A]`` the chosen actions, within the bounds.
            explore: as passed to ``act``.
        """
        return None

    @abstractmethod
    def act(self, obs: Tree, explore: bool = False) -> Tensor:
        """Actions in the environment's units, ``[S, E, ...] -> [S, E, A]``; a discrete action is its index, A = 1.

        Args:
            obs: must not be modified.
            explore: whether the actions are for collecting data.
        """


def apart(policy: Policy, lanes: Sequence[int]) -> Policy:
    """The policy for use in other environments, E per seed, with these numbers. An agent that explores elsewhere can
    continue there later; other policies start anew with each call of ``begin``."""
    return policy.acting_in(lanes) if isinstance(policy, Agent) else policy


class Uniform(Policy):
    """Uniformly random actions.

    Args:
        spec: bounds of the task.
        streams: where they are drawn from.
    """

    def __init__(self, spec: Spec, streams: EnvStreams):
        self.spec, self.streams, self.seeds = spec, streams, streams.seeds
        self.mid, self.half = torch.from_numpy(spec.action_mid), torch.from_numpy(spec.action_half)

    def begin(self, where: np.ndarray, episodes: np.ndarray) -> None:
        self.streams.begin(where, episodes)

    def act(self, obs: Tree, explore: bool = False) -> Tensor:
        uniform, count = self.streams.uniform(0, 1, (self.spec.action_dim,)), self.spec.num_actions  # [S, E, A]
        if count:
            return (uniform * count).floor().clamp(max=count - 1)
        if self.spec.whole:
            low, high = self.mid - self.half, self.mid + self.half
            return torch.minimum(low + (uniform * (high - low + 1)).floor(), high)
        return self.mid + self.half * (2 * uniform - 1)

    def log_prob(self, obs: Tree, action: Tensor, explore: bool = False) -> Tensor:
        if count := self.spec.num_actions:
            return densities.epsilon_greedy(action, action, 1.0, count)
        return densities.uniform(action, self.mid - self.half, self.mid + self.half)


class Noisy(Policy):
    """A policy that does not explore, with noise added to its actions.

    Args:
        policy: S policies.
        sigma: standard deviation of Gaussian noise, in units of half the action range; for discrete actions, the
            probability of a random one.
        spec: bounds of the task.
        streams: of S seeds, where the noise is drawn from.

    Raises:
        UserError: that probability is above 1.
    """

    def __init__(self, policy: Policy, sigma: float, spec: Spec, streams: EnvStreams):
        if spec.num_actions and sigma > 1:
            raise UserError(f"noise on discrete actions is the probability of a random one, from 0 to 1, not {sigma:g}")
        self.policy, self.sigma, self.spec, self.streams = policy, sigma, spec, streams
        self.seeds, self.device = streams.seeds, policy.device
        low, high, half = spec.action_low, spec.action_high, spec.action_half
        self.low, self.high, self.half = (torch.tensor(side, device=self.device) for side in (low, high, half))

    def begin(self, where: np.ndarray, episodes: np.ndarray) -> None:
        self.streams.begin(where, episodes)
        self.policy.begin(where, episodes)

    def receive(self, reward: np.ndarray) -> None:
        if (receive := getattr(self.policy, "receive", None)) is not None:
            receive(reward)

    def act(self, obs: Tree, explore: bool = False) -> Tensor:
        self.chosen = action = self.policy.act(obs)
        if not self.sigma:
            return action
        if self.spec.num_actions:
            return epsilon_greedy(action, self.sigma, self.spec.num_actions, self.streams)
        noise = self.sigma * self.half * self.streams.normal((self.spec.action_dim,)).to(action.device)
        return (action + noise).clamp(self.low, self.high)

    def log_prob(self, obs: Tree, action: Tensor, explore: bool = False) -> Tensor | None:
        if not self.sigma:  # without exploration, an agent takes its most likely action and draws none
            known = None if isinstance(self.policy, Agent) else getattr(self.policy, "log_prob", None)
            return known and known(obs, action)
        if count := self.spec.num_actions:
            return densities.epsilon_greedy(action, self.chosen, self.sigma, count)
        return densities.clipped_normal(action, self.chosen, self.sigma * self.half, self.low, self.high)
