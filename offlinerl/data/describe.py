"""Describes the content of a dataset, in figures and plots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offlinerl.data.dataset import Dataset
from offlinerl.data.inferred import spec_of_data
from offlinerl.data.mapping import in_words
from offlinerl.data.rewards import IN_WORDS
from offlinerl.data.stamps import WIDE
from offlinerl.envs import checks
from offlinerl.envs.make import make
from offlinerl.envs.mazes import walls_of
from offlinerl.util.display import unit_of
from offlinerl.util.errors import UserError, counted, either
from offlinerl.util.figures import format_of, literal
from offlinerl.util.trees import first_leaf, tree_leaves, tree_map


def describe(dataset: Dataset) -> dict[str, Any]:
    """The statistics of a dataset and what is known about its task, as plain data ready for JSON. Load it with
    ``reward="none"`` to see returns of the environment's own rewards."""
    facts = dict(
        name=dataset.name,
        rows=len(dataset),
        episodes=len(dataset.episode_lengths),
        megabytes=round(dataset.nbytes / 1e6, 1),
        obs=tree_map(lambda leaf: _column(leaf) | dict(shape=[len(dataset), *leaf.shape[1:]]), dataset.observations),
        action=_column(dataset.action) | _range(dataset.action),
        reward=_column(dataset.reward) | _range(dataset.reward) | dict(mean=float(dataset.reward.mean())),
        returns=_quantiles(dataset.episode_returns),
        lengths=_quantiles(dataset.episode_lengths),
        terminations=int(dataset.terminated.sum()),
        truncations=int((dataset.last & ~dataset.terminated).sum()),
    )
    if (entry := dataset.entry) is not None:
        facts |= dict(env=entry.env_id, licence=entry.licence, citation=entry.citation)
        facts |= dict(note=entry.note, training_reward=entry.reward, score_kind=entry.score_kind)
    return facts | dict(provenance=dataset.provenance)


def _column(column: np.ndarray) -> dict[str, Any]:
    return dict(shape=list(column.shape), dtype=str(column.dtype))


def _range(column: np.ndarray) -> dict[str, float]:
    return dict(min=float(np.min(column)), max=float(np.max(column)))


def _quantiles(values: np.ndarray) -> dict[str, float]:
    points = {f"{q}%": float(np.percentile(values, q)) for q in (0, 25, 50, 75, 100)}
    return points | dict(mean=float(np.mean(values)))


def lost_rewards(dataset: Dataset) -> str | None:
    """A sentence on the nonzero rewards that were lost with steps that have no next observation, if they outnumber
    those kept, as where only success at the end is rewarded; else None."""
    lost = dataset.provenance.get("rewards_dropped", 0)
    if lost <= np.count_nonzero(dataset.reward):
        return None
    return (
        f"{counted(lost, 'reward')} other than 0 went with last steps that are left out, for nothing was observed after"
        " them: mark those that end the task as terminated, or record what was observed last"
    )


def rounded(dataset: Dataset) -> str | None:
    """A sentence on the dimensions of observations that float32 is too coarse for; else None."""
    if not (found := dataset.provenance.get("rounded")):
        return None
    dimensions = [f"{d}{path and f' of {path}'}" for path, listed in found.items() for d in listed]
    named = ", ".join(dimensions[:8]) + (", ..." if len(dimensions) > 8 else "")
    return (
        f"float32, in which observations are stored, is too coarse for their dimension{'s'[: len(dimensions) - 1]}"
        f" {named}: small changes are lost; subtract an offset there, such as the mean, before you store them"
    )


FRAMES, UNITS = 100, 2.0
"""How many frames are searched for numbers beyond the units of images, and the largest number within them."""


def unscaled_images(dataset: Dataset) -> str | None:
    """A sentence on images of floats that are not within 0 to 1, as networks take them to be; else None."""
    for path, leaf in tree_leaves(dataset.observations):
        if leaf.ndim < 3 or leaf.dtype == np.uint8:
            continue
        frames = leaf[:: -(-len(leaf) // FRAMES)]
        if np.abs(frames).max() > UNITS:
            return (
                f"images{f' of {path}' if path else ''} that are no uint8 are taken to be within 0 to 1, but these are"
                f" within {frames.min():g} to {frames.max():g}: store them as uint8, or divide them"
            )
    return None


def split_episodes(dataset: Dataset) -> str | None:
    """A sentence on episodes that may be split between two files, because one file ends with an episode whose end it
    does not mark, and the next begins with one of that name; else None."""
    if not (found := dataset.provenance.get("split_episodes")):
        return None
    one, more = found[0], f", and so in {counted(len(found) - 1, 'more file')}" if found[1:] else ""
    return (
        f"an episode may be split in two: {one['goes_on']} begins with episode {one['episode']}, with which"
        f" {one['begins']} ends{more}: put the rows of an episode into one file, or mark its end"
    )


def unmarked_ends(dataset: Dataset) -> str | None:
    """A sentence on a file, or arrays, taken as one episode because nothing in it marks an end; else None."""
    if not (found := dataset.provenance.get("unmarked_ends")):
        return None
    more = f", and so in {counted(len(found) - 1, 'more file')}" if found[1:] else ""
    return (
        f"nothing in {_file(dataset, found[0])} marks where episodes end, so its {found[0]['rows']:,} rows are one"
        f" episode{more}: if they are several, mark the last row of each with 1 in timeouts, or number them in episode"
    )


def unordered_steps(dataset: Dataset) -> str | None:
    """A sentence on episodes of a table that begin only because its rows are not in the order of ``step``; else
    None."""
    if not (found := dataset.provenance.get("unordered_steps")):
        return None
    rows, more = sum(one["rows"] for one in found), ""
    if rows > 1:
        more = f"; {rows:,} such rows" + (f" in {len(found):,} files" if found[1:] else "")
    return (
        f"{_file(dataset, found[0])}: step does not increase at row {found[0]['row']}, so a new episode begins there"
        f"{more}: remove rows that repeat and sort the others, or add episode=NAME to --columns if a column says which"
        " episode a row is of"
    )


def missing_steps(dataset: Dataset) -> str | None:
    """A sentence on rows that may be missing within episodes of a table, where ``step`` leaps; else None."""
    if not (found := dataset.provenance.get("missing_steps")):
        return None
    steps, longest = sum(one["steps"] for one in found), max(one["longest"] for one in found)
    return (
        f"in {counted(steps, 'step')} the time stamps advance by more than {WIDE:g} times the median of"
        f" {found[0]['usual']:.4g}, up to {longest:.4g}: rows may be missing there, first before row {found[0]['row']}"
        f" of {_file(dataset, found[0])}"
    )


def _file(dataset: Dataset, of: Mapping[str, Any]) -> str:
    """The name of the file that an entry of ``provenance`` is about."""
    return str(of.get("file") or Path(dataset.provenance.get("file", "the table")).name)


def no_rewards(dataset: Dataset) -> str | None:
    """A sentence on a dataset whose rewards are all 0; else None."""
    if dataset.reward.any():
        return None
    return "all rewards are 0; only agents that imitate, such as bc, can learn from them"


def unused_ids(dataset: Dataset) -> str | None:
    """A sentence on columns of a table that seem to tell episodes apart but are not used; else None."""
    if not (found := dataset.provenance.get("unused_ids")):
        return None
    return (
        f"the column {found[0]} is not used to tell episodes apart: add episode={found[0]} to --columns if it says of"
        " which episode a row is"
    )


NOTES = {
    "lost rewards": lost_rewards, "split episode": split_episodes, "unmarked ends": unmarked_ends,
    "step order": unordered_steps, "missing rows": missing_steps, "unused column": unused_ids, "rounding": rounded,
    "image units": unscaled_images, "no rewards": no_rewards,
}  # fmt: skip
"""What is odd about a dataset, though it can be used: each returns a sentence, or None."""


def summary(dataset: Dataset) -> list[tuple[str, str]]:
    """What one first wants to know about a dataset, as pairs of a label and a line of text."""
    lengths, returns, facts = dataset.episode_lengths, dataset.episode_returns, dataset.provenance
    terminations, dropped = int(dataset.terminated.sum()), facts.get("rows_dropped", 0)
    truncated = int((dataset.last & ~dataset.terminated).sum())
    ended = f"{terminations:,} terminated, {truncated:,} cut off"
    odd = (find(dataset) for find in (split_episodes, unmarked_ends, unordered_steps, missing_steps, unused_ids))
    lines = [
        ("episodes", f"{len(lengths):,}"),
        ("steps", f"{len(dataset):,}" + (f", and {dropped:,} more that have no successor" if dropped else "")),
        ("returns", _spread(returns)),
        ("lengths", _spread(lengths)),
        ("ends", "; ".join(filter(None, (ended, *odd)))),
        ("observations", "; ".join(_part(path, leaf) for path, leaf in tree_leaves(dataset.observations))),
        ("actions", _actions(dataset)),
        ("rewards", "; ".join(filter(None, (_rewards(dataset.reward), lost_rewards(dataset))))),
        *([] if dataset.log_prob is None else [("log_prob", f"of the behaviour, {_spread(dataset.log_prob)}")]),
        ("size", f"{dataset.nbytes / 1e6:,.1f} MB in memory"),
    ]
    origin = str(facts.get("format", "unknown"))
    if "sources" in facts:
        origin += f" from {', '.join(str(source['name']) for source in facts['sources'])}"
    elif facts.get("file"):
        origin += f" {facts['file']}" + (f", {len(facts['files'])} files" if "files" in facts else "")
        origin += f", and {len(facts['empty_files'])} more without a step" if "empty_files" in facts else ""
    lines.append(("from", origin))
    if isinstance(made := facts.get("provenance"), dict) and "format" in made:
        of = [str(source["name"]) for source in made.get("sources", ())] or [str(made.get("file", ""))]
        lines.append(("made", f"{made['format']} from {', '.join(of)}"))
    if "columns" in facts:
        lines.append(("columns", in_words(facts["columns"])))
    if facts.get("left_out"):
        lines.append(("left out", f"{', '.join(facts['left_out'])}, which --obs-keys would add"))
    if "log_prob" in facts:
        lines.append(("log_prob", facts["log_prob"]))
    if (entry := dataset.entry) is not None:
        lines.append(("environment", entry.env_id or "not named"))
        lines.append(("score", unit_of(entry.score_kind) + _scale(entry.score)))
        if entry.reward != "none":
            lines.append(("training", f"rewards by the rule {entry.reward}: {IN_WORDS[entry.reward]}"))
        more = dict(licence=entry.licence, citation=entry.citation, note=entry.note)
        lines += [(label, " ".join(text.split())) for label, text in more.items() if text]
    return lines


def _scale(score: Mapping[str, Any] | None) -> str:
    """What the scores 0 and 100 stand for."""
    if score is None:
        return ""
    low, high = score["min"], score["max"]
    if score.get("from") == "success":
        return ": 100 is success in every episode"
    return f": 0 is a return of {low:,.6g}, 100 one of {high:,.6g}"


def _spread(values: np.ndarray) -> str:
    low, quarter, middle, three_quarters, high = np.percentile(values, (0, 25, 50, 75, 100))
    if low == high:
        return f"{low:,.6g} each"
    return (
        f"mean {np.mean(values):,.4g}, median {middle:,.4g}; {low:,.4g} to {high:,.4g}, the middle half"
        f" {quarter:,.4g} to {three_quarters:,.4g}"
    )


def _part(path: str, leaf: np.ndarray) -> str:
    numbers = counted(leaf.shape[1], "number") if leaf.ndim == 2 else f"images {'x'.join(map(str, leaf.shape[1:]))}"
    return f"{path} {numbers}" if path else numbers


def _actions(dataset: Dataset) -> str:
    spec = spec_of_data(dataset)[0]
    if spec.num_actions:
        return f"{spec.num_actions} choices, from {spec.first_action} on"
    low, high = dataset.action_limits
    return f"{counted(len(low), 'number')} from {low.min():,.4g} to {high.max():,.4g}"


def _rewards(reward: np.ndarray) -> str:
    values = np.unique(reward)
    if len(values) <= 4:
        return f"{either(*(f'{value:.4g}' for value in values))}; mean {reward.mean():,.4g}"
    return f"{values[0]:,.4g} to {values[-1]:,.4g}; mean {reward.mean():,.4g}"


SHOWN = 8
"""Number of episodes drawn individually."""

LEGIBLE = 100
"""Steps of an episode whose actions are drawn; with more, the lines would overlap."""


def plot(dataset: Dataset, path: Path) -> Path:
    """Plots a dataset, as PDF or SVG if the file's name says so, else as PNG: the distributions of episode returns,
    computed from the table's rewards, and of episode lengths, the ranges of actions and observations, the cumulative
    reward in a few episodes, and the trajectories in a maze or else the actions of one episode. Returns ``path``."""
    import matplotlib.figure  # here, because it takes half a second, and only plots need it

    figure = matplotlib.figure.Figure(figsize=(13, 7.5), layout="constrained")
    figure.suptitle(f"{literal(dataset.name)}: {len(dataset.episode_starts):,} episodes, {len(dataset):,} transitions")
    axes = figure.subplots(2, 3).ravel()
    _histogram(axes[0], "Returns", "undiscounted return of an episode (sum of rewards)", dataset.episode_returns)
    _histogram(axes[1], "Lengths", "length of an episode (steps)", dataset.episode_lengths)
    starts, lengths = dataset.episode_starts, dataset.episode_lengths
    few = np.unique(np.linspace(0, len(starts) - 1, SHOWN).astype(int))
    for number in few:
        span = slice(starts[number], starts[number] + lengths[number])
        axes[2].plot(np.cumsum(dataset.reward[span], dtype=np.float64), linewidth=1.2, label=f"{number}")
    axes[2].set(title="A few episodes", xlabel="step", ylabel="sum of rewards so far")
    axes[2].legend(frameon=False, fontsize=8, title="episode", ncols=2)
    spec = spec_of_data(dataset)[0]
    if spec.num_actions:
        counts = np.bincount((dataset.action[:, 0] - spec.first_action).astype(int), minlength=spec.num_actions)
        axes[3].bar(spec.first_action + np.arange(spec.num_actions), counts / len(dataset), color="tab:blue")
        axes[3].set(title="Actions", xlabel="action", ylabel="share of the steps")
    else:
        _ranges(axes[3], "Actions", dataset.action)
    vectors = [leaf for _, leaf in tree_leaves(dataset.observations) if leaf.ndim == 2]
    if vectors:
        _ranges(axes[4], "Observations", np.concatenate(vectors, 1))
    else:
        _pictures(axes[4], dataset, few)
    entry = dataset.entry
    if entry is not None and entry.env is not None and "maze" in (entry.env_id or "").lower() and vectors:
        _trajectories(axes[5], dataset, vectors[0], entry.env, few)
    else:
        begin, steps = starts[few[0]], min(lengths[few[0]], LEGIBLE)
        axes[5].plot(dataset.action[begin : begin + steps, :4], linewidth=1)
        which = "Actions" if dataset.action.shape[1] <= 4 else "The first four action dimensions"
        axes[5].set(title=f"{which} of episode {few[0]}", xlabel="step", ylabel="action")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = format_of(path)
    figure.savefig(path, dpi=120, format=kind, metadata=MARK if kind == "png" else None)
    return path


MARK = {"Software": "offlinerl datasets show"}
"""PNG metadata that identify our plots."""


def is_plot(path: Path) -> bool:
    """Whether a file is a PNG made by ``plot``."""
    if not path.is_file():
        return False
    with path.open("rb") as file:  # matplotlib writes its metadata first
        return b"Software\0" + MARK["Software"].encode() in file.read(1000)


def _trajectories(axes: Any, dataset: Dataset, place: np.ndarray, env: Mapping[str, Any], episodes: np.ndarray) -> None:
    """Draws the trajectories in a maze: all of them as faint points, a few as lines, and the walls if the environment
    can be made, which nothing else here needs.

    Args:
        axes: to draw into.
        dataset: n episodes.
        place: ``[M, ...]`` the observations, whose first two numbers are x and y.
        env: the maze, see ``offlinerl.envs.make.make``.
        episodes: the numbers of those drawn as lines.
    """
    from matplotlib.patches import Rectangle

    try:
        made = make(env, observed=False)
    except UserError:
        walls = None
    else:
        walls = walls_of(made)
        checks.close(made)
    if walls is not None:
        for x, y in walls[0] - walls[1] / 2:
            axes.add_patch(Rectangle((x, y), walls[1], walls[1], color="0.75", linewidth=0))
    some = place[dataset.at[:: max(1, len(dataset) // 20_000)], :2]
    axes.plot(*some.T, ".", color="0.45", markersize=1, alpha=0.3, zorder=1.5)
    for number in episodes:
        begin = dataset.episode_starts[number]
        x, y = place[dataset.at[begin : begin + dataset.episode_lengths[number]], :2].T
        axes.plot(x, y, linewidth=1)
        axes.plot(x[:1], y[:1], "k.", markersize=5)
    axes.set(title="Their trajectories; dots are starts", xlabel="x (m)", ylabel="y (m)", aspect="equal")
    axes.autoscale_view()


def _histogram(axes: Any, title: str, label: str, values: np.ndarray) -> None:
    alike = values.min() == values.max()
    span = (values[0] - 0.5, values[0] + 0.5) if alike else None
    axes.hist(values, bins=9 if alike else min(40, max(8, len(values) // 4)), range=span, color="tab:blue", ec="white")
    axes.axvline(np.mean(values), color="tab:orange")
    axes.set(title=f"{title}, mean {np.mean(values):.4g}", xlabel=label, ylabel="episodes")
    axes.xaxis.get_major_formatter().set_useOffset(False)  # ticks such as 1000, not 0 with an offset of 1e3
    if alike:
        axes.set_xticks(values[:1])
    axes.yaxis.get_major_locator().set_params(integer=True)


def _ranges(axes: Any, title: str, column: np.ndarray) -> None:
    """Plots the range of every dimension of ``[rows, D]``: the whole range thin, the middle 90 % thick."""
    column = np.asarray(column)
    some = column[:: max(1, len(column) // 100_000)]
    low, high = column.min(0), column.max(0)
    five, middle, ninety_five = np.percentile(some, (5, 50, 95), axis=0)
    place = np.arange(column.shape[1])
    axes.vlines(place, low, high, color="tab:blue", linewidth=1)
    width = min(8.0, max(1.5, 180 / column.shape[1]))
    axes.vlines(place, five, ninety_five, color="tab:blue", linewidth=width, alpha=0.5)
    axes.plot(place, middle, "_", color="tab:orange", markersize=width + 2)
    axes.set(title=f"{title}: all, 5 to 95%, median", xlabel="dimension", ylabel="value")
    axes.set_xlim(-0.5, len(place) - 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _pictures(axes: Any, dataset: Dataset, episodes: np.ndarray) -> None:
    """Shows the first image of a few episodes, side by side."""
    leaf = first_leaf(dataset.observations)
    shown = [leaf[dataset.at[dataset.episode_starts[number]]] for number in episodes[:4]]
    row = np.concatenate([image[..., -3:] if image.ndim == 3 and image.shape[-1] >= 3 else np.atleast_3d(image)[..., :1]
                          for image in shown], axis=1)  # fmt: skip
    axes.imshow(row.squeeze() / max(1, row.max()), cmap="gray")
    axes.set(title="The first observations of a few episodes", xticks=[], yticks=[])
