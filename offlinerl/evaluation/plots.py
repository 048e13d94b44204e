"""Plots of runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offlinerl.evaluation.statistics import expected_maximum
from offlinerl.util.atomic import atomic_write
from offlinerl.util.display import places, shown, unit_of
from offlinerl.util.errors import UserError, command
from offlinerl.util.figures import COLOURS, format_of, literal
from offlinerl.util.settings import columns_of, named

DRAWN = ("episode_return", "value_loss", "critic_loss", "q_loss", "actor_loss", "effective_episodes")
"""Metrics of a run that are plotted beside its score; ``episode_return`` is that of the episodes it learned from."""


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV file of numbers.

    Raises:
        UserError: the file is missing or is not such a table.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {key: np.array([float(row[key]) for row in rows]) for key in (rows[0] if rows else [])}
    except (OSError, ValueError, TypeError) as error:
        mend = command("fit", "--resume", path.parent)
        raise UserError(f"{path} cannot be read as a table; if its folder is a run, repair it with: {mend}") from error


def by_time(columns: dict[str, np.ndarray], clock: str, value: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times ``[U]``, in updates or steps; members ``[S, ...]``, each with its seed and its values of settings that have
    several; and the mean of a column over the rows of each member and time, ``[S, U]``."""
    times, u = np.unique(columns[clock], return_inverse=True)
    told = [column for name, column in columns.items() if name == "seed" or name.startswith("agent.")]
    members, s = np.unique(np.stack(told, 1), axis=0, return_inverse=True)
    s = s.reshape(-1)
    total, rows = np.zeros((2, len(members), len(times)))
    np.add.at(total, (s, u), columns[value])
    np.add.at(rows, (s, u), 1)
    return times, members, np.divide(total, rows, out=np.full_like(total, np.nan), where=rows > 0)


def reconstructions(frames: np.ndarray, found: np.ndarray, path: Path) -> Path:
    """Draw images ``[n, H, W, C]`` with values in [0, 1], and below each its reconstruction, of the same shape."""
    figure = new_figure((1.4 * len(frames), 3.2))
    for row, (name, images) in enumerate((("frames", frames), ("reconstructions", found))):
        for column, image in enumerate(images):
            axes = figure.add_subplot(2, len(frames), row * len(frames) + column + 1)
            axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            if not column:
                axes.set_ylabel(name)
    return save(figure, path, dpi=150)


def rows_of(columns: Mapping[str, np.ndarray], member: Mapping[str, float]) -> np.ndarray:
    """Boolean mask of the rows of a run's table that belong to a member, or have these values."""
    found = np.ones(len(next(iter(columns.values()))), bool)
    for name, value in columns_of(member).items():
        found &= columns[name] == value
    return found


def clock_of(summary: dict) -> str:
    """The unit that a run is counted in: "updates" or "steps"."""
    return summary.get("clock", "updates")


def curves(run: Path, path: Path) -> Path:
    """Plot the scores of a run over its updates or steps and, beside them, the metrics in ``DRAWN``; for a run without
    an environment, only its losses.

    The line is the mean over seeds, the band their range, and thin lines are single seeds. A diamond is the last policy
    with its 95% interval. A dashed line is the loss on held-out episodes.
    """
    from matplotlib.ticker import EngFormatter

    summary = json.loads((run / "summary.json").read_text())
    clock = clock_of(summary)
    metrics, held_out = (
        read_columns(table) if table.exists() else {} for table in (run / "metrics.csv", run / "held_out.csv")
    )
    drawn = [name for name in DRAWN if name in metrics]
    scored = summary["last"] is not None
    if not scored:
        drawn = drawn or [name for name in summary["losses"] if name in metrics]
    panel = 3.4 if scored else max(3.4, 6.8 / max(len(drawn), 1))
    figure = new_figure((7 * scored + panel * max(len(drawn), 1 - scored), 4.6))
    widths = [2.2] * scored + [1] * max(len(drawn), 1 - scored)
    axes = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    if scored:
        _draw_scores(axes[0], run, summary)
    else:
        figure.suptitle(literal(f"{summary['agent']} on {summary['dataset']}, without an environment"))
    for axis, name in zip(axes[scored:], drawn, strict=False):
        _draw_metric(axis, name, metrics, clock, COLOURS[0], "training")
        if name in held_out:
            _draw_metric(axis, name, held_out, clock, COLOURS[1], "held out", "--")
            axis.legend(fontsize=9, frameon=False)
    for axis in axes:
        axis.set_xlim(0, 1.03 * max(summary[clock], 1))
        plain(axis)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 500, 20k or 1M
        axis.locator_params(axis="x", nbins=6, integer=True)
    if scored:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.set_figheight(4.6 + 0.1 * max(len(labels) - 4, 0))  # more than two rows lie below
        figure.legend(handles, labels, loc="outside lower left", ncols=2, fontsize=9, frameon=False)
    return save(figure, path)


def plain(axis: Any) -> None:
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def new_figure(size: tuple[float, float]) -> Any:
    """An empty figure of a size in inches, independent of pyplot and of any window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path, dpi: int = 130) -> Path:
    """Write a figure atomically, in the format of the file's suffix."""
    path = Path(path)
    with atomic_write(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=dpi, format=format_of(path))
    return path


def online_performance(values: np.ndarray, unit: str, how: str, path: Path) -> Path:
    """Plot the expected value of the best of k policies over k; see ``statistics.expected_maximum``.

    Args:
        values: of the policies, ``[P]``.
        unit: of the values.
        how: how the values were measured, for the title.
        path: the PNG to write.
    """
    figure = new_figure((6.4, 4.2))
    axis = figure.subplots()
    tried = np.arange(1, len(values) + 1)
    axis.plot(tried, expected_maximum(values), color=COLOURS[0], marker="o", markersize=5, linewidth=2,
              label="expected best of this many, drawn with replacement")  # fmt: skip
    axis.axhline(values.max(), color="0.4", linestyle="--", linewidth=1, label=f"best of all {len(values)}")
    axis.set(title=f"Expected performance, by {how}", xlabel="policies tried", ylabel=unit)
    axis.set_xlim(0.5, len(values) + 0.5)
    axis.locator_params(axis="x", nbins=10, integer=True)
    plain(axis)
    axis.legend(loc="lower right", fontsize=9, frameon=False)
    return save(figure, path)


def _draw_metric(
    axis: Any, name: str, columns: dict[str, np.ndarray], clock: str, colour: str, label: str, style: str = "-"
) -> None:
    """Plot a metric over time: the mean over seeds, and every seed."""
    times, seeds, values = by_time(columns, clock[:-1], name)
    known = ~np.isnan(values).all(0)
    times, values = times[known], values[:, known]
    marker = "o" if len(times) < 10 else None
    if len(seeds) > 1:
        axis.plot(times, values.T, style, linewidth=0.7, alpha=0.5, color=colour)
    axis.plot(times, np.nanmean(values, 0), style, linewidth=1.8, color=colour, marker=marker, markersize=3.5,
              label=label)  # fmt: skip
    title = "return in training" if name == "episode_return" else name.replace("_", " ")
    axis.set(title=title, xlabel=clock)


def _draw_scores(axis: Any, run: Path, summary: dict) -> None:
    clock, table = clock_of(summary), read_columns(run / "evaluations.csv")
    for number, of in enumerate(summary.get("values", [dict(settings={}, last=summary["last"])])):
        colour, own = COLOURS[number % len(COLOURS)], rows_of(table, of["settings"])
        columns = {name: column[own] for name, column in table.items()}
        times, seeds, scores = by_time(columns, clock[:-1], "score")
        known = ~np.isnan(scores).all(0)
        at, scores = times[known], scores[:, known]
        axis.plot(at, np.nanmean(scores, 0), color=colour, marker="o", markersize=3.5, linewidth=2)
        axis.fill_between(at, np.nanmin(scores, 0), np.nanmax(scores, 0), color=colour, alpha=0.15)
        axis.plot(at, scores.T, color=colour, linewidth=0.6, alpha=0.6)
        low, high, centre = np.array([*of["last"]["ci95"], of["last"]["mean"]], float)
        decimals = places(low, high)
        last = f"{shown(centre, decimals)} [{shown(low, decimals)}, {shown(high, decimals)}]"
        count = f"{len(seeds)} seeds" if len(seeds) > 1 else "1 seed"
        name = ", ".join(filter(None, (summary["agent"], named(of["settings"]), count)))
        axis.errorbar(
            times[-1], centre, [[max(centre - low, 0)], [max(high - centre, 0)]], color=colour, capsize=3,
            marker="D", markersize=6, label=literal(f"{name}: last {last}"), clip_on=False,
        )  # fmt: skip
    if summary["dataset_score"] is not None:
        axis.axhline(
            summary["dataset_score"], color="0.4", linestyle="--", linewidth=1, label="average episode of the dataset"
        )
    axis.set(title=literal(summary["dataset"] or summary["env"]), xlabel=clock, ylabel=unit_of(summary["score_kind"]))
    if not summary["score_kind"].startswith("return"):
        axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
