"""Datasets made from others, by merging, splitting or selecting episodes. The provenance keeps their sources."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from offlinerl.data.assemble import concatenate
from offlinerl.data.columns import lost
from offlinerl.data.dataset import Dataset
from offlinerl.data.inferred import spec_of_data
from offlinerl.util.errors import UserError

EVALUATED = ("eval_env_spec", "ref_min_score", "ref_max_score")
"""Keys of Minari's metadata that tell how policies are evaluated."""

INHERITED = (
    *EVALUATED, "env_spec", "obs_keys", "parts", "actions", "action_space", "reward", "frame_stack", "fps", "robot",
)  # fmt: skip
"""Provenance keys that a part inherits from the whole, and a merged dataset from parts that agree on them."""


def merge(parts: Sequence[Dataset], name: str = "merged") -> Dataset:
    """The episodes of several datasets, one after another.

    Raises:
        UserError: the parts differ in the parts or columns of their observations or in their order, or in the order of
            the columns of their actions; observations or actions differ in shape; some actions are discrete and some
            are not; or the rewards follow different rules.
    """
    for part in parts[1:]:
        require_same_parts(parts[0].name, made_of(parts[0]), part.name, made_of(part))
    for one, other in itertools.combinations(parts, 2):
        require_same_actions(one, other)
    rules = {part.provenance.get("reward", "none") for part in parts}
    if len(rules) > 1:
        raise UserError(f"{name}: its parts have rewards by other rules ({', '.join(sorted(rules))}): load them alike")
    common = {
        key: parts[0].provenance[key]
        for key in INHERITED
        if all(key in part.provenance and part.provenance[key] == parts[0].provenance[key] for part in parts)
    }
    dtypes = [np.dtype(part.provenance.get("action_dtype", "float32")) for part in parts]
    facts = _made("merged", {}, parts) | common | dict(action_dtype=str(np.result_type(*dtypes)))
    tasks = [part.entry and (part.entry.env, part.entry.score, part.entry.reward) for part in parts]
    entry = parts[0].entry if all(task == tasks[0] for task in tasks) else None
    merged = concatenate(parts, name)
    if entry is None or entry.env is None:
        _require_alike_actions(parts)
    if merged.log_prob is None and any(part.log_prob is not None for part in parts):
        facts["log_prob"] = merged.provenance["log_prob"]
    return replace(merged, name=name, provenance=facts, entry=entry)


def joined(parts: Sequence[Dataset], name: str, empty: Sequence[str] = ()) -> Dataset:
    """As ``merge``, of parts that were read together, and that need not mark the ends of their episodes; ``empty`` are
    the names of those without a step, which were left out."""
    data = merge(parts, name)
    facts = data.provenance | of_all([part.provenance for part in parts], [part.name for part in parts])
    facts |= dict(format=f"list of {parts[0].provenance['format']}", **(dict(empty_files=[*empty]) if empty else {}))
    for key in ("sources", "unmarked_ends"):
        facts.pop(key, None)
    return replace(data, provenance=facts, entry=data.entry and replace(data.entry, name=name))


def of_all(facts: Sequence[Mapping[str, Any]], names: Sequence[str], rows: int = 0) -> dict[str, Any]:
    """What the provenances of parts, read one after another, say of all: sums, with ``rows`` that were dropped before,
    and what is odd about each part, by its name."""
    rounded: dict[str, list[int]] = {}
    for leaf, dimensions in (pair for fact in facts for pair in fact.get("rounded", {}).items()):
        rounded[leaf] = sorted({*rounded.get(leaf, ()), *dimensions})
    odd = {
        key: [one | dict(file=name) for name, fact in zip(names, facts, strict=True) for one in fact.get(key, ())]
        for key in ("unmarked_ends", "unordered_steps", "missing_steps")
    }
    return dict(
        **{key: sum((fact[key] for fact in facts), rows) for key in ("rows_in_source", "rows_dropped")},
        **lost(sum(fact.get("rewards_dropped", 0) for fact in facts)),
        action_dtype=str(np.result_type(*(fact["action_dtype"] for fact in facts))),
        **{key: found for key, found in dict(odd, rounded=rounded).items() if found},
    )  # fmt: skip


def _require_alike_actions(parts: Sequence[Dataset]) -> None:
    """Raises a UserError if some datasets have discrete actions and others continuous ones."""
    kinds = {spec_of_data(part)[0].num_actions > 0: part.name for part in parts}
    if len(kinds) > 1:
        raise UserError(
            f"the actions of {kinds[True]} are choices, and those of {kinds[False]} are not: put those of one kind"
            " together, and write whole numbers that are no choices as fractions, such as 1.0"
        )


Made = dict[str, list[str]]
"""The parts of observations in order, and the table columns that each consists of."""


def made_of(data: Dataset) -> Made:
    """The parts and columns of a dataset's observations, as far as they are known."""
    facts, keys = data.provenance, data.entry and data.entry.obs_keys
    parts = facts.get("parts") or {}
    found = {part: list(parts.get(part, ())) for part in keys or parts or facts.get("obs_keys") or ()}
    return dict(sorted(found.items())) if isinstance(data.observations, Mapping) else found


def require_same_parts(first: str, due: Made, second: str, found: Made) -> None:
    """Refuses to combine two sources, see ``made_of``, whose observations do not have the same meaning number by
    number. The columns of a named part may have different names, because the user who named the part declared them to
    be the same.

    Raises:
        UserError: they have other parts or columns, or the same in another order.
    """
    advice = "choose the same, in one order, with"
    if min(len(due), len(found)) > 1 and not (covers([*due], [*found]) or covers([*found], [*due])):
        raise UserError(
            f"{second} observes {', '.join(found)}, and {first} observes {', '.join(due)}: {advice} --obs-keys"
        )
    for part in due.keys() & found.keys():
        if due[part] != found[part] and (not part or sorted(due[part]) == sorted(found[part])):
            raise UserError(
                f"{second} observes the columns {', '.join(found[part])}, and {first} {', '.join(due[part])}: {advice}"
                " --columns, or name what they are alike, as in obs.place=x,y"
            )


def require_same_actions(first: Dataset, second: Dataset) -> None:
    """Raises a UserError if the actions of two datasets are columns of tables, in another order or partly others. Those
    that have no name in common may well be the same."""
    due, found = (data.provenance.get("actions") or [] for data in (first, second))
    if due != found and {*due} & {*found}:
        raise UserError(
            f"the actions of {second.name} are the columns {', '.join(found)}, and those of {first.name}"
            f" {', '.join(due)}: name the same, in one order, with --columns action=..."
        )


def covers(keys: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether ``parts`` are exactly those that ``keys`` select, where a key stands for all parts nested in it."""
    return list(parts) == [part for key in keys for part in parts if f"{part}/".startswith(f"{key}/")]


def split(data: Dataset, share: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Splits the episodes at random into two datasets, each of which keeps their order.

    Args:
        data: at least two episodes.
        share: fraction of the episodes in the first dataset, above 0 and below 1, rounded so that both have at least
            one.
        seed: of the random split.

    Raises:
        UserError: there is only one episode.
    """
    total = len(data.episode_starts)
    if total < 2:
        raise UserError(f"{data.name} has one episode, which cannot be divided")
    count = min(max(1, round(share * total)), total - 1)
    order = np.random.default_rng(seed).permutation(total)
    settings = dict(share=share, seed=seed)
    return (
        _part(data, order[:count], "split", settings | dict(part="first")),
        _part(data, order[count:], "split", settings | dict(part="second")),
    )


def some(
    data: Dataset,
    *,
    min_return: float | None = None,
    max_return: float | None = None,
    top: float | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
    success: bool | None = None,
    episodes: Collection[int] | None = None,
) -> Dataset:
    """The episodes that satisfy all of these conditions; bounds are inclusive.

    Args:
        data: with the rewards that returns are computed from.
        min_return: lower bound of the undiscounted return.
        max_return: upper bound of the undiscounted return.
        top: fraction of the episodes that satisfy everything else, those with the highest returns; at least one.
        min_length: in steps.
        max_length: in steps.
        success: whether they succeeded; see ``succeeded``.
        episodes: their numbers, from 0.

    Raises:
        UserError: no episode is left, an episode does not exist, or the rewards do not tell success.
    """
    returns, lengths, total = data.episode_returns, data.episode_lengths, len(data.episode_starts)
    keep = np.ones(total, bool)
    for values, low, high in ((returns, min_return, max_return), (lengths, min_length, max_length)):
        keep &= (values >= (-np.inf if low is None else low)) & (values <= (np.inf if high is None else high))
    if success is not None:
        keep &= succeeded(data) == success
    if episodes is not None:
        if beyond := [number for number in episodes if not 0 <= number < total]:
            raise UserError(f"{data.name} has {total} episodes, from 0 to {total - 1}, and no episode {beyond[0]}")
        keep &= np.isin(np.arange(total), list(episodes))
    chosen = np.flatnonzero(keep)
    if not len(chosen):
        raise UserError(
            f"no episode of {data.name} is like that: returns are {returns.min():.6g} to {returns.max():.6g}, lengths"
            f" {lengths.min()} to {lengths.max()}"
        )
    if top is not None:
        chosen = chosen[np.argsort(-returns[chosen], kind="stable")[: max(1, round(top * len(chosen)))]]
    asked = dict(
        min_return=min_return, max_return=max_return, top=top, min_length=min_length, max_length=max_length,
        success=success, episodes=episodes and sorted(episodes),
    )  # fmt: skip
    return _part(data, chosen, "filtered", {name: value for name, value in asked.items() if value is not None})


def chained(data: Dataset) -> Dataset:
    """The same rows, for formats that store T + 1 observations for an episode of T steps: episodes are also truncated
    where a step's next observation is not that of the next row, as in a log of single transitions. The provenance has
    the number of these steps as ``cut_apart``."""
    apart = ~data.last
    apart[:-1] &= data.next_at[:-1] != data.at[1:]
    if not apart.any():
        return data
    return replace(data, last=data.last | apart, provenance=data.provenance | dict(cut_apart=int(apart.sum())))


def succeeded(data: Dataset) -> np.ndarray:
    """``[episodes]`` bool, whether an episode received the higher of the two distinct rewards, such as 0 and 1.

    Raises:
        UserError: there are not exactly two distinct rewards.
    """
    values = np.unique(data.reward)
    if len(values) != 2:
        raise UserError(
            f"{data.name} has {len(values)} different rewards, and success shows where there are two, such as 0 and 1;"
            " choose by return instead"
        )
    return np.maximum.reduceat(data.reward, data.episode_starts) == values[1]


def _part(data: Dataset, episodes: np.ndarray, how: str, settings: Mapping[str, Any]) -> Dataset:
    kept = {key: data.provenance[key] for key in (*INHERITED, "action_dtype") if key in data.provenance}
    return replace(data.take(episodes), provenance=_made(how, settings, [data]) | kept)


def _made(how: str, settings: Mapping[str, Any], parts: Sequence[Dataset]) -> dict[str, Any]:
    return dict(
        format=how, **settings, sources=[dict(name=part.name, **part.provenance) for part in parts],
        rows_in_source=sum(len(part) for part in parts), rows_dropped=0, reward="none",
    )  # fmt: skip
