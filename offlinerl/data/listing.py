"""``offlinerl datasets list``, in a module of its own because it imports very little."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from offlinerl.data import registry
from offlinerl.data.registry import Entry
from offlinerl.util.display import PLAIN
from offlinerl.util.errors import UserError

console = Console(soft_wrap=True, **PLAIN)


COLUMNS = ("name", "source", "here", "environment", "licence")

SECTIONS = {
    "builtin": ("Built in", "the installation lacks them: install the package again"),
    "recipe": ("Made by recipes", "offlinerl datasets generate NAME"),
    "d4rl": ("D4RL", "downloaded when first used, or --dataset FILE --env NAME"),
    "minari": ("Minari", "minari download NAME"),
}
"""Titles for the sources of datasets, and how to get the datasets that are not on this machine."""


def list_datasets() -> None:
    """Prints every name in the registry and the Minari datasets installed on this machine: on a terminal in groups, by
    what is here and how to get the rest; otherwise one tab-separated line each, below a header."""
    named = {name: registry.entry(name) for name in registry.names()}
    root = registry.minari_root()
    others = {name: _installed(root, name) for name in registry.installed_ids() if name not in named}
    entries = named | others
    here = {name for name, entry in entries.items() if _is_here(entry)}
    if not console.is_terminal:
        print(*COLUMNS, sep="\t")
        for name, entry in entries.items():
            print(name, entry.kind, "yes" if name in here else "", entry.env_id or "", entry.licence, sep="\t")
        return
    rows = [(name, SECTIONS[entries[name].kind][0], entries[name].env_id or "") for name in entries if name in here]
    _section("On this machine", ("name", "source", "environment"), rows)
    for kind, (title, how) in SECTIONS.items():
        groups: dict[tuple[str, str], list[str]] = {}
        for name, entry in entries.items():
            if entry.kind == kind and name not in here:
                groups.setdefault(_family(name), []).append(name)
        rows = [
            (in_braces(names), in_braces(list(dict.fromkeys(entries[name].env_id or "" for name in names))))
            for names in groups.values()
        ]
        _section(f"{title}, not here: {how}", ("names", "environment"), rows)
    console.print("a-{b, c} stands for a-b and a-c. A file of your own is a dataset too.")
    console.print("What is in one, its licence and a picture: offlinerl datasets show NAME")


def _section(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a titled table with wrapped cells; nothing if there are no rows."""
    if not rows:
        return
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table, "", soft_wrap=False)


def _family(name: str) -> tuple[str, str]:
    """What the datasets of a family share: the beginning of their names, and their version."""
    begin = name.rpartition("/")[0] or name.partition("-")[0]
    version = re.search(r"-v\d+$", name)
    return begin, version[0] if version else ""


def in_braces(names: Sequence[str]) -> str:
    """Several names as one, in a shell's brace notation: ``pen-{human, cloned}-v1``, with spaces so that it can be
    wrapped."""
    if len(names) == 1:
        return names[0]
    begin = re.match(r"(.*[-_/])?", os.path.commonprefix(names))[0]
    end = re.search(r"([-_].*)?$", os.path.commonprefix([name[len(begin) :][::-1] for name in names])[::-1])[0]
    return f"{begin}{{{', '.join(name[len(begin) : len(name) - len(end)] for name in names)}}}{end}"


def _installed(root: Path, name: str) -> Entry:
    """The entry of an installed Minari dataset; only its name if its metadata are damaged."""
    source = {"minari": name}
    try:
        return replace(registry.of_minari(root / name, source), name=name)
    except UserError:
        return Entry(name, source)


def _is_here(entry: Entry) -> bool:
    if entry.kind == "minari":
        return (registry.minari_root() / entry.where / "data").is_dir()
    return entry.path.exists()


def print_facts(title: str, facts: Sequence[tuple[str, str]]) -> None:
    """Prints labels with a line of text each: wrapped on a terminal, tab-separated elsewhere."""
    if not console.is_terminal:
        for fact in facts:
            print(*fact, sep="\t")
        return
    table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for fact in facts:
        table.add_row(*fact)
    Console(**PLAIN).print(table)
