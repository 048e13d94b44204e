"""Results of a comparison of agents: estimates with intervals, probabilities of improvement, and a verdict."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from offlinerl.evaluation.comparison import Group, Overall
from offlinerl.evaluation.statistics import (
    AGGREGATES,
    Strata,
    chance_of_improvement,
    interquartile_mean,
    mean_of_tasks,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)  # fmt: skip
from offlinerl.util.display import between, places, shown, unit_of
from offlinerl.util.errors import either

CHANCE = 0.025
"""Significance level: an agent is only called better if an equally good one would lead by as much with at most this
probability."""

THRESHOLDS = 101
"""Number of points of a performance profile."""


class Estimate(NamedTuple):
    """A value and its 95% interval, which is NaN if it cannot be computed."""

    value: float
    low: float
    high: float

    def text(self) -> str:
        """The estimate in words, such as "71.3 (69.0 to 73.5)"."""
        value, low, high = self
        if np.isnan(low):
            return shown(value)
        decimals = places(low, high)
        return f"{shown(value, decimals)} ({between((low, high), decimals)})"


def percent(chance: Estimate) -> str:
    """A probability in words, such as "83%, 63 to 97%"."""
    value, low, high = (100 * number for number in chance)
    return f"{value:.0f}%" + ("" if np.isnan(low) else f", {low:.0f} to {high:.0f}%")


class Curve(NamedTuple):
    """Values ``[U]`` at times or thresholds ``[U]``, with their 95% intervals."""

    x: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Findings:
    """The results for agents on one task, or on several.

    Attributes:
        title: of the task or tasks.
        unit: of the estimates.
        clock: "updates" or "steps".
        tasks: titles of the tasks.
        names: of the agents, best first.
        tried: number of settings tried, by agent.
        strata: the scores of each agent's trainings, for each task.
        estimates: "IQM", "mean" and, over several tasks, "median"; empty if the tasks' scores have no common scale.
        improvement: for every pair in the order of ``names``, the probability that a training of the first agent
            scores higher than one of the second.
        curves: the score over updates or steps; over several tasks, the interquartile mean.
        profiles: the fraction of trainings above a score; only over several tasks.
        others: the names of agents that lack some of the tasks.
    """

    title: str
    unit: str
    clock: str
    tasks: tuple[str, ...]
    names: tuple[str, ...]
    tried: Mapping[str, int]
    strata: Mapping[str, Strata]
    estimates: Mapping[str, Mapping[str, Estimate]]
    improvement: Mapping[tuple[str, str], Estimate]
    curves: Mapping[str, Curve]
    profiles: Mapping[str, Curve]
    others: tuple[str, ...] = ()

    @property
    def fewest(self) -> int:
        """The smallest number of trainings of any agent on any task."""
        return min(len(task) for scores in self.strata.values() for task in scores)

    @property
    def criterion(self) -> str | None:
        """The estimate by which the agents are ranked; None if there are no estimates."""
        return None if not self.estimates else "IQM" if len(self.tasks) > 1 else "mean"

    def beats(self, x: str, y: str) -> Estimate:
        """The probability that a training of ``x`` scores higher than one of ``y``."""
        if (x, y) in self.improvement:
            return self.improvement[x, y]
        value, low, high = self.improvement[y, x]
        return Estimate(1 - value, 1 - high, 1 - low)

    def trainings(self, name: str) -> int:
        return sum(map(len, self.strata[name]))

    def equals(self, x: str, y: str) -> bool:
        """Whether two agents have the same scores on every task, in any order of the trainings."""
        pairs = zip(self.strata[x], self.strata[y], strict=True)
        return all(np.array_equal(np.sort(of_x), np.sort(of_y)) for of_x, of_y in pairs)

    def luck(self, other: str) -> float:
        """The probability that the best agent would lead another by as much if both were equally good."""
        return chance_of_improvement(self.strata[self.names[0]], self.strata[other])

    @property
    def rivals(self) -> list[str]:
        """The agents that the best one is not significantly better than, nearest first: the interval of its probability
        of improvement reaches 50%, or the permutation test gives more than ``CHANCE``."""
        best, *others = self.names

        def is_better(other: str) -> bool:
            return self.beats(best, other).low > 0.5 and self.luck(other) <= CHANCE

        return sorted(itertools.filterfalse(is_better, others), key=lambda other: self.beats(best, other).value)

    def verdict(self) -> tuple[bool, str]:
        """Whether the best agent is significantly better than all others, and the result in words."""
        best, *others = self.names
        value = ""
        if self.criterion is not None:
            kind = dict(mean="a mean", IQM="an interquartile mean")[self.criterion]
            value = f" with {kind} of {self.estimates[best][self.criterion].text()}"
        if not others:
            return False, f"{best} is the only agent here{value}."
        if all(self.equals(best, other) for other in others):
            return False, f"All agents have the same scores{value}."
        rivals = self.rivals
        if not rivals:
            least = min(others, key=lambda other: self.beats(best, other).value)
            than = f"{least}, the nearest," if len(others) > 1 else least
            among = f" of those that have all {len(self.tasks)} tasks" if self.others else ""
            text = (
                f"{best} is the best{among}{value}. A training of it scores higher than one of {than} with probability"
            )
            text += f" {percent(self.beats(best, least))}."
        else:
            chances = [f"{other} ({percent(self.beats(best, other))} of the pairs)" for other in rivals[:3]]
            chances += [f"{len(rivals) - 3} more"] * (len(rivals) > 3)
            text = f"{best} comes first{value}, but it is not certain that it is better than {either(*chances)}."
            if self.beats(best, rivals[0]).low > 0.5:
                text += f" Two equally good agents would differ as much with probability {self.luck(rivals[0]):.2f}."
        if self.fewest < 5:
            text += f" With as few trainings per agent and task as {self.fewest}, luck matters much."
        tried = {name.partition(" ")[0]: count for name, count in self.tried.items()}
        if len(set(tried.values())) > 1:
            each = ", ".join(f"{count} of {agent}" for agent, count in tried.items())
            text += f" The numbers of settings tried differ: {each}. The best of many is partly luck."
        return not rivals, text


def of_group(group: Group) -> Findings:
    """The results on one task. The interval of the mean resamples seeds and starts, that of the interquartile mean
    only seeds."""
    rows = {row.name: row for row in group.rows}
    strata = {name: [row.per_seed] for name, row in rows.items()}
    estimates = {
        name: {
            "mean": Estimate(float(row.scores.mean()), *row.interval),
            "IQM": _estimate(interquartile_mean, [row.per_seed]),
        }
        for name, row in rows.items()
    }
    curves = {name: _curve(mean_of_tasks, *_one(row.curve())) for name, row in rows.items()}
    return Findings(
        group.title, group.unit, group.clock, (group.title,), tuple(rows), {row.name: row.tried for row in group.rows},
        strata, estimates, _improvement(tuple(rows), strata), curves, {},
    )  # fmt: skip


def of_overall(overall: Overall) -> Findings:
    """The results over several tasks. Agents are ranked by their interquartile mean or, if the tasks have no common
    scale, by their mean probability of scoring higher than the others."""
    strata = {name: overall.strata(name) for name in overall.names}
    tried = {name: overall.tried(name) for name in overall.names}
    estimates: dict[str, dict[str, Estimate]] = {}
    curves, profiles = {}, {}
    if overall.comparable:
        estimates = {
            name: {key: _estimate(aggregate, scores) for key, aggregate in AGGREGATES.items()}
            for name, scores in strata.items()
        }
        pooled = np.concatenate([task for scores in strata.values() for task in scores])
        low, high = np.nanmin(pooled), np.nanmax(pooled)
        thresholds = np.linspace(low - (high - low) / 20, high, THRESHOLDS)
        for name, scores in strata.items():
            curves[name] = _curve(interquartile_mean, *overall.curve(name))
            profiles[name] = _profile(scores, thresholds)
        rank = {name: estimates[name]["IQM"].value for name in strata}
    else:
        rank = {
            x: float(np.mean([probability_of_improvement(strata[x], strata[y]) for y in strata if y != x]))
            for x in strata
        }
    names = tuple(sorted(strata, key=lambda name: -np.nan_to_num(rank[name], nan=-np.inf)))
    titles = tuple(task.title for task in overall.tasks)
    title = f"Over {len(titles)} tasks"
    return Findings(
        title, unit_of(overall.kind), overall.clock, titles, names, tried, strata, estimates,
        _improvement(names, strata), {name: curve for name, curve in curves.items() if len(curve.x) > 1}, profiles,
        overall.others,
    )  # fmt: skip


def _one(curve: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, Strata]:
    return curve[0], [curve[1]]


def _estimate(statistic: Callable[..., np.ndarray], *agents: Strata) -> Estimate:
    low, high = stratified_bootstrap(statistic, *agents)
    return Estimate(float(statistic(*agents)), float(low), float(high))


def _curve(statistic: Callable[[Strata], np.ndarray], times: np.ndarray, scores: Strata) -> Curve:
    if not len(times):
        return Curve(*np.empty((4, 0)))
    return Curve(times, statistic(scores), *stratified_bootstrap(statistic, scores, draws=2_000))


def _profile(scores: Strata, thresholds: np.ndarray) -> Curve:
    def statistic(drawn: Strata) -> np.ndarray:
        return performance_profile(drawn, thresholds)

    return Curve(thresholds, statistic(scores), *stratified_bootstrap(statistic, scores, draws=2_000))


def _improvement(names: Sequence[str], strata: Mapping[str, Strata]) -> dict[tuple[str, str], Estimate]:
    return {
        (x, y): _estimate(probability_of_improvement, strata[x], strata[y]) for x, y in itertools.combinations(names, 2)
    }
