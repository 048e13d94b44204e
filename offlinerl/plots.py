"""Pictures of runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from offlinerl.types import UserError

LOSSES = ("value_loss", "critic_loss", "actor_loss")


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV file of numbers.

    Raises:
        UserError: it is missing or holds something else.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {key: np.array([float(row[key]) for row in rows]) for key in (rows[0] if rows else [])}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read as a run's table; is its folder a run?") from error


def by_update(columns: dict[str, np.ndarray], value: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Updates ``[U]``, seeds ``[S]`` and the mean of a column over the rows of each, ``[S, U]``."""
    updates, seeds = np.unique(columns["update"]), np.unique(columns["seed"])
    table = np.full((len(seeds), len(updates)), np.nan)
    for s, seed in enumerate(seeds):
        for u, update in enumerate(updates):
            chosen = (columns["seed"] == seed) & (columns["update"] == update)
            if chosen.any():
                table[s, u] = columns[value][chosen].mean()
    return updates, seeds, table


def curves(runs: Sequence[Path], path: Path) -> Path:
    """Draw the scores of one or several runs over their updates and, for one run, its losses.

    The line is the mean over seeds, the band their range, thin lines the seeds themselves.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    alone = len(runs) == 1
    metrics = read_columns(runs[0] / "metrics.csv") if alone and (runs[0] / "metrics.csv").exists() else {}
    losses = [name for name in LOSSES if name in metrics]
    figure = Figure(figsize=(7 + 3.4 * len(losses), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1 + len(losses), width_ratios=[2.2] + [1] * len(losses), squeeze=False)[0]
    score_axis = axes[0]
    references, kinds = {}, set()
    for number, run in enumerate(runs):
        summary = json.loads((run / "summary.json").read_text())
        updates, seeds, scores = by_update(read_columns(run / "evaluations.csv"), "score")
        colour = f"C{number}"
        mean = np.nanmean(scores, 0)
        label = f"{summary['agent']}, mean of {len(seeds)} seeds" if len(seeds) > 1 else summary["agent"]
        score_axis.plot(updates, mean, color=colour, marker="o", markersize=3.5, linewidth=2, label=label)
        if len(seeds) > 1:
            score_axis.fill_between(updates, np.nanmin(scores, 0), np.nanmax(scores, 0), color=colour, alpha=0.15)
            if alone:
                for row in scores:
                    score_axis.plot(updates, row, color=colour, linewidth=0.6, alpha=0.6)
        low, high = summary["last"]["ci95"]
        centre = summary["last"]["mean"]
        score_axis.errorbar(
            updates[-1], centre, [[max(centre - low, 0)], [max(high - centre, 0)]], color=colour, capsize=5,
            marker="D", markersize=6, label=f"last policy {centre:.1f} [{low:.1f}, {high:.1f}]", linestyle="none",
        )  # fmt: skip
        kinds.add(summary["score_kind"])
        if summary["dataset_score"] is not None:
            references[summary["dataset"]] = summary["dataset_score"]
    for name, value in references.items():
        score_axis.axhline(value, color="0.4", linestyle="--", linewidth=1, label=f"average episode of {name}")
    units = {"normalized": "normalised score", "minari": "score by Minari's references", "return": "return"}
    first = json.loads((runs[0] / "summary.json").read_text())
    score_axis.set(title=f"{first['dataset']}", xlabel="updates", ylabel=units[kinds.pop()] if len(kinds) == 1 else "score")
    score_axis.set_ylim(bottom=min(0, score_axis.get_ylim()[0]))
    score_axis.legend(loc="best", fontsize=8, framealpha=0.9)
    for axis, name in zip(axes[1:], losses, strict=True):
        updates, seeds, values = by_update(metrics, name)
        for row in values:
            axis.plot(updates, row, linewidth=0.7, alpha=0.5, color="C0")
        axis.plot(updates, np.nanmean(values, 0), linewidth=1.8, color="C0")
        axis.set(title=name.replace("_", " "), xlabel="updates")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x else "0")
        axis.locator_params(axis="x", nbins=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path
