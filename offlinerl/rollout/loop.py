"""The one loop of policies and environments. Collection, evaluation, videos and dataset generation all use it, and
differ in which episodes they begin and what they keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from offlinerl.envs.checks import Step as Answer
from offlinerl.envs.pool import Pool
from offlinerl.rollout.policy import Policy
from offlinerl.types import Spec
from offlinerl.util.errors import UserError
from offlinerl.util.settings import named
from offlinerl.util.trees import Tree, tree_map


class Step(NamedTuple):
    """One step of every environment that is playing. The others repeat their latest observation, get no reward and do
    not end."""

    obs: Tree  # [S, E, ...]  what the policy acted on
    action: np.ndarray  # [S, E, A]  what it chose
    applied: np.ndarray  # [S, E, A]  what the environments took, within their bounds
    reward: np.ndarray  # [S, E] float64
    terminated: np.ndarray  # [S, E] bool
    truncated: np.ndarray  # [S, E] bool
    next_obs: Tree  # [S, E, ...]  the true successor
    answers: dict[int, Answer]  # what environment s * E + e returned
    log_prob: np.ndarray | None = None  # [S, E]  see Policy.log_prob; None if not requested, or unknown


class Diverged(UserError):
    """A policy returns actions that are not finite."""


def diverged_in_words(policy: Policy, s: int) -> str:
    """The message about one of S policies whose actions are not finite."""
    members = getattr(policy, "members", [dict(seed=seed) for seed in policy.seeds])
    instead = " or raise beta" if hasattr(getattr(policy, "config", None), "beta") else ""
    return (
        f"the policy of {named(members[s])} returns actions that are not finite: its training diverged; lower the"
        f" learning rate{instead}"
    )


class EnvironmentLoop:
    """S policies in E environments each. An environment plays an episode from ``begin`` to its end, and then waits.

    Arrays that were returned are never modified.

    Args:
        pool: S * E environments; number s * E + e is environment e of policy s.
        policies: S.
        reset_seed: gives the reset seed of an episode, from s, e and its number.
        diverging: what to do about a policy whose actions are not finite, as long as another's are: "raise"
            ``Diverged``; "stop" playing its episodes; or "idle", to play on with zeros, or the values within the bounds
            nearest to them.

    Attributes:
        diverged: ``[S]`` bool, whose actions were not finite.
        playing: ``[S, E]`` bool, where an episode is in progress.
        lanes: s and e of these environments, by their number in the pool.
        episodes: ``[S, E]`` the number of the latest episode; -1 before the first one.
        obs: ``[S, E, ...]`` every environment's latest observation.
    """

    def __init__(
        self,
        pool: Pool,
        policies: int,
        reset_seed: Callable[[int, int, int], int],
        diverging: Literal["raise", "stop", "idle"] = "raise",
    ):
        self.pool, self.reset_seed, self.diverging = pool, reset_seed, diverging
        self.diverged = np.zeros(policies, bool)
        self.shape = policies, len(pool.envs) // policies
        self.play(np.zeros(self.shape, bool))
        self.episodes = np.full(self.shape, -1)
        self.obs = zeros(pool.spec, self.shape)

    def begin(self, where: np.ndarray, episodes: np.ndarray, *policies: Policy) -> dict[int, Tree]:
        """Begins the episodes with these numbers in the environments ``where``, both ``[S, E]``, and in the policies.

        Returns:
            The first observations, by the number of the environment.
        """
        before, self.episodes = self.episodes, np.where(where, episodes, self.episodes)
        try:
            shown = self.reset(where)
        except BaseException:  # they have not begun
            self.episodes = before
            raise
        self.play(self.playing | where)
        for policy in policies:
            policy.begin(where, self.episodes)
        return shown

    def reset(self, where: np.ndarray) -> dict[int, Tree]:
        """Resets some environments, but no policy, to begin their latest episodes. Returns their first observations, by
        the number of the environment."""
        lanes = {i: self.lane(i) for i in np.flatnonzero(where).tolist()}
        shown = self.pool.reset({i: self.reset_seed(*lane, int(self.episodes[lane])) for i, lane in lanes.items()})
        self.obs = tree_map(np.copy, self.obs)
        for i, obs in shown.items():
            put(self.obs, self.lane(i), obs)
        return shown

    def play(self, where: np.ndarray) -> None:
        """Makes exactly these environments ``[S, E]`` the playing ones."""
        self.playing = where
        self.lanes = {i: self.lane(i) for i in np.flatnonzero(where).tolist()}

    def step(self, policy: Policy, explore: bool = False, log_prob: bool = False) -> Step:
        """Lets a policy act in every environment that is playing.

        Args:
            policy: acts.
            explore: see ``Policy.act``.
            log_prob: whether to ask for the log-probabilities of its actions.

        Raises:
            UserError: the actions are not ``[S, E, A]``, or one is not finite, which is a ``Diverged``; see also
                ``Pool.step``.
        """
        obs = self.obs
        given = tree_map(lambda x: torch.from_numpy(x).to(policy.device), obs)
        with torch.no_grad():
            action = policy.act(given, explore)
        action = self._checked(policy, actions_of(action, (*self.shape, self.pool.spec.action_dim)))
        # The agent learns from the action that it chose; out of bounds, the environment gets the nearest one inside.
        applied = self.pool.applied(action)
        logs = self.log_prob(policy, given, applied, explore) if log_prob else None
        answers = self.pool.step({i: applied[lane] for i, lane in self.lanes.items()})
        next_obs, reward = tree_map(np.copy, obs), np.zeros(self.shape)
        terminated, truncated = np.zeros(self.shape, bool), np.zeros(self.shape, bool)
        ended = False
        for i, (shown, value, ends, cut_off, _) in answers.items():
            lane = self.lanes[i]
            put(next_obs, lane, shown)
            reward[lane], terminated[lane], truncated[lane] = value, ends, cut_off
            ended = ended or ends or cut_off
        self.obs = next_obs
        if (receive := getattr(policy, "receive", None)) is not None:
            receive(reward)
        if ended:
            self.play(self.playing & ~(terminated | truncated))
        return Step(obs, action, applied, reward, terminated, truncated, next_obs, answers, logs)

    def log_prob(self, policy: Policy, obs: Tree, applied: np.ndarray, explore: bool) -> np.ndarray | None:
        """The log-probabilities that a policy gives for its actions as applied; None for rounded ones. See
        ``Policy.log_prob``, also for the arguments."""
        known = getattr(policy, "log_prob", None)
        if known is None or self.pool.spec.whole:
            return None
        with torch.no_grad():
            found = known(obs, torch.from_numpy(applied).to(policy.device), explore)
        return None if found is None else found.cpu().numpy()

    def lane(self, number: int) -> tuple[int, int]:
        """s and e of the environment with this number in the pool."""
        return divmod(number, self.shape[1])

    def _checked(self, policy: Policy, action: np.ndarray) -> np.ndarray:
        """The actions, all finite, because an environment would be blamed for what it does with others."""
        finite = np.isfinite(action)
        if finite.all():
            return action
        wrong = (self.playing & ~finite.all(-1)).any(1)  # [S]
        self.diverged |= wrong
        if wrong.any():
            if self.diverged.all() or self.diverging == "raise":
                raise Diverged(diverged_in_words(policy, int(wrong.argmax())))
            if self.diverging == "stop":
                self.play(self.playing & ~self.diverged[:, None])
        return np.where(finite, action, 0)


def actions_of(found: Any, want: tuple[int, ...]) -> np.ndarray:
    """What a policy's ``act`` returned, in numpy.

    Raises:
        UserError: it is not a tensor of the shape ``want``.
    """
    if not isinstance(found, torch.Tensor):
        raise UserError(f"the policy returns {type(found).__name__} as actions; return a tensor [S, E, A] from act")
    if found.shape != want:
        raise UserError(f"the policy returns actions of shape {(*found.shape,)} instead of [S, E, A], {want}")
    return found.cpu().numpy()


def zeros(spec: Spec, shape: tuple[int, ...]) -> Tree:
    """Observations of zeros, ``[*shape, ...]``."""
    leaves = {leaf.path: np.zeros((*shape, *leaf.shape), leaf.dtype) for leaf in spec.obs}
    return leaves.get("", leaves)


def put(tree: Tree, index: tuple[int, ...], value: Tree) -> None:
    """Writes one observation into a batch of observations."""
    if isinstance(tree, np.ndarray):
        tree[index] = value
    else:
        tree_map(lambda leaf, part: put(leaf, index, part), tree, value)
