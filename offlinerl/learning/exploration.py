"""Exploration during collection: noise on a policy's actions or parameters, and schedules.

An exploration acts for S seeds in E environments each. It draws from the environments' own random streams, so that an
episode does not depend on the others that run beside it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from offlinerl.learning.rng import EnvStreams


class Exploration(ABC):
    """Turns a deterministic policy into one that explores."""

    def forget(self) -> None:  # noqa: B027  (most have no state)
        """Reset the state; the number of environments may change."""

    def begin(self, where: np.ndarray) -> None:  # noqa: B027
        """Called before ``act`` with where new episodes begin, ``[S, E]`` bool."""

    @abstractmethod
    def act(self, actor: nn.Module, obs: Tensor, rng: EnvStreams) -> Tensor:
        """Actions in units of [-1, 1]: ``[S, E, O] -> [S, E, A]``."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Continue from a saved state."""


class Gaussian(Exploration):
    """Independent Gaussian noise on the action (Fujimoto et al., 2018).

    Args:
        sigma: standard deviation, in units of half the action's range.
    """

    def __init__(self, sigma: float):
        self.sigma = sigma

    def act(self, actor: nn.Module, obs: Tensor, rng: EnvStreams) -> Tensor:
        action = actor(obs)
        return (action + self.sigma * rng.normal(action.shape[2:]).to(action.device)).clamp(-1, 1)


class OrnsteinUhlenbeck(Exploration):
    """Autocorrelated noise on the action, ``x <- (1 - theta) x + sigma N(0, 1)``, from zero in every episode.

    Uhlenbeck & Ornstein (1930), with a time step of one, as in Lillicrap et al. (2016, section 7). The
    autocorrelation at a lag of k steps is ``(1 - theta)^k``, and the variance tends to
    ``sigma^2 / (1 - (1 - theta)^2)``.

    Args:
        sigma: standard deviation of a step's innovation, in units of half the action's range.
        theta: rate of mean reversion per step.
    """

    def __init__(self, sigma: float = 0.2, theta: float = 0.15):
        self.sigma, self.theta = sigma, theta
        self.forget()

    def forget(self) -> None:
        self.x = torch.zeros(())  # [S, E, A] from the first action on

    def begin(self, where: np.ndarray) -> None:
        if self.x.ndim:
            self.x[torch.from_numpy(where)] = 0

    def act(self, actor: nn.Module, obs: Tensor, rng: EnvStreams) -> Tensor:
        action = actor(obs)
        self.x = (1 - self.theta) * self.x + self.sigma * rng.normal(action.shape[2:])
        return (action + self.x.to(action.device)).clamp(-1, 1)

    def state_dict(self) -> dict[str, Any]:
        return dict(x=self.x)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.x = state["x"].cpu()


class ParameterNoise(Exploration):
    """A perturbed copy of the actor for every episode, at a given distance in action space.

    Plappert et al., Parameter Space Noise for Exploration, ICLR 2018: Gaussian noise of standard deviation sigma on all
    parameters. After an episode, sigma is multiplied by ``growth`` if the actions differed from the actor's by at most
    ``distance`` (root mean square over steps and dimensions), and divided by it otherwise (equation 3).

    Args:
        distance: the desired one, in units of half the action's range.
        growth: factor by which sigma adapts.
    """

    def __init__(self, distance: float = 0.2, growth: float = 1.01):
        self.distance, self.growth = distance, growth
        self.forget()

    def forget(self) -> None:
        self.parameters: dict[str, Tensor] = {}  # [S, E, ...]
        self.sigma = self.squares = self.steps = torch.zeros(())  # [S, E] from the first episode on
        self.began: Tensor | None = None  # [S, E] bool, where episodes began since the latest action

    def begin(self, where: np.ndarray) -> None:
        begin = torch.from_numpy(where)
        self.began = begin if self.began is None else self.began | begin

    @torch.no_grad()
    def act(self, actor: nn.Module, obs: Tensor, rng: EnvStreams) -> Tensor:
        if self.began is not None:
            self._perturb(actor, self.began, rng)
            self.began = None
        action = functional_call(actor, self.parameters, obs.unsqueeze(2)).squeeze(2)  # [S, E, A]
        self.squares += (action - actor(obs)).square().mean(-1).cpu()
        self.steps += 1
        return action

    def _perturb(self, actor: nn.Module, began: Tensor, rng: EnvStreams) -> None:
        named = dict(actor.named_parameters())
        if not self.parameters:
            self.parameters = {
                name: p.detach().unsqueeze(1).repeat(1, began.shape[1], *[1] * (p.ndim - 1))
                for name, p in named.items()
            }
            self.sigma = torch.full(began.shape, self.distance)
            self.squares, self.steps = torch.zeros(began.shape), torch.zeros(began.shape)
        played = began & (self.steps > 0)
        near = (self.squares / self.steps.clamp(min=1)).sqrt() <= self.distance
        adapted = torch.where(near, self.sigma * self.growth, self.sigma / self.growth)
        self.sigma = torch.where(played, adapted, self.sigma)
        self.squares[began] = self.steps[began] = 0
        for s, e in began.nonzero().tolist():
            for name, p in named.items():
                noise = torch.empty(p.shape[1:]).normal_(generator=rng.generators[s][e])
                self.parameters[name][s, e] = p[s] + self.sigma[s, e].item() * noise.to(p.device)

    def state_dict(self) -> dict[str, Any]:
        numbers = dict(sigma=self.sigma, squares=self.squares, steps=self.steps)
        return dict(numbers, parameters=self.parameters, began=self.began)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.parameters, began = dict(state["parameters"]), state.get("began")  # older versions did not save it
        self.began = None if began is None else began.cpu()
        self.sigma, self.squares, self.steps = (state[name].cpu() for name in ("sigma", "squares", "steps"))


def exploration_of(name: str, sigma: float) -> Exploration:
    """The exploration of that name: "gaussian", "ou" or "parameter"."""
    return {"gaussian": Gaussian, "ou": OrnsteinUhlenbeck, "parameter": ParameterNoise}[name](sigma)


def best_of(values: Tensor) -> Tensor:
    """The argmax of values ``[..., actions]`` as a float ``[..., 1]``; NaN where any value is NaN, so that a diverged
    policy is noticed."""
    return values.argmax(-1, keepdim=True).float().masked_fill(values.isnan().any(-1, keepdim=True), torch.nan)


def epsilon_greedy(greedy: Tensor, epsilon: float, num_actions: int, rng: EnvStreams) -> Tensor:
    """Action indices ``[S, E, 1]``, each replaced by a uniformly random one with probability ``epsilon``."""
    luck = rng.uniform(0, 1, (2,)).numpy()  # [S, E, 2]: whether to act randomly, and which action
    random = luck[..., :1] < epsilon
    if not random.any():
        return greedy
    anything = np.minimum(np.floor(luck[..., 1:] * num_actions), num_actions - 1)
    chosen, numbers = (torch.from_numpy(x).to(greedy.device) for x in (random, anything))
    return torch.where(chosen, numbers, greedy)


def linear(start: float, end: float, duration: int, step: int) -> float:
    """Interpolate linearly from ``start`` to ``end`` over ``duration`` steps, then stay; ``end`` if that is 0."""
    return start + (end - start) * (step / duration if step < duration else 1.0)
