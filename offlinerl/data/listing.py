"""What ``offlinerl datasets list`` does, in a module of its own because it loads next to nothing."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from offlinerl.data import registry
from offlinerl.data.registry import Entry
from offlinerl.util.display import PLAIN

console = Console(soft_wrap=True, **PLAIN)


def list_datasets() -> None:
    """Prints every name in the registry, and the Minari datasets installed on this machine."""
    named = {name: registry.entry(name) for name in registry.names()}
    root = registry.minari_root()
    installed = (folder.parent.relative_to(root).as_posix() for folder in sorted(root.glob("**/data")))
    others = {name: Entry(name, {"minari": name}) for name in installed if name not in named}
    rows = [
        (name, entry.kind, "yes" if _is_here(entry) else "", entry.env_id or "", entry.licence)
        for name, entry in (named | others).items()
    ]
    print_table(("name", "source", "here", "environment", "licence"), rows)


def _is_here(entry: Entry) -> bool:
    if entry.kind == "minari":
        return (registry.minari_root() / entry.where / "data").is_dir()
    return entry.path.exists()


def print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A table on a terminal, tab-separated lines elsewhere."""
    if not console.is_terminal:
        for row in rows:
            print(*row, sep="\t")
        return
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_facts(title: str, facts: Sequence[tuple[str, str]]) -> None:
    """Labels with a line each, wrapped on a terminal; tab-separated lines elsewhere."""
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
