"""Reads finished runs and groups them for comparison: by task, by agent and settings, and over tasks.

A *training* is one seed of a run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from offlinerl.data.journal import COLLECTION
from offlinerl.evaluation import plots
from offlinerl.evaluation.statistics import bootstrap, standing
from offlinerl.util import fast_yaml
from offlinerl.util.display import unit_of
from offlinerl.util.errors import UserError, command, reading

WATCHED = {"train.compile", "train.logger", "train.log_every", "train.save_every", "train.table"}
"""Settings that affect neither training nor evaluation."""

MEASURING = {f"train.{key}" for key in ("eval_every", "online_eval_every", "eval_episodes", "final_episodes")}
"""Settings that affect evaluation, but not training."""

NAMED = {"agent", "dataset", "env", "seeds", "columns", "extended", "fingerprint", "successors"}
"""Entries of the section ``fit`` of ``config.yaml`` that are not settings by which runs are told apart. Datasets, and
the columns that were read of them, are compared by checksum."""

TRIED = 1_000
"""Number of candidate sets of common tasks after which only the sets of pairs of agents are added."""


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        scores: of the last policies' episodes, ``[S, episodes]``; None for a run without an environment.
        evaluations: the columns of ``evaluations.csv``.
        settings: the settings that runs are told apart by, by section and name; None without a ``config.yaml``.
    """

    folder: Path
    summary: dict[str, Any]
    scores: np.ndarray | None
    evaluations: dict[str, np.ndarray]
    settings: dict[str, Any] | None

    @property
    def choice(self) -> dict[str, Any] | None:
        """The settings that are not null; settings that later versions added are null by default."""
        return self.settings and {key: value for key, value in self.settings.items() if value is not None}

    @property
    def about(self) -> dict[str, Any]:
        """What runs must have in common to be comparable. Datasets are compared by checksum or, for runs of older
        versions, which stored none, by name and score."""
        of = self.summary
        data = of.get("data") or dict(name=of["dataset"] or of["env"], score=of.get("dataset_score"))
        kind = None if self.scores is None else of["score_kind"]
        return dict(env=of.get("env"), task=of.get("task"), data=data, kind=kind, clock=plots.clock_of(of))


def read(folder: Path) -> Finished:
    """Read a finished run: its summary, settings and evaluations.

    Raises:
        UserError: the folder holds no finished run.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text())
        clock = plots.clock_of(summary)
        needed = {key: summary[key] for key in ("agent", "dataset", "seeds", "score_kind", clock)}
        scored = summary.get("last", ...) is not None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}") from error
        go_on = "name a run's folder, or one that holds runs"
        if (folder / "config.yaml").is_file():
            go_on = f"finish it with: {command('fit', '--resume', folder)}"
        if (folder / COLLECTION).is_file():
            go_on = "resume it with the same `offlinerl collect` command and --resume"
        raise UserError(f"{folder} holds no finished run: its summary.json is missing or damaged; {go_on}") from error
    table = plots.read_columns(folder / "evaluations.csv") if scored else {}
    with reading(f"the run in {folder}", "run the training again"):
        summary = _with_nan(summary)
        if not scored:
            return _checked(Finished(folder, summary, None, {}, _settings(folder)))
        last = table.get(clock[:-1], np.empty(0)) == needed[clock]
        members = summary.get("members", [dict(seed=seed) for seed in needed["seeds"]]) if last.any() else []
        scores = [table["score"][last & plots.rows_of(table, member)] for member in members]
        if not scores or len({len(of_seed) for of_seed in scores}) > 1 or not len(scores[0]):
            raise UserError(
                f"{folder / 'evaluations.csv'} has no evaluations of the last policy; repair it with:"
                f" {command('fit', '--resume', folder)}"
            )
        return _checked(Finished(folder, summary, np.stack(scores), table, _settings(folder)))


def _with_nan(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary in which null is replaced by NaN where ``write_json`` wrote it for NaN."""
    known: dict[str, Any] = {key: summary[key] for key in ("best", "losses", "held_out") if summary.get(key)}
    for key, numbers in known.items():
        of = ("mean", "per_seed") if key == "best" else numbers
        known[key] = numbers | {name: np.array(numbers[name], float).tolist() for name in of}
    return summary | known


def _checked(run: Finished) -> Finished:
    """Return the run after accessing everything that is used later, so that missing parts raise before anything is
    printed."""
    (group,) = groups_of(by_value(run))
    for row in group.rows:
        _ = f"{group.unit}{row.length:,}{len(row.seeds)}{group.dataset_score or 0:g}"
        if run.scores is None:
            _ = row.losses("losses"), row.losses("held_out")
        else:
            _ = row.curve(), f"{row.best['mean']:g}{row.best[group.clock[:-1]]:,}"
    return run


def by_value(run: Finished) -> list[Finished]:
    """Split a run with several values of its settings into one run per combination of values; others are unchanged."""
    summary, parts, first = run.summary, [], 0
    chosen = [of["settings"] for of in summary.get("values", ())]
    size = len(summary["seeds"]) // max(len(chosen), 1)
    for values in chosen:
        own = range(first, first := first + size)
        rows = plots.rows_of(run.evaluations, values) if run.evaluations else ...
        settings = run.settings and run.settings | {f"agent.{name}": value for name, value in values.items()}
        parts.append(replace(_part(run, own, rows), settings=settings))
    return parts or [run]


def _part(run: Finished, kept: Sequence[int], rows: Any) -> Finished:
    """Some trainings of a run, by their places among its seeds, with these rows of its evaluations."""
    summary = dict(run.summary, seeds=[run.summary["seeds"][s] for s in kept])
    for which in ("losses", "held_out"):
        summary[which] = {name: [of[s] for s in kept] for name, of in (run.summary.get(which) or {}).items()}
    evaluations = {name: column[rows] for name, column in run.evaluations.items()}
    if summary.get("best"):
        summary["best"] = _best(evaluations, plots.clock_of(summary)[:-1])
    scores = None if run.scores is None else run.scores[list(kept)]
    return replace(run, summary=summary, scores=scores, evaluations=evaluations)


def _best(evaluations: dict[str, np.ndarray], clock: str) -> dict[str, Any]:
    """The best evaluation in a table, in the format of a run's summary."""
    times, _, scores = plots.by_time(evaluations, clock, "score")
    return _best_of(times, scores.T, clock)


def _best_of(times: np.ndarray, scores: np.ndarray, clock: str) -> dict[str, Any]:
    """The best of evaluations ``[U, N]`` at times ``[U]``."""
    at, per_seed = max(enumerate(scores.tolist()), key=lambda pair: standing(pair[1]))
    return {"mean": float(np.mean(per_seed)), "per_seed": per_seed, clock: int(times[at])}


def _settings(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    with reading(f"the configuration {path}", "run the training again"):
        try:
            given = fast_yaml.parse(path.read_text("utf-8"))
        except yaml.YAMLError as error:
            raise ValueError("it is not YAML") from error
        told = {f"{section}.{key}": value for section in ("agent", "train") for key, value in given[section].items()}
        told |= {f"fit.{key}": value for key, value in given["fit"].items() if key not in NAMED}
    return {key: value for key, value in told.items() if key not in WATCHED | MEASURING}


@dataclass(frozen=True)
class Row:
    """All trainings of one agent with the same settings on one task: one run, or several with different seeds.

    Attributes:
        name: the agent, with those settings that differ from its other rows.
        tried: the number of settings of the agent that are known to have been tried on the task.
        full_name: the agent, with those settings that differ on any of the tasks; by default its name.
    """

    name: str
    runs: tuple[Finished, ...]
    tried: int
    full_name: str | None = None

    @property
    def across(self) -> str:
        """The name that the row has over several tasks."""
        return self.full_name or self.name

    @cached_property
    def scores(self) -> np.ndarray:
        """The scores of the last policies' episodes, ``[N, episodes]``."""
        return np.concatenate([run.scores for run in self.runs if run.scores is not None])

    @property
    def per_seed(self) -> np.ndarray:
        """The mean score of each training, ``[N]``."""
        return self.scores.mean(-1)

    @property
    def seeds(self) -> list[int]:
        return [seed for run in self.runs for seed in run.summary["seeds"]]

    @property
    def folders(self) -> str:
        return ", ".join(run.folder.resolve().name for run in self.runs)

    @property
    def length(self) -> int:
        """The length of the training, in updates or steps."""
        return self.runs[0].summary[plots.clock_of(self.runs[0].summary)]

    @property
    def is_fine_tuned(self) -> bool:
        """Whether the training learned from a dataset first, and then by acting."""
        return any(run.summary.get("clock") == "updates" and run.summary.get("steps") for run in self.runs)

    @property
    def best(self) -> dict[str, Any]:
        """The best evaluation of all trainings together."""
        if len(self.runs) == 1:
            return self.runs[0].summary["best"]
        times, scores = self.curve()  # [U], [U, N]
        return _best_of(times, scores, plots.clock_of(self.runs[0].summary)[:-1])

    @cached_property
    def interval(self) -> tuple[float, float]:
        return bootstrap(self.scores)

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """The times ``[U]`` at which all trainings were evaluated, and their scores ``[U, N]``."""
        clock = plots.clock_of(self.runs[0].summary)[:-1]
        each = [plots.by_time(run.evaluations, clock, "score") for run in self.runs]
        times = np.array(sorted(set.intersection(*(set(times) for times, *_ in each))))
        return times, np.concatenate([scores[:, np.isin(at, times)] for at, _, scores in each]).T

    def losses(self, which: str) -> dict[str, float]:
        """The mean over all trainings of each final loss, where ``which`` is "losses" or "held_out"."""
        tables = [run.summary[which] or {} for run in self.runs]
        return {name: float(np.mean([v for table in tables for v in table.get(name, ())])) for name in tables[0]}


@dataclass(frozen=True)
class Group:
    """Comparable rows, on one dataset or environment, best first.

    Attributes:
        kind: of the scores; None without an environment.
        clock: "updates" or "steps", what the runs are counted in.
    """

    title: str
    kind: str | None
    clock: str
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """The name of the dataset or environment."""
        return _name(self.rows[0].runs[0])

    @property
    def unit(self) -> str:
        return "no score" if self.kind is None else unit_of(self.kind)

    @property
    def dataset_score(self) -> float | None:
        """The score of the dataset's average episode, if known."""
        known = (run.summary["dataset_score"] for row in self.rows for run in row.runs)
        return next((score for score in known if score is not None), None)


@dataclass(frozen=True)
class Overall:
    """Agents on several tasks with the same kind of score.

    Attributes:
        tasks: the common tasks.
        names: of the rows that have all these tasks, as ``Row.across``.
        others: the names of the other rows, likewise.
        left_out: these names and the titles of the other tasks.
    """

    tasks: tuple[Group, ...]
    names: tuple[str, ...]
    others: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def kind(self) -> str:
        return str(self.tasks[0].kind)

    @property
    def clock(self) -> str:
        return self.tasks[0].clock

    @property
    def comparable(self) -> bool:
        """Whether the scores of different tasks have the same scale. Without reference scores, the score is the return,
        whose scale depends on the task; such scores are only compared within a task."""
        return not self.kind.startswith("return")

    def rows(self, name: str) -> list[Row]:
        """The row of this name on every task."""
        return [next(row for row in task.rows if row.across == name) for task in self.tasks]

    def strata(self, name: str) -> list[np.ndarray]:
        """The scores of the trainings of this name on every task, ``[N]`` each."""
        return [row.per_seed for row in self.rows(name)]

    def tried(self, name: str) -> int:
        """The largest number of settings that were tried on one of the tasks."""
        return max(row.tried for row in self.rows(name))

    def curve(self, name: str) -> tuple[np.ndarray, list[np.ndarray]]:
        """The times ``[U]`` at which all trainings on all tasks were evaluated, and each task's scores ``[U, N]``."""
        curves = [row.curve() for row in self.rows(name)]
        times = np.array(sorted(set.intersection(*(set(times) for times, _ in curves))))
        return times, [scores[np.isin(at, times)] for at, scores in curves]


def distinct(runs: Sequence[Finished]) -> tuple[list[Finished], list[tuple[Finished, Finished, list[int]]]]:
    """The runs without the trainings that only repeat those of an earlier run, with its settings, seeds and scores; and
    for every repetition the earlier run, the one that repeats it, and their common seeds."""
    kept: list[Finished] = []
    repeated = []
    for run in runs:
        rest: Finished | None = run
        for other in kept:
            if rest is not None and (seeds := _repeats(rest, other)):
                repeated.append((other, run, seeds))
                rest = _without(rest, seeds)
        if rest is not None:
            kept.append(rest)
    return kept, repeated


def _repeats(run: Finished, other: Finished) -> list[int]:
    """The common seeds of two runs if they have the same settings, and the same scores in all of these seeds."""
    if other.about != run.about or not _same_settings(other, run) or run.scores is None or other.scores is None:
        return []
    mine, others = (dict(zip(of.summary["seeds"], of.scores, strict=True)) for of in (run, other))
    seeds = [seed for seed in mine if seed in others]
    same = all(np.array_equal(mine[seed], others[seed], equal_nan=True) for seed in seeds)
    return seeds if same else []


def _without(run: Finished, seeds: Sequence[int]) -> Finished | None:
    """A run that has scores, without these seeds; None if it has no others."""
    kept = [s for s, seed in enumerate(run.summary["seeds"]) if seed not in seeds]
    return _part(run, kept, ~np.isin(run.evaluations["seed"], seeds)) if kept else None


def groups_of(runs: Sequence[Finished]) -> list[Group]:
    """Group comparable runs, by the identity of their data and task and not only by name."""
    parts: dict[str, list[Finished]] = {}
    for run in runs:
        parts.setdefault(json.dumps(run.about, sort_keys=True), []).append(run)
    merged = [_merged(part) for part in parts.values()]
    anywhere = _varied(merged)
    groups = []
    for title, rows in zip(_titles(list(parts.values())), merged, strict=True):
        about = rows[0][0].about
        names = zip(rows, _names(rows, _varied([rows])), _names(rows, anywhere), strict=True)
        made = [Row(name, tuple(row), _tried(row[0].summary["agent"], rows), full) for row, name, full in names]
        if about["kind"] is not None:
            made.sort(key=lambda row: -np.nan_to_num(row.scores.mean(), nan=-np.inf))
        groups.append(Group(title, about["kind"], about["clock"], tuple(made)))
    return groups


def overall_of(groups: Sequence[Group]) -> list[Overall]:
    """For every kind of score and clock, the largest set of common tasks and rows, if there are two or more of both."""
    alike: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        if group.kind is not None:
            alike.setdefault((group.kind, group.clock), []).append(group)
    return [overall for tasks in alike.values() if (overall := _shared(tasks)) is not None]


def _shared(tasks: Sequence[Group]) -> Overall | None:
    names = list(dict.fromkeys(row.across for task in tasks for row in task.rows))
    # Candidate task sets are the intersections of the names' task sets, up to a limit. Count the names that have each.
    rows = [{row.across for row in task.rows} for task in tasks]
    has = {name: frozenset(t for t, of_task in enumerate(rows) if name in of_task) for name in names}
    own = set(has.values())
    tried = {frozenset(range(len(tasks)))} | own | {one & other for one, other in combinations(own, 2)}
    for one in own:
        if len(tried) < TRIED:
            tried |= {one & other for other in tried}
    shared = [(chosen, [name for name in names if has[name] >= {*chosen}]) for chosen in sorted(map(sorted, tried))]
    shared = [(chosen, common) for chosen, common in shared if len(chosen) > 1 and len(common) > 1]
    if not shared:
        return None
    chosen, common = max(shared, key=lambda both: len(both[0]) * len(both[1]))
    others = tuple(name for name in names if name not in common)
    left = others + tuple(task.title for t, task in enumerate(tasks) if t not in chosen)
    return Overall(tuple(tasks[t] for t in chosen), tuple(common), others, left)


def _merged(runs: Sequence[Finished]) -> list[list[Finished]]:
    """Merge runs of one agent with the same settings and disjoint seeds into rows."""
    rows: list[list[Finished]] = []
    for run in runs:
        for row in rows:
            first, seeds = row[0], {seed for other in row for seed in other.summary["seeds"]}
            if (
                _same_settings(first, run)
                and not seeds & set(run.summary["seeds"])
                and np.shape(first.scores)[1:] == np.shape(run.scores)[1:]
                and first.summary[plots.clock_of(first.summary)] == run.summary[plots.clock_of(run.summary)]
            ):
                row.append(run)
                break
        else:
            rows.append([run])
    return rows


def _same_settings(one: Finished, other: Finished) -> bool:
    """Whether two runs are known to be of one agent with the same settings."""
    return one.summary["agent"] == other.summary["agent"] and None is not one.choice == other.choice


def _varied(groups: Sequence[Sequence[Sequence[Finished]]]) -> dict[str, set[str]]:
    """For every agent, the settings with several values on the same task. A setting that differs only between tasks is
    task-specific tuning, as in the papers, and does not make a different agent."""
    varied: dict[str, set[str]] = {}
    for rows in groups:
        for agent in {row[0].summary["agent"] for row in rows}:
            told = [row[0].settings for row in rows if row[0].summary["agent"] == agent and row[0].settings is not None]
            keys = {key for settings in told for key in settings}
            varied.setdefault(agent, set()).update(
                key for key in keys if any(settings.get(key) != told[0].get(key) for settings in told)
            )
    return varied


def _names(rows: Sequence[Sequence[Finished]], varied: Mapping[str, set[str]]) -> list[str]:
    """A name for every row of a task: its agent with these settings and, if several would have one name, its folder."""
    names = [_label(row[0], varied[row[0].summary["agent"]]) for row in rows]
    return [
        f"{name} ({_place(row[0], rows)})" if names.count(name) > 1 else name
        for name, row in zip(names, rows, strict=True)
    ]


def _label(run: Finished, varied: set[str]) -> str:
    told = run.settings or {}
    parts = [f"{key.partition('.')[2]}={json.dumps(told[key])}" for key in sorted(varied) if key in told]
    return " ".join([run.summary["agent"], *(part.replace('"', "") for part in parts)])


def _place(run: Finished, rows: Sequence[Sequence[Finished]]) -> str:
    """The shortest end of a run's path that no other run has."""
    own, others = run.folder.resolve().parts, [row[0].folder.resolve().parts for row in rows]
    others = [other for other in others if other != own]  # several values of a setting are in one folder
    count = next((n for n in range(1, len(own)) if all(own[-n:] != other[-n:] for other in others)), len(own))
    return "/".join(own[-count:])


def _tried(agent: str, rows: Sequence[Sequence[Finished]]) -> int:
    """The number of settings of an agent that are known to have been tried on a task: those of the given runs, or the
    number that a sweep recorded if it is larger. Runs without settings count as one."""
    runs = [run for row in rows for run in row if run.summary["agent"] == agent]
    here = {json.dumps(run.choice, sort_keys=True) for run in runs}
    return max([len(here), *(run.summary.get("settings_tried") or 0 for run in runs)])


def _name(run: Finished) -> str:
    return run.summary["dataset"] or run.summary["env"]


def _titles(groups: Sequence[Sequence[Finished]]) -> list[str]:
    """A title for every group: its dataset and, if several groups have one of that name, what distinguishes them."""
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
    """The facts in which a task differs from others in the environment of the same name."""
    if about["task"] is None:
        return ""
    mine = _flat(about["task"])
    theirs = [_flat(other["task"] or {}) for other in others if other["env"] == about["env"]]
    own = {key: value for key, value in mine.items() if any(other.get(key) != value for other in theirs)}
    return "".join(f", {key} {json.dumps(value)}" for key, value in own.items())


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested mappings, keeping only the innermost names."""
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        flat |= _flat(value) if isinstance(value, Mapping) else {key: value}
    return flat


def find(folders: Sequence[Path]) -> Iterator[Path]:
    """The given folders that are runs and, for a folder that is not a run, the finished runs below it."""
    seen = set()
    for folder in folders:
        below = (
            []
            if any((folder / name).exists() for name in ("summary.json", "config.yaml"))
            else sorted(path.parent for path in folder.rglob("summary.json"))
        )
        for run in below or [folder]:
            if run.resolve() not in seen:
                seen.add(run.resolve())
                yield run


def unfinished(folders: Sequence[Path]) -> list[Path]:
    """The runs below the given folders that ``find`` leaves out: those with a checkpoint but no summary yet."""
    found = {path.parent for folder in folders for path in folder.rglob("last.ckpt")}
    return sorted(run for run in found - set(folders) if not (run / "summary.json").exists())
