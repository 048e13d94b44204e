"""Plots of a comparison, each as PNG, PDF and SVG."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offlinerl.evaluation.findings import Curve, Estimate, Findings
from offlinerl.evaluation.plots import new_figure, plain, save
from offlinerl.util.figures import line_of, literal

FORMATS = ("png", "pdf", "svg")

WIDEST = 32
"""Maximum number of characters in a line of a name."""

MANY = 8
"""With more agents than this, curves have no bands, which would hide each other, and cells only hold the value."""

Colours = Mapping[str, int]
"""The index of every agent's colour, the same in all plots of a report."""


def task(found: Findings, colours: Colours, reference: float | None, stem: Path) -> None:
    """Plot the mean of every agent over training, and its last policies: the seeds as points, their mean with its
    interval.

    Args:
        reference: score of the dataset's average episode.
    """
    width, height = _size(found.names)
    figure, (over_time, at_end) = _figure(2, (10.5 + width, max(4.6, 1.6 + height)), width_ratios=[1.3, 1])
    _lines(over_time, found.curves, found.names, colours)
    shown = "mean" if len(found.names) > MANY else "mean and 95% interval"
    over_time.set(xlabel=found.clock, ylabel=found.unit, title=f"training: {shown} over seeds")
    seeds = {name: found.strata[name][0] for name in found.names}
    _intervals(at_end, {name: of["mean"] for name, of in found.estimates.items()}, found.names, colours, seeds)
    at_end.set(xlabel=found.unit, title="last policies: seeds, mean and 95% interval")
    if reference is not None:
        over_time.axhline(reference, color="0.4", linestyle="--", linewidth=1, label="average episode of the dataset")
        at_end.axvline(reference, color="0.4", linestyle="--", linewidth=1)
    figure.suptitle(literal(found.title))
    _legend(figure, over_time)
    _save(figure, stem)


def aggregates(found: Findings, colours: Colours, stem: Path) -> None:
    """Plot the estimates of every agent with their intervals, one panel for each kind."""
    kinds = list(found.estimates[found.names[0]])
    width, height = _size(found.names)
    figure, axes = _figure(len(kinds), (3.4 * len(kinds) + 1 + width, 1.4 + height), sharex=True, sharey=True)
    for axis, kind in zip(axes, kinds, strict=True):
        _intervals(axis, {name: of[kind] for name, of in found.estimates.items()}, found.names, colours)
        axis.set(title=kind, xlabel=found.unit)
    figure.suptitle(f"{found.title}: estimates and 95% intervals")
    _save(figure, stem)


def curves(found: Findings, colours: Colours, stem: Path) -> None:
    figure, ((axis,),) = _figure(1, (7.5, 4.8), squeeze=False)
    _lines(axis, found.curves, found.names, colours)
    axis.set(xlabel=found.clock, ylabel=f"IQM of the {found.unit}", title=f"{found.title}: sample efficiency")
    _legend(figure, axis)
    _save(figure, stem)


def profiles(found: Findings, colours: Colours, stem: Path) -> None:
    figure, ((axis,),) = _figure(1, (7.5, 4.8), squeeze=False)
    _lines(axis, found.profiles, found.names, colours)
    axis.set(xlabel=found.unit, ylabel="share of trainings above", title=f"{found.title}: performance profiles")
    axis.set_ylim(-0.02, 1.02)
    _legend(figure, axis)
    _save(figure, stem)


def improvement(found: Findings, stem: Path) -> None:
    """Plot the probability that the agent of a row scores higher than the one of a column."""
    n, (width, height) = len(found.names), _size(found.names)
    few, turned = n <= MANY, width > 2 or n > MANY
    across, down = (1.25, 0.8) if few else (0.6, 0.5)
    size = 0.6 + width + across * n, 1.0 + (width if turned else 0.8) + max(down * n, height)
    figure, ((axis,),) = _figure(1, size, squeeze=False)
    chances = {(x, y): found.beats(x, y) for x in found.names for y in found.names if x != y}
    grid = np.array([[chances[x, y].value if x != y else np.nan for y in found.names] for x in found.names])
    axis.imshow(grid, cmap="RdBu", vmin=-0.4, vmax=1.4, aspect="auto")
    for (i, x), (j, y) in ((row, column) for row in enumerate(found.names) for column in enumerate(found.names)):
        if x != y:
            value, low, high = (100 * number for number in chances[x, y])
            sure = f"\n{low:.0f} to {high:.0f}" if few and not np.isnan(low) else ""
            axis.text(j, i, f"{value:.0f} %{sure}", ha="center", va="center", fontsize=10)
    names = [_wrapped(name) for name in found.names]
    how = dict(rotation=90, va="center") if turned else dict(rotation=25)
    axis.set_xticks(range(n), names, ha="right", rotation_mode="anchor", **how)
    axis.set_yticks(range(n), names)
    axis.set(title=literal(f"{found.title}: probability that the row\nscores higher than the column"))
    _save(figure, stem)


def _figure(columns: int, size: tuple[float, float], **more: Any) -> tuple[Any, Any]:
    figure = new_figure(size)
    return figure, figure.subplots(1, columns, **more)


def _wrapped(name: str) -> str:
    return literal("\n".join(textwrap.wrap(name, WIDEST, break_on_hyphens=False)))


def _size(names: Sequence[str]) -> tuple[float, float]:
    """The width of the widest name, and the height of all names below each other, in inches."""
    lines = [_wrapped(name).split("\n") for name in names]
    tallest = max(map(len, lines))
    return 0.09 * max(len(line) for of in lines for line in of), len(names) * max(0.4, 0.17 * tallest + 0.1)


def _lines(axis: Any, curves: Mapping[str, Curve], names: Sequence[str], colours: Colours) -> None:
    for name in names:
        if name in curves:
            x, value, low, high = curves[name]
            style = line_of(colours[name])
            marker = dict(marker="o", markersize=3.5) if len(x) < 30 else {}
            axis.plot(x, value, **style, **marker, linewidth=2, label=_wrapped(name))
            if len(names) <= MANY:
                axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    plain(axis)


def _intervals(
    axis: Any, estimates: Mapping[str, Estimate], names: Sequence[str], colours: Colours,
    points: Mapping[str, np.ndarray] | None = None,
) -> None:  # fmt: skip
    """Draw one line per agent, the first name on top."""
    for place, name in enumerate(names):
        value, low, high = estimates[name]
        colour = line_of(colours[name])["color"]
        axis.plot([low, high], [place, place], color=colour, linewidth=6, alpha=0.35, solid_capstyle="butt")
        axis.plot(value, place, "D", color=colour, markersize=7)
        if points is not None:
            below = np.full(len(points[name]), place + 0.25)
            axis.plot(points[name], below, "o", color=colour, markersize=4, alpha=0.7)
    axis.set_yticks(range(len(names)), [_wrapped(name) for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    plain(axis)


def _legend(figure: Any, axis: Any) -> None:
    """Draw a legend below a figure, which grows by what does not fit below its axes."""
    handles, labels = axis.get_legend_handles_labels()
    width, height = _size(labels)
    columns = min(len(labels), 4, max(1, int(figure.get_figwidth() / (width + 1))))
    rows = math.ceil(len(labels) / columns)
    figure.set_figheight(figure.get_figheight() + height / len(labels) * (rows - 1))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=10, handlelength=4.5, frameon=False
    )


def _save(figure: Any, stem: Path) -> None:
    for suffix in FORMATS:
        save(figure, stem.with_name(f"{stem.name}.{suffix}"))
        figure.set_layout_engine("none")  # keep the layout for the other formats; computing it is slow
