"""What is in a dataset, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import matplotlib.figure
import numpy as np

from offlinerl.data import load, registry
from offlinerl.data.load import Dataset
from offlinerl.data.registry import Entry
from offlinerl.plots import literal
from offlinerl.types import UserError

QUANTILES = (0, 25, 50, 75, 100)


def describe(dataset: Dataset, entry: Entry | None = None) -> dict[str, Any]:
    """A dataset in figures. Load it with ``reward="none"`` to see returns as the environment pays them.

    Args:
        dataset: the table.
        entry: the task it belongs to, for its scores, licence and notes.

    Returns:
        Plain numbers, strings, lists and dictionaries of them, ready for JSON.
    """
    returns, lengths = dataset.episode_returns, dataset.episode_lengths
    terminations = int(dataset.terminated.sum())
    facts = dict(
        name=dataset.name,
        rows=len(dataset),
        episodes=len(lengths),
        megabytes=round(dataset.nbytes / 1e6, 1),
        obs=_column(dataset.obs),
        action=_column(dataset.action) | _range(dataset.action),
        reward=_column(dataset.reward) | _range(dataset.reward) | dict(mean=float(dataset.reward.mean())),
        returns=_quantiles(returns),
        lengths=_quantiles(lengths),
        terminations=terminations,
        truncations=int((dataset.last & ~dataset.terminated).sum()),
    )
    if entry is not None:
        facts |= dict(env=entry.env_id, licence=entry.licence, citation=entry.citation)
        facts |= dict(note=entry.note, training_reward=entry.reward, score_kind=entry.score_kind)
    return facts | dict(provenance=dataset.provenance)


def _column(column: np.ndarray) -> dict[str, Any]:
    return dict(shape=list(column.shape), dtype=str(column.dtype))


def _range(column: np.ndarray) -> dict[str, float]:
    return dict(min=float(column.min()), max=float(column.max()))


def _quantiles(values: np.ndarray) -> dict[str, float]:
    points = np.percentile(values, QUANTILES)
    return {f"{q}%": float(point) for q, point in zip(QUANTILES, points, strict=True)} | {
        "mean": float(np.mean(values))
    }


def plot(dataset: Dataset, path: Path) -> Path:
    """Draws how returns and lengths of the episodes are distributed, as a PNG.

    Args:
        dataset: the table, its rewards as they are to be shown.
        path: the image to write.
    """
    figure = matplotlib.figure.Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(f"{literal(dataset.name)}: {len(dataset.episode_starts):,} episodes, {len(dataset):,} transitions")
    panels = (
        ("Returns", "undiscounted return of an episode (sum of rewards)", dataset.episode_returns),
        ("Lengths", "length of an episode (steps)", dataset.episode_lengths),
    )
    for axes, (title, label, values) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.hist(values, bins=min(40, max(8, len(values) // 4)), color="tab:blue", edgecolor="white")
        axes.axvline(np.mean(values), color="tab:orange", label=f"mean {np.mean(values):.4g}")
        axes.set(title=title, xlabel=label, ylabel="episodes")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format="png")
    return path


# ------------------------------------------------------------------------------------------- validation


class Finding(NamedTuple):
    """Something wrong with a dataset."""

    kind: str  # unequal lengths, not finite, action range, duplicates, jump, overlapping ends, missing end
    message: str  # one sentence
    rows: np.ndarray  # the rows concerned, counted from 0 in the source


class _Columns(NamedTuple):
    """A source as it is, sound or not."""

    obs: np.ndarray  # [N, ...]
    action: np.ndarray  # [N, A]
    reward: np.ndarray  # [N]
    terminal: np.ndarray  # [N] bool
    cut: np.ndarray  # [N] bool
    next_obs: np.ndarray | None  # [N, ...]


def validate(entry: Entry | str, low: float | None = None, high: float | None = None) -> list[Finding]:
    """Checks a source before it is loaded, which would refuse much of what is reported here.

    Args:
        entry: a dataset, by entry, name or file.
        low: lower bound of continuous actions; by default the source's own, or -1 if it states none.
        high: upper bound of continuous actions; likewise, or 1.

    Returns:
        What was found, nothing for a sound dataset.

    Raises:
        UserError: the source cannot be read at all.
    """
    entry = registry.resolve(entry) if isinstance(entry, str) else entry
    path = load.locate(entry)
    columns = _minari_columns(path, entry) if path.is_dir() else _d4rl_columns(path, entry)
    if isinstance(columns, Finding):
        return [columns]
    own_low, own_high = _bounds(path)
    low, high = own_low if low is None else low, own_high if high is None else high
    findings = [_not_finite(columns), _outside(columns, low, high), _duplicates(columns)]
    findings += [_late_terminals(columns), _too_long(columns, entry.max_episode_steps)]
    if not path.is_dir():  # Minari's episodes have their ends, and every observation its successor
        findings += [_jumps(columns, entry.split), _overlapping(columns), _missing_end(columns)]
    return [finding for finding in findings if len(finding.rows)]


def _d4rl_columns(path: Path, entry: Entry) -> _Columns | Finding:
    with load.open_hdf5(path) as file:
        lengths = {key: len(file[key]) for key in load.D4RL_KEYS if isinstance(file.get(key), h5py.Dataset)}
        if len(set(lengths.values())) > 1:
            rows = np.arange(min(lengths.values()), max(lengths.values()))
            listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
            return Finding("unequal lengths", f"the columns have unequal lengths: {listed}", rows)
    with load.open_d4rl(path) as file:
        terminal, cut, _ = load.episode_flags(file, entry.max_episode_steps, entry.split)
        following = file["next_observations"][()] if "next_observations" in file else None
        return _Columns(*(file[key][()] for key in ("observations", "actions", "rewards")), terminal, cut, following)


def _minari_columns(path: Path, entry: Entry) -> _Columns | Finding:
    """Rows of all episodes one after another; unequal lengths are found on the way."""
    columns: list[list[np.ndarray]] = [[], [], [], [], []]
    at = 0
    for number, (obs, action, reward, terminal) in enumerate(load.minari_episodes(path, entry.obs_keys)):
        steps = len(reward)
        if {len(obs) - 1, len(action), len(terminal)} != {steps}:
            message = f"episode {number} has {len(obs)} observations, {len(action)} actions and {steps} rewards"
            return Finding("unequal lengths", message, np.arange(at, at + steps))
        cut = np.arange(steps) == steps - 1
        for column, part in zip(columns, (obs[:-1], action, reward, terminal, cut & ~terminal), strict=True):
            column.append(part)
        at += steps
    if not at:
        raise UserError(f"{path} is empty: it has no episode")
    return _Columns(*map(np.concatenate, columns), None)


def _bounds(path: Path) -> tuple[float, float]:
    """The widest bounds of an action that a Minari dataset states, where they are finite."""
    if path.is_dir():
        metadata = registry.minari_metadata(path / "data" if (path / "data").is_dir() else path)
        space = json.loads(metadata.get("action_space", "{}"))
        low, high = np.min(space.get("low", -np.inf)), np.max(space.get("high", np.inf))
        if np.isfinite([low, high]).all():
            return float(low), float(high)
    return -1.0, 1.0


def _not_finite(columns: _Columns) -> Finding:
    bad = {name: load.nonfinite_rows(column) for name, column in columns._asdict().items() if column is not None}
    bad = {name: rows for name, rows in bad.items() if len(rows)}
    listed = ", ".join(f"{name} in {len(rows)} rows" for name, rows in bad.items())
    rows = np.unique(np.concatenate([*bad.values(), np.empty(0, int)]))
    return Finding("not finite", f"there are NaN or infinite values: {listed}", rows)


def _outside(columns: _Columns, low: float, high: float) -> Finding:
    if columns.action.dtype.kind != "f":
        return Finding("action range", "", np.empty(0, int))
    outside = ((columns.action < low) | (columns.action > high)).reshape(len(columns.action), -1)
    message = f"{outside.mean():.1%} of the actions' entries lie outside [{low:g}, {high:g}]"
    return Finding("action range", message, np.flatnonzero(outside.any(axis=1)))


def _duplicates(columns: _Columns) -> Finding:
    """Rows that repeat an earlier one in observation, action and reward."""
    parts = (columns.obs, columns.action, columns.reward)
    flat = np.concatenate([np.asarray(part, np.float32).reshape(len(part), -1) for part in parts], axis=1)
    rows = np.ascontiguousarray(flat).view(np.dtype((np.void, flat.itemsize * flat.shape[1])))[:, 0]
    first = np.unique(rows, return_index=True)[1]
    repeated = np.ones(len(rows), bool)
    repeated[first] = False
    return Finding("duplicates", "rows repeat an earlier row", np.flatnonzero(repeated))


def _jumps(columns: _Columns, split: str | None) -> Finding:
    """Rows whose successor is not the next row, though their episode goes on."""
    end = columns.cut if split == "jump" else columns.terminal | columns.cut
    inside = ~end[:-1]
    if columns.next_obs is not None:
        close = np.isclose(columns.next_obs[:-1], columns.obs[1:], rtol=1e-4, atol=1e-5, equal_nan=True)
        jump = inside & ~close.reshape(len(close), -1).all(axis=1)
        return Finding("jump", "next_observations differ from the next row's observations", np.flatnonzero(jump))
    obs = columns.obs.reshape(len(columns.obs), -1).astype(np.float64)
    scale = np.nanstd(obs, axis=0)
    scaled = np.diff(obs, axis=0)[:, scale > 1e-6] / scale[scale > 1e-6]
    distance = np.nan_to_num(np.linalg.norm(scaled, axis=1), posinf=0)
    jump = inside & (distance > _farthest_step(distance[inside], distance[~inside]))
    return Finding("jump", "observations jump though the episode goes on", np.flatnonzero(jump))


def _farthest_step(steps: np.ndarray, resets: np.ndarray) -> float:
    """The distance no step covers: well beyond nearly all steps, or nearly a reset where resets stand out."""
    if not len(steps):
        return np.inf
    limit = 1.3 * np.quantile(steps, 0.999)
    if len(resets):
        reset = 0.9 * np.quantile(resets, 0.1)
        if reset > 1.1 * np.quantile(steps, 0.99):
            limit = min(limit, reset)
    return limit


def _overlapping(columns: _Columns) -> Finding:
    both = np.flatnonzero(columns.terminal & columns.cut)
    return Finding("overlapping ends", "rows are both terminal and timed out", both)


def _late_terminals(columns: _Columns) -> Finding:
    """A terminal state right after another: the episode went on after its end."""
    again = np.flatnonzero(columns.terminal[:-1] & columns.terminal[1:]) + 1
    return Finding("overlapping ends", "rows are terminal right after a terminal row", again)


def _missing_end(columns: _Columns) -> Finding:
    last = len(columns.terminal) - 1
    open_end = not (columns.terminal[last] or columns.cut[last])
    rows = np.array([last] if open_end else [], int)
    return Finding("missing end", "the last row is neither terminal nor timed out", rows)


def _too_long(columns: _Columns, steps: int | None) -> Finding:
    ends = np.flatnonzero(columns.terminal | columns.cut)
    long = np.diff(ends, prepend=-1) > (steps or np.inf)
    return Finding("missing end", f"episodes are longer than the {steps} steps of their environment", ends[long])
