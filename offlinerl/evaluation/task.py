"""The task to evaluate policies in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np

from offlinerl.data import registry
from offlinerl.data.edit import covers
from offlinerl.envs.goals import GoalSeen
from offlinerl.envs.make import id_of, plain
from offlinerl.envs.pixels import is_fast
from offlinerl.types import Spec
from offlinerl.util.display import FAST
from offlinerl.util.given import two_numbers

GOAL_SEEN = GoalSeen.class_name()
"""The name by which a specification lists this wrapper, which ``goal`` in an environment's description stands for."""

COLUMNS_SEEN = "columns of the observations (--columns)"


@dataclass(frozen=True)
class Task:
    """What evaluation needs to know about a task.

    Attributes:
        env: the environment to make; see ``offlinerl.envs.make.make``. None: it is unknown, and nothing is evaluated.
        obs_keys: parts of a ``Dict`` observation.
        score: ``{"min": ..., "max": ..., "from": "return" or "success"}``, or None: the return is the score.
        score_kind: the name of the score: "normalized", "minari", "ours", "given", "success" or "return"; see also
            ``label``.
        reward: for an agent whose policy depends on its rewards, how to transform the environment's rewards to those
            that it was trained with; see ``offlinerl.data.rewards.OnlineReward``.
        parts: the parts of the observations in order, and the table columns of each, as far as the dataset tells; see
            ``offlinerl.data.edit.made_of``.
        actions: the table columns of the actions in order, if the dataset is a table.
        leaves: the leaves of the environment's own observations, by path, as ``offlinerl.envs.spaces.to_json`` writes
            them; None if it is unknown, or if agents see its observations as they are.
    """

    env: Mapping[str, Any] | None = None
    obs_keys: Sequence[str] | None = None
    score: Mapping[str, Any] | None = None
    score_kind: str = "return"
    reward: Sequence[Any] | None = None
    parts: Mapping[str, Sequence[str]] | None = None
    actions: Sequence[str] | None = None
    leaves: Mapping[str, Mapping[str, Any]] | None = None

    @classmethod
    def of(cls, entry: registry.Entry) -> Task:
        """The task of a dataset in the registry."""
        return cls(entry.env, entry.obs_keys, entry.score, entry.score_kind)

    def scored(self, span: Sequence[float] | None) -> Task:
        """The task with the score range that a user gives; see ``registry.score_range``. None: with its own."""
        if span is None:
            return self
        return replace(self, score=registry.score_range(two_numbers("score_range", span)), score_kind="given")

    @property
    def stack(self) -> int:
        """Number of frames in an observation."""
        return (self.env or {}).get("stack", 1)

    @property
    def label(self) -> str:
        """The kind of score, marked if observed images are drawn without shadows: such scores are not comparable with
        others."""
        return self.score_kind + (FAST if self.env and is_fast(self.env) else "")

    @property
    def env_id(self) -> str | None:
        return None if self.env is None else id_of(self.env)

    def plain(self) -> dict[str, Any]:
        """The task as plain data for a checkpoint, without an object that makes the environment."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        return json.loads(json.dumps({**known, "env": plain(self.env)}))

    @property
    def facts(self) -> dict[str, Any] | None:
        """What identifies the task, as plain data that does not depend on the name by which the task was given."""
        if self.env is None:
            return None
        if "spec" in self.env:
            known = json.loads(self.env["spec"])
        else:
            spec = gymnasium.registry.get(self.env["id"])
            known = {} if spec is None else dict(kwargs=spec.kwargs, max_episode_steps=spec.max_episode_steps)
        kwargs = {**known.get("kwargs", {}), **self.env.get("kwargs", {})}
        given = {key: value for key, value in self.env.items() if key not in ("id", "spec", "kwargs", "factory")}
        limit = kwargs.pop("max_episode_steps", known.get("max_episode_steps"))
        stated = GOAL_SEEN if "goal" in given else None
        wrappers = [of for of in known.get("additional_wrappers", ()) if of["name"] != stated]
        env = dict(id=self.env_id, kwargs=kwargs, max_episode_steps=limit, wrappers=wrappers) | given
        facts = dict(env=env, obs_keys=self.obs_keys, score=self.score)
        return json.loads(json.dumps(facts, default=lambda value: type(value).__name__))

    def difference(
        self, other: Task, spec: Spec, one_source: bool = False
    ) -> tuple[str, Sequence[str], Sequence[str]] | None:
        """How the meaning of the numbers that agents see and return differs from that in another task of the same
        shapes, as far as both are known: what differs, and the names in this task and in the other. None if nothing is
        known to differ.

        Args:
            other: the other task.
            spec: the shapes of both.
            one_source: whether both are of one dataset. In two datasets, different names may mean the same, and only
                the same names in another order differ for certain.
        """
        parts, others = (dict(of.parts or dict.fromkeys(of.obs_keys or (), ())) for of in (self, other))
        found: list[tuple[str, Sequence[str], Sequence[str]]] = []
        if "" in {**parts, **others}:  # a part without a name is the whole observation
            columns = [[name for names in of.values() for name in names] for of in (parts, others)]
            found.append((COLUMNS_SEEN, *columns))
        else:
            in_order = not spec.obs[0].path  # else they are told apart by name
            if in_order and not (covers([*parts], [*others]) or covers([*others], [*parts])):
                found.append(("parts of the observations (--obs-keys)", [*parts], [*others]))
            found += [(COLUMNS_SEEN, names, others.get(part, ())) for part, names in parts.items()]
        found.append(("columns of the actions (--columns)", self.actions or (), other.actions or ()))
        for what, own, its in found:
            if own and its and [*own] != [*its] and (one_source or sorted(own) == sorted(its)):
                return what, own, its
        return None

    def scores(self, returns: np.ndarray, success: np.ndarray) -> np.ndarray:
        """Normalised scores, ``100 (R - min) / (max - min)``, where R is the return or the success; without ``score``,
        the returns."""
        if self.score is None:
            return returns
        raw = success if self.score.get("from") == "success" else returns
        return registry.normalized_score(raw, self.score["min"], self.score["max"])
