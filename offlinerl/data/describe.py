"""What is in a dataset, in figures and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np

from offlinerl.data.dataset import Dataset
from offlinerl.data.registry import Entry
from offlinerl.util.figures import literal
from offlinerl.util.trees import tree_map


def describe(dataset: Dataset, entry: Entry | None = None) -> dict[str, Any]:
    """A dataset in figures, and what is known of the task it belongs to, as plain data ready for JSON. Load it with
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
    if entry is not None:
        facts |= dict(env=entry.env_id, licence=entry.licence, citation=entry.citation)
        facts |= dict(note=entry.note, training_reward=entry.reward, score_kind=entry.score_kind)
    return facts | dict(provenance=dataset.provenance)


def _column(column: np.ndarray) -> dict[str, Any]:
    return dict(shape=list(column.shape), dtype=str(column.dtype))


def _range(column: np.ndarray) -> dict[str, float]:
    return dict(min=float(column.min()), max=float(column.max()))


def _quantiles(values: np.ndarray) -> dict[str, float]:
    points = {f"{q}%": float(np.percentile(values, q)) for q in (0, 25, 50, 75, 100)}
    return points | dict(mean=float(np.mean(values)))


def plot(dataset: Dataset, path: Path) -> Path:
    """Draws how returns, of the rewards as the table has them, and lengths of the episodes are distributed, as a PNG;
    returns ``path``."""
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
