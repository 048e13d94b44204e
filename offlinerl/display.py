"""What a run shows while it goes on: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from offlinerl.evaluation import Evaluation

UNITS = {"normalized": "normalised score", "minari": "score by Minari's references", "return": "return"}


def console(error: bool = False) -> Console:
    """Standard output or error; where that is no terminal, lines are neither coloured nor wrapped."""
    file = sys.stderr if error else sys.stdout
    return Console(file=file, highlight=False, soft_wrap=not file.isatty())


def listed(scores: Iterable[float]) -> str:
    return " ".join(f"{score:.1f}" for score in scores)


def table(to: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A titled table whose first column is text: framed on a terminal, aligned lines elsewhere."""
    if to.is_terminal:
        framed = Table(title=title, title_justify="left")
        for i, column in enumerate(columns):
            framed.add_column(column, justify="right" if i else "left")
        for row in rows:
            framed.add_row(*row)
        to.print(framed)
        return
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    to.print(title, markup=False)
    for row in (columns, *rows):
        first, *others = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        to.print("  ".join([first.strip().ljust(widths[0]), *others]).rstrip(), markup=False)


class Display:
    """Messages, a bar and tables on standard output."""

    def __init__(self) -> None:
        self.console = console()
        self.progress: Progress | None = None

    def say(self, message: str) -> None:
        self.console.print(message, markup=False)

    @contextmanager
    def bar(self, what: str, total: int, done: int = 0, unit: str = "updates") -> Iterator[None]:
        """Show a bar until the ``with`` ends, if there is a terminal to show it on."""
        columns = (
            TextColumn(what), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.unit = unit
        with self.progress:
            self.bar_id = self.progress.add_task(what, total=total, completed=done, rate="", note="")
            yield
        self.progress = None

    def advance(self, done: int, note: str = "") -> None:
        """Show how much is done and, beside it, a note."""
        if self.progress.disable:
            return  # without a terminal this would be a good part of a small step's time
        task = self.progress.tasks[0]
        speed = f"{task.speed:,.0f} {self.unit}/s" if task.speed else ""
        self.progress.update(self.bar_id, completed=done, rate=speed, note=note)

    def evaluated(self, clock: str, time: int, result: Evaluation, score_kind: str) -> None:
        seeds = "" if len(result.per_seed) == 1 else "  seeds " + listed(result.per_seed)
        self.say(f"{clock} {time:>9,}  {UNITS[score_kind]} {result.mean:.1f}{seeds}")

    def summary(self, summary: dict[str, Any], folder: Path) -> None:
        """The final table of a run."""
        last, best, clock = summary["last"], summary["best"], summary["clock"]
        unit = UNITS[summary["score_kind"]]
        rows = [
            (
                "last, the result", f"{last['mean']:.1f}", f"{last['ci95'][0]:.1f} to {last['ci95'][1]:.1f}",
                listed(last["per_seed"]), str(last["episodes"]),
            ),
            (f"best, at {best[clock[:-1]]:,}", f"{best['mean']:.1f}", "", listed(best["per_seed"]), ""),
        ]  # fmt: skip
        if offline := summary.get("offline"):
            interval = f"{offline['ci95'][0]:.1f} to {offline['ci95'][1]:.1f}"
            count = str(offline["episodes"])
            rows.append(("before fine-tuning", f"{offline['mean']:.1f}", interval, listed(offline["per_seed"]), count))
        if summary["dataset_score"] is not None:
            rows.append(("the data's average episode", f"{summary['dataset_score']:.1f}", "", "", ""))
        title = f"{summary['agent']} on {summary['dataset'] or summary['env']}: {unit}"
        table(self.console, title, ("policy", "mean", "95% interval", "per seed", "episodes"), rows)
        self.say(
            f"{summary[clock]:,} {clock} at {summary[f'{clock}_per_second']:,.0f}/s,"
            f" {summary['seconds'] / 60:.1f} minutes in all; curves in {folder / 'curves.png'}, the policy in"
            f" {folder / 'last.ckpt'}"
        )

    def evaluation(self, results: dict[str, Any]) -> None:
        """The table of ``offlinerl evaluate``."""
        rows = [
            (str(seed), f"{score:.1f}", "", str(results["episodes"]))
            for seed, score in zip(results["seeds"], results["per_seed"], strict=True)
        ]
        interval = f"{results['ci95'][0]:.1f} to {results['ci95'][1]:.1f}"
        rows.append(("all", f"{results['mean']:.1f}", interval, str(results["episodes"] * len(results["seeds"]))))
        title = f"{results['env']}: {UNITS[results['score_kind']]}"
        table(self.console, title, ("seed", "mean", "95% interval", "episodes"), rows)
        success = results["success"]
        self.say(
            f"mean return {results['mean_return']:.2f}, mean length {results['mean_length']:.0f} steps"
            + (f", success in {success:.0%} of episodes" if success is not None else "")
        )
