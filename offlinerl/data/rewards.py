"""Rules that derive training rewards from stored ones."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import numpy as np

from offlinerl.data.dataset import Dataset
from offlinerl.data.registry import Entry
from offlinerl.util.errors import UserError


def _scale_by_return_range(dataset: Dataset) -> np.ndarray:
    return dataset.reward * _range_factor(dataset)


def _range_factor(dataset: Dataset) -> float:
    spread = np.ptp(dataset.episode_returns)
    if not spread > 0:
        raise UserError(
            f"{dataset.name}: all episodes have the same return, which leaves no range to scale rewards by;"
            " use the reward rule none"
        )
    return 1000 / spread


def _count(dataset: Dataset) -> np.ndarray:
    if dataset.episode_returns.max() > 7:  # Kitchen has seven tasks: these rewards are counts already
        return dataset.reward
    total = np.cumsum(dataset.reward, dtype=np.float64)
    before = (total - dataset.reward)[dataset.episode_starts]
    return total - np.repeat(before, dataset.episode_lengths)


AFFINE = {
    "minus_one": (1.0, -1.0),  # AntMaze: a cost of one per step until the goal
    "hundredfold": (100.0, 0.0),  # AntMaze as in ReBRAC
    "plus_minus_five": (10.0, -5.0),  # AntMaze as in CQL and Cal-QL
}
"""Rules that scale and then shift each reward by itself."""


def _affine(dataset: Dataset, rule: str) -> np.ndarray:
    scale, shift = AFFINE[rule]
    return dataset.reward * scale + shift


REWARDS = {
    **{rule: partial(_affine, rule=rule) for rule in AFFINE},
    "scale_by_return_range": _scale_by_return_range,  # locomotion: x 1000 / (best return - worst return)
    "count": _count,  # Kitchen: tasks completed so far, as in D4RL's files; the environment rewards a task once
}
"""Training rewards by rule. Scores always use the environment's own rewards."""

RULES = ("none", *REWARDS)
"""The rules; "none" keeps the rewards as stored."""

IN_WORDS = dict(
    scale_by_return_range="1000 / (highest return - lowest) times as large",
    minus_one="minus 1",
    hundredfold="100 times as large",
    plus_minus_five="10 times as large, minus 5",
    count="the number of tasks done so far",
)
"""How each rule changes a reward, in words."""


class OnlineReward(NamedTuple):
    """Converts the environment's rewards to the training rewards of a dataset. Plain data, so that a checkpoint can
    hold it.

    Called with the rewards of a step and their sum in the episode so far, both ``[...]``.
    """

    of_sum: bool = False
    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, reward: np.ndarray, total: np.ndarray) -> np.ndarray:
        return (total if self.of_sum else reward) * np.float32(self.scale) + np.float32(self.shift)


def online_reward(entry: Entry, raw: Dataset) -> OnlineReward:
    """The conversion from the environment's rewards to the training rewards of a dataset.

    Args:
        entry: the dataset's entry, with its rule.
        raw: the dataset with its rewards as stored.

    Raises:
        UserError: the rewards of ``raw`` are scaled already, or the rule does not apply to them.
    """
    stored_counts = (entry.score or {}).get("data") == "counts"  # D4RL's Kitchen, whose environment rewards a task once
    of_sum = entry.reward == "count" or stored_counts
    if entry.reward != "scale_by_return_range":
        return OnlineReward(of_sum, *AFFINE.get(entry.reward, (1.0, 0.0)))
    if raw.provenance.get("reward") == entry.reward:
        raise UserError(
            f"the rewards of {raw.name} are scaled already, which does not say how to scale the environment's: load"
            ' it with reward="none"'
        )
    return OnlineReward(of_sum, float(_range_factor(raw)))


def with_reward(dataset: Dataset, rule: str) -> Dataset:
    """The dataset with its rewards replaced by one of the ``RULES``, unless that was done already; the other columns
    are shared.

    Raises:
        UserError: the rule is unknown or does not apply to these rewards, or they already follow another rule.
    """
    if rule not in RULES:
        raise UserError(f"unknown reward rule {rule!r}; choose one of {', '.join(RULES)}")
    had = dataset.provenance.get("reward", "none")
    if rule in (had, "none"):
        return dataset
    if had != "none":
        raise UserError(
            f"the rewards of {dataset.name} follow the rule {had} already, and cannot follow {rule} too: load what it"
            ' was made of with reward="none"'
        )
    reward = REWARDS[rule](dataset).astype(np.float32, copy=False)
    return dataclasses.replace(dataset, reward=reward, provenance={**dataset.provenance, "reward": rule})
