"""``offlinerl report``: compare finished runs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from offlinerl.evaluation import comparison, findings, page, tables
from offlinerl.evaluation import comparison_plots as plots
from offlinerl.evaluation.comparison import Finished, Group, Overall, Row
from offlinerl.evaluation.page import Section
from offlinerl.evaluation.statistics import bootstrap
from offlinerl.util.atomic import write_whole
from offlinerl.util.display import between, console, losses_in_words, places, shown, table
from offlinerl.util.errors import reading
from offlinerl.util.folder import numbered
from offlinerl.util.settings import named

PAGE = "report.html"

EXPLANATION = (
    "A training is one seed of an agent, and its score the mean over the episodes of its last policy. The best"
    " evaluation on the way is the luckiest of many: it is shown, and is not the result.",
    "On one task, the mean is over all seeds and episodes, and its 95% bootstrap interval resamples the seeds and the"
    " starts that they share. Agents are ranked by it. IQM is the interquartile mean of the seeds: without the best and"
    " the worst quarter of them.",
    "Over several tasks, agents are ranked by the IQM of all trainings; the median is that of the tasks' means. Their"
    " 95% intervals resample the seeds within each task (stratified bootstrap: Agarwal et al., Deep reinforcement"
    " learning at the edge of the statistical precipice, NeurIPS 2021). From one training there is no interval, and"
    " from two or three it is too narrow.",
    "The probability that one agent scores higher than another is the share of the pairs of their trainings in which it"
    " does, the mean over the tasks. An agent is called the best if the intervals of all its probabilities lie above"
    " 50 % and an equally good one would lead by as much by chance in at most 2.5 % of all cases (permutation test).",
    "Scores are normalised by the references of their task. A task without references is scored by its return, which is"
    " on a scale of its own: such tasks are only compared by who scores higher, and never averaged.",
    "Settings tried: how many settings of the agent are known to have been tried on the task, at least. The more,"
    " the more of a lead may be luck.",
)


def report(runs: Sequence[Path], out: Path | None = None) -> dict[str, list[dict[str, Any]]]:
    """Print a table of the runs for every task and dataset, and the results over all tasks. If ``out`` is given, also
    write a report into that folder: ``report.html``, ``report.md``, ``tables`` and ``pictures``.

    Args:
        runs: folders of finished runs, or folders that contain them.
        out: folder to write the report into.

    Returns:
        The rows of ``tables/*.csv`` by file name: ``scores``, ``overall``, ``improvement``, ``curves``, ``profiles``
        and ``losses``; files without rows are left out.

    Raises:
        UserError: a folder holds no finished run.
    """
    read = [part for folder in comparison.find(runs) for part in comparison.by_value(comparison.read(folder))]
    each = "one of the runs", "report them one by one to see which, and train that again"
    with reading(*each):
        read, repeated = comparison.distinct(read)
        groups = comparison.groups_of(read)
        tasks = [_of_task(group, stem) for group, stem in zip(groups, _stems(groups), strict=True)]
        shared = comparison.overall_of(groups)
        overall = [_of_all(part, "overall" + f"-{n}" * bool(n)) for n, part in enumerate(shared)]
        sections = overall + tasks
        numbers = _numbers(sections)
    to = console()
    for number, section in enumerate(tasks + overall):
        if number:
            to.print()
        caption, content = next(iter(section.tables.values()))
        table(to, caption, *(tables.fitting(content, to.width) if to.is_terminal else content))
        for note in section.notes:
            to.print(note)
    for one, other, seeds in repeated:
        if len(seeds) == len(other.summary["seeds"]):
            to.print(f"{other.folder} repeats {one.folder}, with the same settings, seeds and scores: it counts once.")
        else:
            to.print(
                f"{other.folder} repeats {one.folder} in the seeds {', '.join(map(str, seeds))}, with the same settings"
                " and scores: they count once."
            )
    if left := comparison.unfinished(runs):
        to.print(f"Left out because they are not finished: {', '.join(map(str, left))}.")
    if out is not None:
        names = [name for section in overall if section.found for name in section.found.names]
        rows = [row for group in groups for row in group.rows]
        colours = {name: number for number, name in enumerate(dict.fromkeys(names + [row.across for row in rows]))}
        colours |= {row.name: colours[row.across] for row in rows}
        _clear(out)
        with reading(*each):
            pictures = [_draw(section, colours, out / "pictures") for section in sections]
        _write_markdown(sections, pictures, out)
        _write_tables(sections, numbers, out / "tables")
        page.write(out / PAGE, sections, colours, EXPLANATION)
        to.print(f"written to {out}; start with {out / PAGE}")
    return numbers


def _clear(out: Path) -> None:
    """Delete the pictures and tables of an earlier report, which may be about other runs."""
    if (out / PAGE).is_file():
        for folder, kinds in dict(pictures=plots.FORMATS, tables=("csv", "tex")).items():
            for kind in kinds:
                for file in (out / folder).glob(f"*.{kind}"):
                    file.unlink()


def outcome(run: Path) -> str:
    """The result of a finished run in a few words; one result per combination of values if it has several.

    Raises:
        UserError: the folder holds no finished run.
    """
    found = comparison.read(run)
    names = [f"{named(of['settings'])}: " for of in found.summary.get("values", ())] or [""]
    return "; ".join(name + _outcome(part) for name, part in zip(names, comparison.by_value(found), strict=True))


def _outcome(found: Finished) -> str:
    if found.scores is None:
        return "no score, because there was no environment; " + losses_in_words(
            found.summary["losses"], found.summary["held_out"] or {}
        )
    interval = bootstrap(found.scores)
    decimals = places(*interval)
    return f"{shown(found.scores.mean(), decimals)} ({between(interval, decimals)})"


def _of_task(group: Group, stem: str) -> Section:
    title = f"{group.title}: {group.unit}"
    if group.kind is None:
        note = "These runs had no environment to act in, so there is nothing to rank them by."
        return Section(
            title, stem, None, group, {"": (f"{group.title}: the last losses", tables.losses(group))}, [note]
        )
    found = findings.of_group(group)
    notes = []
    if group.dataset_score is not None:
        decimals = max(places(*row.interval) for row in group.rows)
        notes.append(f"The average episode of the dataset scores {shown(group.dataset_score, decimals)}.")
    written = {"": (title, tables.scores(group, found))}
    if len(found.names) > 1:
        written["-improvement"] = f"{group.title}: {IMPROVEMENT}", tables.improvement(found)
        notes.append(found.verdict()[1])
    return Section(title, stem, found, group, written, notes + _unlike(group.rows, group.clock))


def _unlike(rows: Sequence[Row], clock: str) -> list[str]:
    """What trainings on one task do not have in common, in sentences."""
    notes, lengths = [], sorted({row.length for row in rows})
    if len(lengths) > 1:
        notes.append(
            f"The trainings have unequal lengths, from {lengths[0]:,} to {lengths[-1]:,} {clock}: a lead may be one of"
            " the longer training."
        )
    tuned = [row.name for row in rows if row.is_fine_tuned]
    if 0 < len(tuned) < len(rows):
        notes.append(
            f"Fine-tuned by acting after the dataset (--online-steps): {', '.join(tuned)}; the others learned from the"
            " dataset alone, so a lead may be one of more data."
        )
    return notes


def _of_all(part: Overall, stem: str) -> Section:
    found = findings.of_overall(part)
    title = f"{found.title}: {found.unit}"
    written = {"": (title, tables.aggregates(found))} if found.estimates else {}
    written["-improvement"] = f"{found.title}: {IMPROVEMENT}", tables.improvement(found)
    notes = [f"The tasks: {'; '.join(found.tasks)}.", found.verdict()[1]]
    if part.left_out:
        notes.append(f"Left out because not all agents have all tasks: {'; '.join(part.left_out)}.")
    unlike = [
        task.title for task in part.tasks if _unlike([row for row in task.rows if row.across in part.names], task.clock)
    ]
    if unlike:
        notes.append(f"The trainings are unlike in length or fine-tuning on {', '.join(unlike)}: see there.")
    for name in part.others:
        ahead = [task.title for task in part.tasks if name == task.rows[0].across]
        if ahead:
            notes.append(f"{name}, which is left out, comes first on {', '.join(ahead)}.")
    return Section(title, stem, found, None, written, notes)


IMPROVEMENT = "probability that a training of the row scores higher than one of the column"


def _stems(groups: Sequence[Group]) -> list[str]:
    taken: list[str] = []
    for group in groups:
        name = f"{group.name}-{group.kind or 'no-score'}" + "-steps" * (group.clock == "steps")
        stem = Path(re.sub(r"[^\w.-]+", "-", name))  # LaTeX cannot read files with characters such as % in the name
        taken.append(next(path.name for path in numbered(stem) if path.name not in taken))
    return taken


def _draw(section: Section, colours: Mapping[str, int], folder: Path) -> dict[str, str]:
    """Draw a section's pictures. Returns their descriptions by file name."""
    found, stem = section.found, folder / section.stem
    if found is None:
        return {}
    if section.group is not None:
        plots.task(found, colours, section.group.dataset_score, stem)
        return {stem.name: f"{found.unit} over {found.clock}"}
    drawn = {}
    if found.estimates:
        plots.aggregates(found, colours, stem)
        plots.profiles(found, colours, folder / f"{stem.name}-profiles")
        drawn |= {stem.name: "estimates with 95% intervals", f"{stem.name}-profiles": "performance profiles"}
    if found.curves:
        plots.curves(found, colours, folder / f"{stem.name}-curves")
        drawn[f"{stem.name}-curves"] = f"IQM over {found.clock}"
    plots.improvement(found, folder / f"{stem.name}-improvement")
    return drawn | {f"{stem.name}-improvement": "probability of improvement"}


def _write_markdown(sections: Sequence[Section], pictures: Sequence[Mapping[str, str]], out: Path) -> None:
    text = ["# Runs compared"]
    for section, drawn in zip(sections, pictures, strict=True):
        text += ["", f"## {section.title}"]
        for note in section.notes:
            text += ["", note]
        for caption, content in section.tables.values():
            text += ["", *([] if caption == section.title else [f"{caption}:", ""]), *tables.markdown(content)]
        for name, shows in drawn.items():
            text += ["", f"![{shows}](pictures/{quote(os.fsencode(name))}.png)"]
    text += ["", "## How to read it"]
    for paragraph in EXPLANATION:
        text += ["", paragraph]
    write_whole(out / "report.md", "\n".join(text) + "\n")


def _numbers(sections: Sequence[Section]) -> dict[str, list[dict[str, Any]]]:
    """The rows of the CSV files of all sections, by file name."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for section in sections:
        for name, of_section in tables.numbers(section.group, section.found).items():
            rows.setdefault(name, []).extend(of_section)
    return {name: of_file for name, of_file in rows.items() if of_file}


def _write_tables(
    sections: Sequence[Section], numbers: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path
) -> None:
    """Write CSV files of all sections with full precision, and the tables of each section as LaTeX."""
    for section in sections:
        for suffix, (caption, content) in section.tables.items():
            write_whole(folder / f"{section.stem}{suffix}.tex", tables.latex(content, caption))
    for name, rows in numbers.items():
        tables.write_csv(folder / f"{name}.csv", rows)
