"""The output of a run: a progress bar and tables on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from offlinerl.util.errors import command
from offlinerl.util.settings import named

UNITS = {
    "normalized": "normalised score",
    "minari": "score by Minari's references",
    "ours": "score by our own references",
    "given": "score by given references",
    "success": "success in %",
    "return": "return",
}

FAST = ", fast scene"
"""Suffix of the kind of a score that was reached on images without shadows."""

RECONSTRUCTIONS = "reconstructions.png"
"""The file in a run's folder with a picture of an autoencoder's reconstructions."""


def unit_of(kind: str) -> str:
    """A kind of score in words."""
    return UNITS[kind.removesuffix(FAST)] + (FAST if kind.endswith(FAST) else "")


def console() -> Console:
    """A console on standard output; if that is not a terminal, lines are neither coloured nor wrapped."""
    return Console(file=sys.stdout, soft_wrap=not sys.stdout.isatty(), **PLAIN)


PLAIN = dict(highlight=False, markup=False, emoji=False)
"""Options that make rich print file names unchanged, with their brackets and colons."""

MOST_PLACES = 9
"""Maximum number of decimal places shown."""


def places(low: float | None, high: float | None = None) -> int:
    """Number of decimal places for scores, at least one: enough for two digits of the width of an interval, or of a
    single number."""
    width = abs(high - low) if None not in (low, high) else 0
    size = width or abs(low or 0)
    if not size or not math.isfinite(size):
        return 1
    return min(max(1, 1 - math.floor(math.log10(size))), MOST_PLACES)


def shown(value: float | None, decimals: int | None = None) -> str:
    """A number with ``decimals`` decimal places, by default by ``places``; "nan" for None."""
    if value is None:
        return "nan"
    return f"{value:.{places(value) if decimals is None else decimals}f}"


def listed(scores: Iterable[float | None], decimals: int) -> str:
    return " ".join(shown(score, decimals) for score in scores)


def between(interval: Sequence[float | None], decimals: int) -> str:
    return " to ".join(shown(bound, decimals) for bound in interval)


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
    first, *widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    to.print(title)
    for name, *cells in (columns, *rows):
        right = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        to.print("  ".join([name.ljust(first), *right]).rstrip())


def losses_in_words(training: Mapping[str, Sequence[float]], held_out: Mapping[str, Sequence[float]]) -> str:
    """The mean of every loss over the seeds, in words."""
    return ", ".join(
        f"{name.replace('_', ' ')} {fmean(training[name]):.4g}"
        + (f" (held out {fmean(held_out[name]):.4g})" if name in held_out else "")
        for name in training
    )


class Display:
    """Messages, a progress bar and tables on standard output."""

    def __init__(self) -> None:
        self.console = console()
        self.said: set[str] = set()

    def warn_of_endless(self, env: str) -> None:
        self.say(
            f"{env} has no time limit, so an episode may never end: truncate episodes with --max-episode-steps N, or"
            " with gymnasium.wrappers.TimeLimit in Python"
        )

    def say(self, message: str) -> None:
        self.console.print(message)

    def say_once(self, message: str) -> None:
        if message not in self.said:
            self.said.add(message)
            self.say(message)

    @contextmanager
    def bar(self, what: str, total: int | None, done: int = 0, unit: str = "updates") -> Iterator[None]:
        """Show a progress bar until the ``with`` ends, if there is a terminal or a notebook. A total of None is not
        known yet."""
        columns = (
            TextColumn(what), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        notebook = self.console.is_jupyter and find_spec("ipywidgets") is not None
        self.progress = Progress(*columns, console=self.console, disable=not (self.console.is_terminal or notebook))
        with self.progress:
            self.progress.add_task(what, total=total, completed=done, rate="", note="", unit=unit)
            yield

    def advance(self, done: int, note: str = "", total: int | None = None) -> None:
        """Update the progress bar: how much is done, a note, and the total if it has become known."""
        if self.progress.disable:
            return  # without a terminal this would take a noticeable part of a small step's time
        task = self.progress.tasks[0]
        speed = f"{task.speed:,.0f} {task.fields['unit']}/s" if task.speed else ""
        self.progress.update(task.id, completed=done, rate=speed, note=note, total=total)

    def add(self, count: int = 1) -> None:
        """Advance the progress bar by ``count``."""
        if not self.progress.disable:
            self.advance(int(self.progress.tasks[0].completed) + count)

    def evaluated(
        self, when: str, kind: str, mean: float, per_seed: Sequence[float], interval: tuple[float, float]
    ) -> None:
        """Print a line for an evaluation during training."""
        decimals = places(*interval)
        seeds = "" if len(per_seed) == 1 else "  seeds " + listed(per_seed, decimals)
        self.say(f"{when}  {unit_of(kind)} {shown(mean, decimals)}{seeds}")

    def losses(
        self, when: str, training: Mapping[str, Sequence[float]], held_out: Mapping[str, Sequence[float]]
    ) -> None:
        """Print a line with the losses, averaged over seeds, for a run without an environment."""
        self.say(f"{when}  {losses_in_words(training, held_out)}")

    def summary(self, summary: dict[str, Any], folder: Path) -> None:
        """Print the final table of a run."""
        if summary["last"] is None:
            self._summary_of_losses(summary, folder)
            return
        last, best, clock = summary["last"], summary["best"], summary["clock"]
        unit = unit_of(summary["score_kind"])
        decimals = places(*last["ci95"])

        def row(name: str, result: dict[str, Any]) -> tuple[str, ...]:
            one = result.get("episodes") == 1 == len(result["per_seed"])  # one episode gives no interval
            interval = between(result["ci95"], decimals) if "ci95" in result and not one else ""
            per_seed = listed(result["per_seed"], decimals)
            return name, shown(result["mean"], decimals), interval, per_seed, str(result.get("episodes", ""))

        rows = [row("last, the result", last)]
        if values := summary.get("values"):  # a mean over different settings would be meaningless
            rows = [row(f"last, {named(of['settings'])}", of["last"]) for of in values]
        rows.append(row(f"best, at {best[clock[:-1]]:,}", best))
        if offline := summary.get("offline"):
            rows.append(row("before fine-tuning", offline))
        if summary["dataset_score"] is not None:
            rows.append(("the data's average episode", shown(summary["dataset_score"], decimals), "", "", ""))
        title = f"{summary['agent']} on {summary['dataset'] or summary['env']}: {unit}"
        table(self.console, title, ("policy", "mean", "95% interval", "per seed", "episodes"), rows)
        self._say_of_files(summary, folder)
        if not summary["updates"] and summary["steps"]:
            self.say("nothing was learned, because all steps were random ones of --train.warm_up: give more steps")

    def _summary_of_losses(self, summary: dict[str, Any], folder: Path) -> None:
        """Print the final table of a run without an environment."""
        held_out = summary["held_out"] or {}

        def cells(values: Sequence[float] | None) -> tuple[str, str]:
            return (f"{fmean(values):.4g}", " ".join(f"{value:.4g}" for value in values)) if values else ("", "")

        rows = [
            (name.replace("_", " "), *cells(values), *cells(held_out.get(name)))
            for name, values in summary["losses"].items()
        ]
        columns = ("loss", "training", "per seed", "held out", "per seed")
        table(self.console, f"{summary['agent']} on {summary['dataset']}: the last losses", columns, rows)
        if best := summary["best_held_out"]:
            clock = summary["clock"]
            self.say(
                f"the lowest held-out {best['loss'].replace('_', ' ')}, {best['mean']:.4g}, was that after"
                f" {best[clock[:-1]]:,} {clock}: {folder / 'best.ckpt'}"
            )
        if (picture := folder / RECONSTRUCTIONS).is_file():
            self._say_of_files(summary, folder, "the encoder")
            self.say(
                f"frames and their reconstructions in {picture}; agents use this encoder with --agent.encoder {folder}"
            )
            return
        self._say_of_files(summary, folder)
        self.say(f"a score needs an environment: {command('evaluate', folder, '--env', 'ID')}")

    def _say_of_files(self, summary: dict[str, Any], folder: Path, what: str = "the policy") -> None:
        clock = summary["clock"]
        self.say(
            f"{summary[clock]:,} {clock} at {summary[f'{clock}_per_second']:,.0f}/s,"
            f" {summary['seconds'] / 60:.1f} minutes in all; curves in {folder / 'curves.png'}, {what} in"
            f" {folder / 'last.ckpt'}"
        )

    def evaluation(self, results: dict[str, Any]) -> None:
        """Print the table of ``offlinerl evaluate``."""
        decimals = places(*results["ci95"])
        of = map(named, results["members"]) if "members" in results else map(str, results["seeds"])
        rows = [
            (name, shown(score, decimals), "", str(results["episodes"]))
            for name, score in zip(of, results["per_seed"], strict=True)
        ]
        count = str(results["episodes"] * len(results["seeds"]))
        interval = between(results["ci95"], decimals) if count != "1" else ""  # one episode gives no interval
        rows.append(("all", shown(results["mean"], decimals), interval, count))
        title = f"{results['env']}: {unit_of(results['score_kind'])}"
        table(self.console, title, ("seed", "mean", "95% interval", "episodes"), rows)
        success, mean_return = results["success"], shown(results["mean_return"], max(2, decimals))
        if math.isnan(results["mean_return"]):
            return
        self.say(
            f"mean return {mean_return}, mean length {results['mean_length']:.0f} steps"
            + (f", success in {success:.0%} of episodes" if success is not None else "")
        )
