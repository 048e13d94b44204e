"""A trained policy as a function of numpy observations, for a robot's control loop, for example."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offlinerl.agents import checkpoint
from offlinerl.agents.base import Agent
from offlinerl.envs import spaces
from offlinerl.rollout.loop import Diverged, actions_of, diverged_in_words
from offlinerl.util.device import pick_device
from offlinerl.util.errors import UserError, counted, either
from offlinerl.util.given import filled
from offlinerl.util.trees import Tree, first_leaf, observed_in_words, tree_leaves, tree_map


class DeployedPolicy:
    """One seed's policy: called with an observation, or with a batch of them, it returns the action for each.

    Args:
        agent: S policies.
        seed: which of them; by default the first.
        values: of settings that had several values, as in ``beta=2``; by default the first ones.

    Raises:
        UserError: there is no policy with that seed and these values.
    """

    def __init__(self, agent: Agent, seed: int | None = None, **values: float):
        s = agent.member(seed, **values)
        self.agent, self.spec, self.seed = agent.part(slice(s, s + 1)), agent.spec, agent.seeds[s]
        self.agent.explore_in([0])  # whichever environments its seeds explored in
        self.leaves = {leaf.path: leaf for leaf in agent.spec.obs}
        own = (agent.task or {}).get("leaves") or {}
        self.own = {path: spaces.from_json(node) for path, node in own.items()}
        self.low, self.high = (np.asarray(side, np.float32) for side in (agent.spec.action_low, agent.spec.action_high))
        self.reset()

    def __repr__(self) -> str:
        observed = observed_in_words({path: leaf.shape for path, leaf in self.leaves.items()})
        choices = self.spec.num_actions
        actions = f"one of {counted(choices, 'action')}" if choices else counted(self.spec.action_dim, "action")
        return f"<{type(self).__name__} {type(self.agent).__name__}, seed {self.seed}: {observed} to {actions}>"

    def reset(self) -> None:
        """Begins an episode: forgets what the policy remembers of the last one."""
        self.agent.begin(np.ones((1, 1), bool), np.zeros((1, 1), int))

    def receive(self, reward: float) -> None:
        """Receives the reward of the latest action, for policies conditioned on the return to go."""
        self.agent.receive(np.full((1, 1), reward))

    @torch.inference_mode()
    def __call__(self, obs: Tree) -> np.ndarray:
        """The best action in the environment's units: within its bounds, ``[A]`` float32, rounded if the environment
        takes integers; or an integer if actions are discrete. For a batch of observations ``[B, ...]`` it is ``[B, A]``
        or ``[B]``.

        Args:
            obs: an observation of the environment that the policy was trained for, as that returns it: a dictionary, a
                tuple or a number, if that is what it observes. Or what agents see of one, as datasets hold it: an
                array, or a dictionary by path.

        Raises:
            UserError: the observation is not finite or does not have the policy's shape, or the policy has diverged.
        """
        tree, want = self._parts(self._seen(obs)), {name: leaf.shape for name, leaf in self.leaves.items()}
        path, leaf = next(iter(self.leaves.items()))
        try:
            tree = {name: np.asarray(part) for name, part in tree.items()}
        except ValueError as error:  # of parts of several shapes in a tuple or a list
            raise UserError(f"the policy takes arrays as observations, not {obs!r}") from error
        batched = np.ndim(tree.get(path, obs)) > len(leaf.shape)
        have = {name: np.shape(part)[batched:] for name, part in tree.items()}
        if have != want:
            raise UserError(f"the policy takes observations of shape {want.get('', want)}, not {have.get('', have)}")
        if batched and len(sizes := {len(part) for part in tree.values()}) > 1:
            raise UserError(
                f"the parts of the observations are batches of {either(*sizes)}: give the same number of each"
            )
        arrays = {name: _as_numbers(part, self.leaves[name].dtype, name) for name, part in tree.items()}
        batch = arrays.get("", arrays)
        batch = tree_map(lambda x: torch.from_numpy(x)[None] if batched else torch.from_numpy(x)[None, None], batch)
        found = self.agent.act(tree_map(lambda x: x.to(self.agent.device), batch))
        action = actions_of(found, (*first_leaf(batch).shape[:2], self.spec.action_dim))[0]  # [B, A]
        if not np.isfinite(action).all():
            raise Diverged(diverged_in_words(self.agent, 0))
        if self.spec.num_actions:
            action = action[:, 0].astype(np.int64) + self.spec.first_action
        else:
            action = action.clip(self.low, self.high)
            action = np.rint(action) if self.spec.whole else action
        return action if batched else action[0]

    def _seen(self, obs: Tree) -> Tree:
        """What the policy sees of its environment's own observation; anything else as it is."""
        if not self.own:
            return obs
        if "" in self.own and np.shape(obs) == self.leaves[""].shape:
            whole = not self.own[""].shape and len(obs) > 1 and np.asarray(obs).dtype.kind in "iu"
            if whole and sorted(obs) == [0] * (len(obs) - 1) + [1]:
                raise UserError(
                    f"{len(obs)} whole numbers may be as many observations or one as a vector: give them one by one, or"
                    " the vector as floats"
                )
            if not whole:
                return obs
        try:
            found = spaces.converted(self.own, obs)
        except spaces.Misfit as misfit:
            raise UserError(f"the observation {misfit.what}") from misfit
        if found is None and "" not in self.own and "" in self.leaves and isinstance(obs, Mapping | tuple):
            raise UserError(f"the policy takes observations as its environment returns them: {self._fault(obs)}")
        return obs if found is None else found

    def _fault(self, obs: Tree) -> str:
        """The first part of its environment's observations that an observation lacks, or has in another shape."""
        for path, space in self.own.items():
            try:
                part = np.asarray(spaces.child(obs, path))
            except (LookupError, TypeError, ValueError):
                return f"it lacks the part {path}; the parts are {', '.join(self.own)}"
            if part.dtype.kind not in "biuf":
                return f"its part {path} holds no numbers"
            if (due := space.shape or ()) not in (part.shape, part.shape[1:]):
                return f"its part {path} has the shape {part.shape}, not {due}"
        return "some of its parts are batches, and others are not"

    def _parts(self, obs: Tree) -> dict[str, Any]:
        """The parts of an observation that the policy takes, by path."""
        if not isinstance(obs, Mapping):
            return {"": obs}
        if "" in self.leaves:
            if len(found := dict(tree_leaves(obs))) == 1:
                return {"": found.popitem()[1]}
            keys = (self.agent.task or {}).get("obs_keys")
            order = ", ".join(keys) if keys else "in which the environment's observation_space has them"
            raise UserError(
                f"the policy takes observations of shape {self.leaves[''].shape} and no dictionary: put its parts into"
                f" one vector, in the order {order}"
            )
        try:
            return {name: obs[name] if name in obs else spaces.child(obs, name) for name in self.leaves}
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"the policy takes observations with the parts {', '.join(self.leaves)}, not {', '.join(map(str, obs))}"
            ) from error


def _as_numbers(part: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """A part of an observation in the dtype that the policy takes.

    Raises:
        UserError: it does not hold finite numbers, or it is an image of other numbers than 0 to 255.
    """
    where = f"the observation{f', in its part {name},' if name else ''}"
    if part.dtype.kind not in "biuf":
        raise UserError(f"{where} holds no numbers")
    if not np.isfinite(part).all():
        raise UserError(f"{where} is not finite")
    if dtype == "uint8" != part.dtype and not ((part >= 0) & (part <= 255) & (part == np.floor(part))).all():
        raise UserError(f"{where} is an image of uint8: give whole numbers from 0 to 255, as the policy was trained on")
    return np.asarray(part, dtype, order="C")


@filled
def load_policy(
    path: str | Path,
    seed: int | None = None,
    *,
    device: torch.device | str = "cpu",
    agent_class: type[Agent] | str | None = None,
    **values: float,
) -> DeployedPolicy:
    """Loads the policy in a checkpoint.

    Args:
        path: a checkpoint, or a run's folder, whose last checkpoint is used.
        seed: which of those trained side by side; by default the first.
        device: where it computes: "auto", "cpu" or "cuda", or a torch device.
        agent_class: its class, if that is neither built in nor installed; see
            ``offlinerl.agents.checkpoint.load_agent``.
        values: of settings that had several values in this training, as in ``beta=2``; by default the first ones.

    Raises:
        UserError: there is no checkpoint, no policy with that seed and these values, or no such device.
    """
    return DeployedPolicy(
        checkpoint.load_agent(Path(path), pick_device(device), agent_class=agent_class), seed, **values
    )
