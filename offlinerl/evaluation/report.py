"""Comparing finished runs: what ``offlinerl report`` prints and writes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from offlinerl.evaluation import plots
from offlinerl.evaluation.statistics import bootstrap
from offlinerl.util.atomic import write_whole
from offlinerl.util.display import between, console, listed, places, shown, table, unit_of
from offlinerl.util.errors import UserError, reading
from offlinerl.util.folder import numbered

COLUMNS = ("run", "agent", "seeds", "length", "mean", "95% interval", "per seed", "best evaluation")


@dataclass(frozen=True)
class Finished:
    """A finished run: its folder, its ``summary.json`` and the scores of the last policies' episodes."""

    folder: Path
    summary: dict[str, Any]
    scores: np.ndarray  # [S, episodes]

    @property
    def about(self) -> dict[str, Any]:
        """What it shares with the runs that it may be compared with: the data by their checksum or, as older versions
        did not write one down, by their name and score."""
        of = self.summary
        data = of.get("data") or dict(name=of["dataset"] or of["env"], score=of.get("dataset_score"))
        clock = plots.clock_of(of)
        return dict(env=of.get("env"), task=of.get("task"), data=data, kind=of["score_kind"], clock=clock)

    @cached_property
    def interval(self) -> tuple[float, float]:
        return bootstrap(self.scores)

    @cached_property
    def row(self) -> tuple[str, ...]:
        """What stands under ``COLUMNS``. The mean is the last policy's; the best evaluation is the luckiest
        of many and only shown."""
        decimals = places(*self.interval)
        best, clock = self.summary["best"], plots.clock_of(self.summary)
        return (
            self.folder.resolve().name,
            self.summary["agent"],
            str(len(self.scores)),
            f"{self.summary[clock]:,} {clock}",
            shown(self.scores.mean(), decimals),
            between(self.interval, decimals),
            listed(self.scores.mean(-1), decimals),
            f"{shown(best['mean'], decimals)} at {best[clock[:-1]]:,}",
        )


def read(folder: Path) -> Finished:
    """A run's summary and the scores of its last policies.

    Raises:
        UserError: the folder holds no finished run.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text())
        needed = {key: summary[key] for key in ("agent", "dataset", "seeds", "score_kind", "best")}
        clock = plots.clock_of(summary)
        needed[clock] = summary[clock]
        if summary.get("last", ...) is None:
            raise UserError(
                f"the run in {folder} has no scores, for it had no environment: leave it out, or train again with --env"
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} holds no finished run, for want of a sound summary.json; finish it with: offlinerl fit"
            f" --resume {folder}"
        ) from error
    table = plots.read_columns(folder / "evaluations.csv")
    with reading(f"the run in {folder}", "run the training again"):
        last = table.get(clock[:-1], np.empty(0)) == needed[clock]
        scores = [table["score"][last & (table["seed"] == seed)] for seed in needed["seeds"]] if last.any() else []
        if not scores or len({len(of_seed) for of_seed in scores}) > 1 or not len(scores[0]):
            raise UserError(
                f"{folder / 'evaluations.csv'} lacks evaluations of the last policy; run the training again"
            )
        run = Finished(folder, summary, np.stack(scores))
        # What is lacking is seen before anything is printed.
        _ = "".join(run.row), _titles([[run]]), _notes([run]), unit_of(summary["score_kind"])
    return run


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> float:
    """Probability that a training of X scores higher than one of Y, over all pairs of their seeds.

    A tie counts one half: the Mann-Whitney statistic, as in Agarwal et al., 2021, section 4.3. ``x`` and ``y`` are
    scores per seed, ``[S]``.
    """
    difference = x[:, None] - y
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def report(runs: Sequence[Path], out: Path | None = None) -> None:
    """Print a table of the runs of every task and dataset, which are distinguished by what they are and not by their
    names alone, and write ``report.md`` and pictures of the curves into the folder ``out`` if it is given.

    Raises:
        UserError: a folder holds no finished run.
    """
    groups: dict[str, list[Finished]] = {}
    for run in map(read, runs):
        groups.setdefault(json.dumps(run.about, sort_keys=True), []).append(run)
    to, text, pictures = console(), ["# Runs compared", "", EXPLANATION], set()
    for number, (name, group) in enumerate(zip(_titles(list(groups.values())), groups.values(), strict=True)):
        rows, notes, about = [run.row for run in group], _notes(group), group[0].about
        kind, clock = about["kind"], about["clock"]
        title = f"{name}: {unit_of(kind)}"
        if number:
            to.print()
        table(to, title, COLUMNS, rows)
        for note in notes:
            to.print(note)
        text += ["", f"## {title}", "", *_markdown(COLUMNS, rows), *(f"\n{note}" for note in notes)]
        if out is not None:
            task = f"{_name(group[0]).replace('/', '-')}-{kind}" + "-steps" * (clock == "steps")
            stem = Path("curves" if len(groups) == 1 else f"curves-{task}")
            picture = next(path for path in numbered(stem) if path not in pictures)
            pictures.add(picture)
            folders = [run.folder for run in group]
            with reading(f"the run in {' or '.join(map(str, folders))}", "leave it out or run the training again"):
                plots.curves(folders, out / f"{picture}.png")
            text += ["", f"![{unit_of(kind)} over {clock}]({picture}.png)"]
    if out is not None:
        write_whole(out / "report.md", "\n".join(text) + "\n")
        to.print(f"written to {out}")


EXPLANATION = (
    "The mean is that of the last policies, over all seeds and episodes, with a 95% bootstrap interval over both. The"
    " best evaluation on the way is the luckiest of many: it is shown, and is not the result."
)


def _name(run: Finished) -> str:
    return run.summary["dataset"] or run.summary["env"]


def _titles(groups: Sequence[Sequence[Finished]]) -> list[str]:
    """The dataset of every group of runs, and where several have one of that name, what else distinguishes them."""
    abouts = [dict(group[0].about, name=_name(group[0])) for group in groups]
    titles = []
    for about in abouts:
        alike = [other for other in abouts if all(other[key] == about[key] for key in ("name", "kind", "clock"))]
        differs = {key for key in ("env", "task", "data") if any(other[key] != about[key] for other in alike)}
        title = about["name"]
        if "env" in differs or "task" in differs:
            title += f", in {about['env']}{_task_facts(about, alike)}"
        if "data" in differs:
            title += f", {_data_facts(about['data'])}"
        titles.append(title)
    return titles


def _data_facts(data: Mapping[str, Any]) -> str:
    if "sha256" in data:
        return f"{data['rows']:,} rows of checksum {data['sha256'][:8]}"
    return "data without a checksum" if data["score"] is None else f"data that scores {data['score']:.6g}"


def _task_facts(about: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """What is particular about a task among others in the environment of that name."""
    if about["task"] is None:
        return ""
    mine = _flat(about["task"])
    theirs = [_flat(other["task"] or {}) for other in others if other["env"] == about["env"]]
    own = {key: value for key, value in mine.items() if any(other.get(key) != value for other in theirs)}
    return "".join(f", {key} {json.dumps(value)}" for key, value in own.items())


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The values in nested mappings, by their own names."""
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        flat |= _flat(value) if isinstance(value, Mapping) else {key: value}
    return flat


def _notes(group: Sequence[Finished]) -> list[str]:
    notes = []
    scores = {run.summary["dataset_score"] for run in group} - {None}
    if scores:
        decimals = max(places(*run.interval) for run in group)
        notes.append(f"The average episode of the dataset scores {shown(scores.pop(), decimals)}.")
    agents = [run.summary["agent"] for run in group]
    names = [run.row[0] if agents.count(agent) > 1 else agent for run, agent in zip(group, agents, strict=True)]
    for (x, a), (y, b) in itertools.combinations(zip(group, names, strict=True), 2):
        if len(x.scores) == len(y.scores) == 1:
            continue  # one pair shows nothing
        chance = probability_of_improvement(x.scores.mean(-1), y.scores.mean(-1))
        notes.append(f"{a} scores higher than {b} in {chance:.0%} of the pairs of their seeds.")
    return notes


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * 2 + ["---:"] * (len(columns) - 2), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]
