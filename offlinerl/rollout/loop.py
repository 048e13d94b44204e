"""The one loop of policies and environments. Collecting, evaluating, filming and generating differ in which episodes
they begin and in what they keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from offlinerl.envs.checks import Step as Answer
from offlinerl.envs.make import Pool
from offlinerl.rollout.policy import Policy
from offlinerl.types import Spec
from offlinerl.util.errors import UserError
from offlinerl.util.trees import Tree, tree_map


class Step(NamedTuple):
    """One step of every environment that is playing. The others show what they showed last, get no reward and do not
    end."""

    obs: Tree  # [S, E, ...]  what the policy acted on
    action: np.ndarray  # [S, E, A]  what it chose
    applied: np.ndarray  # [S, E, A]  what the environments took, within their bounds
    reward: np.ndarray  # [S, E] float64
    terminated: np.ndarray  # [S, E] bool
    truncated: np.ndarray  # [S, E] bool
    next_obs: Tree  # [S, E, ...]  the true successor
    answers: dict[int, Answer]  # what environment s * E + e itself returned


class EnvironmentLoop:
    """S policies in E environments each. An environment plays an episode from ``begin`` to its end, and then waits.

    Arrays that were handed out are never written to again.

    Args:
        pool: S * E environments; number s * E + e is the e-th of policy s.
        policies: S.
        reset_seed: gives the reset seed of an episode, from s, e and its number.

    Attributes:
        playing: ``[S, E]`` bool, where an episode is under way.
        episodes: ``[S, E]`` the number of the latest episode; -1 before the first one.
        obs: ``[S, E, ...]`` what every environment showed last.
    """

    def __init__(self, pool: Pool, policies: int, reset_seed: Callable[[int, int, int], int]):
        self.pool, self.reset_seed = pool, reset_seed
        self.shape = policies, len(pool.envs) // policies
        self.playing = np.zeros(self.shape, bool)
        self.episodes = np.full(self.shape, -1)
        self.obs = zeros(pool.spec, self.shape)

    def begin(self, where: np.ndarray, episodes: np.ndarray, *policies: Policy) -> dict[int, Tree]:
        """Reset the environments ``where`` for the episodes of these numbers, both ``[S, E]``, and tell the policies.

        Returns:
            The first observations, by the number of the environment.
        """
        self.episodes = np.where(where, episodes, self.episodes)
        shown = self.reset(where)
        self.playing = self.playing | where
        for policy in policies:
            policy.begin(where, self.episodes)
        return shown

    def reset(self, where: np.ndarray) -> dict[int, Tree]:
        """Reset some environments for their latest episodes, which nobody is told; what they show, by their numbers."""
        lanes = [(int(s), int(e)) for s, e in zip(*where.nonzero(), strict=True)]
        seeds = {self.number(s, e): self.reset_seed(s, e, int(self.episodes[s, e])) for s, e in lanes}
        shown = self.pool.reset(seeds)
        self.obs = tree_map(np.copy, self.obs)
        for i, obs in shown.items():
            put(self.obs, self.lane(i), obs)
        return shown

    def step(self, policy: Policy, explore: bool = False) -> Step:
        """Let a policy act in every environment that is playing.

        Raises:
            UserError: an action is not finite, or the actions are not ``[S, E, A]``; see also ``Pool.step``.
        """
        obs, playing = self.obs, self.playing
        with torch.no_grad():
            action = policy.act(tree_map(lambda x: torch.from_numpy(x).to(policy.device), obs), explore).cpu().numpy()
        self._require_sound(policy, action)
        # Out of bounds, an agent learns from the action that it chose, but the environment gets the nearest one inside.
        applied = self.pool.applied(action)
        answers = self.pool.step({self.number(s, e): applied[s, e] for s, e in zip(*playing.nonzero(), strict=True)})
        next_obs, reward = tree_map(np.copy, obs), np.zeros(self.shape)
        terminated, truncated = np.zeros(self.shape, bool), np.zeros(self.shape, bool)
        for i, (shown, *outcome, _) in answers.items():
            lane = self.lane(i)
            put(next_obs, lane, shown)
            reward[lane], terminated[lane], truncated[lane] = outcome
        self.obs, self.playing = next_obs, playing & ~(terminated | truncated)
        return Step(obs, action, applied, reward, terminated, truncated, next_obs, answers)

    def number(self, s: int, e: int) -> int:
        """What the pool calls an environment."""
        return int(s) * self.shape[1] + int(e)

    def lane(self, number: int) -> tuple[int, int]:
        """s and e of the pool's environment of that number."""
        return divmod(number, self.shape[1])

    def _require_sound(self, policy: Policy, action: np.ndarray) -> None:
        """An environment would be blamed for what it makes of other actions."""
        want = (*self.shape, self.pool.spec.action_dim)
        if action.shape != want:
            raise UserError(f"the policy returns actions of shape {action.shape} instead of [S, E, A], {want}")
        wrong = self.playing & ~np.isfinite(action).all(-1)
        if wrong.any():
            raise UserError(
                f"the policy of seed {policy.seeds[int(wrong.any(1).argmax())]} returns actions that are not finite:"
                " its training diverged; lower the learning rate or raise beta"
            )


def zeros(spec: Spec, shape: tuple[int, ...]) -> Tree:
    """Observations of no environment, ``[*shape, ...]``."""
    leaves = {leaf.path: np.zeros((*shape, *leaf.shape), leaf.dtype) for leaf in spec.obs}
    return leaves.get("", leaves)


def put(tree: Tree, index: tuple[int, ...], value: Tree) -> None:
    """Write one observation into those of many."""
    tree_map(lambda leaf, part: leaf.__setitem__(index, part), tree, value)
