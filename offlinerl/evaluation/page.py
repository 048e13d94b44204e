"""A report as one self-contained HTML page, which needs no network and no other files."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from offlinerl.evaluation.comparison import Group
from offlinerl.evaluation.findings import Curve, Findings
from offlinerl.evaluation.tables import Table
from offlinerl.util.atomic import with_null, write_whole
from offlinerl.util.figures import line_of

FILMS = {".gif": "image/gif", ".mp4": "video/mp4", ".webm": "video/webm"}

MOST_FILMS = 60 * 2**20
"""Maximum bytes of videos embedded in a page; further ones are only named."""


@dataclass(frozen=True)
class Section:
    """A section of a report, about one task or about several.

    Attributes:
        stem: the beginning of its files' names.
        found: the results; None without scores.
        group: the task, if the section is about one.
        tables: captions and tables, by the suffix of their files' names; the first table is also printed.
        notes: sentences.
    """

    title: str
    stem: str
    found: Findings | None
    group: Group | None
    tables: Mapping[str, tuple[str, Table]]
    notes: Sequence[str]


def write(path: Path, sections: Sequence[Section], colours: Mapping[str, int], explanation: Sequence[str]) -> None:
    """Write the page.

    Args:
        colours: the index of every agent's colour.
        explanation: paragraphs.
    """
    from jinja2 import Environment

    template = resources.files("offlinerl.evaluation").joinpath("page.html").read_text("utf-8")
    groups = [section.group for section in sections if section.group is not None]
    rows = [row for group in groups for row in group.rows]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(template).render(
        parts=[_part(section, colours) for section in sections],
        films=_films(dict.fromkeys(run.folder for row in rows for run in row.runs)), explanation=explanation,
        agents=len({*colours.values()}), tasks=len(groups), trainings=sum(len(row.seeds) for row in rows),
    )  # fmt: skip
    write_whole(path, text)


def _part(section: Section, colours: Mapping[str, int]) -> dict[str, Any]:
    """The content of a section for the template: verdict, table and charts."""
    found = section.found
    part = dict(title=section.title, notes=section.notes, table=section.tables[""][1] if "" in section.tables else None)
    if found is None:
        return part
    sure, verdict = found.verdict()
    chances = [[None if x == y else found.beats(x, y) for y in found.names] for x in found.names]
    return part | dict(
        sure=sure, verdict=verdict, names=found.names, tried=found.tried, charts=with_null(_charts(section, colours)),
        colour={name: line_of(colours[name])["color"] for name in found.names},
        notes=[note for note in section.notes if note != verdict], chances=chances if len(found.names) > 1 else None,
    )  # fmt: skip


def _charts(section: Section, colours: Mapping[str, int]) -> list[dict[str, Any]]:
    found, group = section.found, section.group
    assert found is not None
    style = {name: _style(colours[name]) for name in found.names}
    reference = None if group is None else group.dataset_score
    charts = []
    for kind in next(iter(found.estimates.values()), ()):
        rows = [
            dict(name=name, **style[name], **found.estimates[name][kind]._asdict(),
                 points=found.strata[name][0].tolist() if group is not None and kind == "mean" else [])
            for name in found.names
        ]  # fmt: skip
        title = f"{kind} over {'seeds' if group is not None else 'seeds and tasks'}, 95% interval"
        charts.append(dict(kind="intervals", title=title, x=found.unit, rows=rows, reference=reference))
    if found.curves:
        of = "mean over seeds" if group is not None else "IQM over seeds and tasks"
        charts.append(_lines(f"Training: {of}", found.clock, found.unit, found.curves, found.names, style, reference))
    if found.profiles:
        share = "share of trainings above"
        charts.append(_lines("Performance profiles", found.unit, share, found.profiles, found.names, style))
    return charts


def _lines(
    title: str, x: str, y: str, curves: Mapping[str, Curve], names: Iterable[str], style: Mapping[str, Any],
    reference: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    series = [
        dict(name=name, **style[name], **{key: of.tolist() for key, of in curves[name]._asdict().items()})
        for name in names
        if name in curves
    ]
    return dict(kind="lines", title=title, x=x, y=y, series=series, reference=reference)


def _style(number: int) -> dict[str, str]:
    line = line_of(number)
    return dict(colour=line["color"], dash=" ".join(f"{2 * length:g}" for length in line["linestyle"][1]))


def _films(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The videos in runs' folders, with their contents in base64."""
    films, room = [], MOST_FILMS
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.suffix in FILMS):
            size = path.stat().st_size
            room -= size
            data = base64.b64encode(path.read_bytes()).decode() if room >= 0 else None
            name = f"{folder.resolve().name}/{path.relative_to(folder)}"
            films.append(dict(name=name, path=str(path), type=FILMS[path.suffix], data=data))
    return films
