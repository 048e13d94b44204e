"""The tables of a report, for the screen and as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from offlinerl.evaluation.comparison import Group, Row
from offlinerl.evaluation.findings import Curve, Findings, percent
from offlinerl.util.atomic import write_whole
from offlinerl.util.display import between, listed, places, shown

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Column names, and rows of formatted cells."""

TRIED = "settings tried"


def scores(group: Group, found: Findings) -> Table:
    """One row per agent. The mean is that of the last policies. The best evaluation is the luckiest of many: it is only
    shown, and not used for the ranking."""
    columns = (
        "run", "agent", TRIED, "seeds", "length", "mean", "95% interval", "IQM", "per seed", "best evaluation",
    )  # fmt: skip

    def cells(row: Row, iqm: float) -> Sequence[str]:
        decimals = places(*row.interval)
        return (
            row.folders, row.name, str(row.tried), str(len(row.seeds)), f"{row.length:,} {group.clock}",
            shown(row.scores.mean(), decimals), between(row.interval, decimals), shown(iqm, decimals),
            listed(row.per_seed, decimals), f"{shown(row.best['mean'], decimals)} at {row.best[group.clock[:-1]]:,}",
        )  # fmt: skip

    return columns, [cells(row, found.estimates[row.name]["IQM"].value) for row in group.rows]


DISPENSABLE = ("best evaluation", "run", "per seed", "length", "IQM")
"""Columns that are left out on narrow screens, in this order."""


def fitting(table: Table, width: int) -> Table:
    """A table without those dispensable columns that do not fit into a framed table of this width."""
    columns, rows = table
    wide = {cells[0]: max(map(len, cells)) + 3 for cells in zip(columns, *rows, strict=True)}
    for name in DISPENSABLE:
        if name in wide and sum(wide.values()) >= width:
            del wide[name]
    kept = [place for place, name in enumerate(columns) if name in wide]
    return [columns[place] for place in kept], [[row[place] for place in kept] for row in rows]


def losses(group: Group) -> Table:
    """One row per agent and loss, for runs without an environment."""
    columns = ("run", "agent", TRIED, "seeds", "length", "loss", "training", "held out")
    rows = [
        (
            row.folders, row.name, str(row.tried), str(len(row.seeds)), f"{row.length:,} {group.clock}",
            name.replace("_", " "), f"{value:.4g}", f"{held_out[name]:.4g}" if name in held_out else "",
        )
        for row in group.rows
        for held_out in [row.losses("held_out")]
        for name, value in row.losses("losses").items()
    ]  # fmt: skip
    return columns, rows


def aggregates(found: Findings) -> Table:
    """One row per agent, over several tasks."""
    first = next(iter(found.estimates.values()))
    rows = []
    for name in found.names:
        trainings = str(found.trainings(name))
        texts = [estimate.text() for estimate in found.estimates[name].values()]
        rows.append((name, str(found.tried[name]), trainings, *texts))
    return ("agent", TRIED, "trainings", *first), rows


def improvement(found: Findings) -> Table:
    """The probability that the agent of a row scores higher than the one of a column."""
    rows = [
        (x, str(found.tried[x]), *("" if x == y else percent(found.beats(x, y)) for y in found.names))
        for x in found.names
    ]
    return ("scores higher than", TRIED, *found.names), rows


def markdown(table: Table) -> list[str]:
    columns, rows = table
    lines = [columns, ["---"] * 2 + ["---:"] * (len(columns) - 2), *rows]
    lines = [[cell.replace("|", r"\|") for cell in cells] for cells in lines]
    return [f"| {' | '.join(cells)} |" for cells in lines]


SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip


def latex(table: Table, caption: str) -> str:
    """A LaTeX table for the package booktabs."""

    def plain(text: str) -> str:
        return "".join(SPECIAL.get(character, character) for character in text)

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(plain, cells)) + r" \\"

    columns, rows = table
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{plain(caption)}}}", r"\smallskip",
        rf"\begin{{tabular}}{{ll{'r' * (len(columns) - 2)}}}", r"\toprule", line(columns), r"\midrule",
        *map(line, rows), r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, with numbers in full precision."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, file.getvalue())


def numbers(group: Group | None, found: Findings | None) -> dict[str, Iterator[dict[str, Any]]]:
    """The rows of a report's CSV files by file name, for one task, or over several tasks if ``group`` is None."""
    if group is not None and found is None:
        return dict(losses=_losses(group))
    assert found is not None
    return dict(
        **(dict(overall=_aggregates(found)) if group is None else dict(scores=_scores(group, found))),
        improvement=_improvement(found),
        curves=_curves(found, found.curves, "time", clock=found.clock),
        profiles=_curves(found, found.profiles, "score"),
    )


def _scores(group: Group, found: Findings) -> Iterator[dict[str, Any]]:
    """Rows of ``scores.csv``, one per agent and task."""
    for row in group.rows:
        estimates = found.estimates[row.name]
        yield dict(
            task=group.title, unit=group.unit, run=row.folders, agent=row.name, settings_tried=row.tried,
            seeds=" ".join(map(str, row.seeds)), clock=group.clock, length=row.length, **_flat(estimates),
            per_seed=" ".join(f"{score:.17g}" for score in row.per_seed), dataset_score=group.dataset_score,
        )  # fmt: skip


def _losses(group: Group) -> Iterator[dict[str, Any]]:
    """Rows of ``losses.csv``, one per agent and loss."""
    for row in group.rows:
        held_out = row.losses("held_out")
        for name, value in row.losses("losses").items():
            yield dict(
                task=group.title, run=row.folders, agent=row.name, settings_tried=row.tried,
                seeds=" ".join(map(str, row.seeds)), clock=group.clock, length=row.length, loss=name, training=value,
                held_out=held_out.get(name),
            )  # fmt: skip


def _aggregates(found: Findings) -> Iterator[dict[str, Any]]:
    """Rows of ``overall.csv``, one per agent."""
    for name, estimates in found.estimates.items():
        yield dict(
            tasks=len(found.tasks), unit=found.unit, agent=name, settings_tried=found.tried[name],
            trainings=found.trainings(name), **_flat(estimates),
        )  # fmt: skip


def _improvement(found: Findings) -> Iterator[dict[str, Any]]:
    """Rows of ``improvement.csv``, one per pair of agents."""
    for (x, y), chance in found.improvement.items():
        yield dict(
            tasks=found.title, x=x, y=y, x_settings_tried=found.tried[x], y_settings_tried=found.tried[y],
            probability=chance.value, low=chance.low, high=chance.high,
        )  # fmt: skip


def _curves(found: Findings, curves: Mapping[str, Curve], x: str, **more: str) -> Iterator[dict[str, Any]]:
    """Rows of ``curves.csv`` and ``profiles.csv``, one per agent and point."""
    for name, curve in curves.items():
        for at, value, low, high in zip(*curve, strict=True):
            yield {
                "tasks": found.title, "agent": name, "settings_tried": found.tried[name], **more, x: at,
                "value": value, "low": low, "high": high,
            }  # fmt: skip


def _flat(estimates: Mapping[str, Any]) -> dict[str, float]:
    named: dict[str, float] = {}
    for key, (value, low, high) in estimates.items():
        named |= {key.lower(): value, f"{key.lower()}_low": low, f"{key.lower()}_high": high}
    return named
