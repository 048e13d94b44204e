"""Generates datasets from their recipes, in blocks of episodes, on as many cores as there are.

A dataset is determined by its recipe and its size alone. Every block has its own journal, so that a killed process
leaves all finished episodes. The blocks are read in order, whichever process made them and when.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch

from offlinerl.data.episode import Episode
from offlinerl.data.journal import Journal
from offlinerl.recipes import kitchen, rollouts
from offlinerl.recipes.recipe import Recipe, policy_file, read
from offlinerl.util.atomic import to_json, write_whole
from offlinerl.util.errors import UserError, reading
from offlinerl.util.threads import one_thread

PLAN = "plan.json"
"""The file in an unfinished dataset's folder that states what it is to become."""

LANES = 32
"""Environments side by side, whose actions are computed in one batch."""

STEPS = 1000
"""Steps of every environment in a block, after which it begins no further episode."""

DEMONSTRATIONS = 10
"""Demonstrations per block."""

HELDOUT, SHARE = 1 << 20, 10
"""Number of the first environment or demonstration of the held-out episodes, and the factor by which these are
fewer."""


@dataclass(frozen=True)
class Block:
    """Episodes made by one process, one after another or side by side."""

    recipe: Recipe
    numbers: range  # of environments, or of demonstrations
    steps: int  # of every environment, after which it begins no further episode

    def play(self, journal: Journal, going: Callable[[], bool]) -> None:
        """Adds the episodes that a journal lacks, as long as ``going()``."""
        if self.recipe["kind"] != "demonstrator":
            rollouts.play(self.recipe, self.numbers, self.steps, journal, going)
            return
        for number in self.numbers[len(journal) :]:
            if not going():
                return
            journal.append(kitchen.episode(self.recipe, number))

    def order(self, journal: Journal) -> list[int]:
        """Its episodes in order, as indices into its journal."""
        if self.recipe["kind"] == "demonstrator":
            return list(range(len(journal)))
        return rollouts.order(self.recipe, self.numbers, journal)


@dataclass(frozen=True)
class Part:
    """Whole episodes of one recipe, until a total is reached.

    Attributes:
        recipe: of kind "demonstrator", "random", "policy", "navigator", "oracle" or "controller".
        total: number of a demonstrator's episodes, or of transitions.
        unit: "episodes" or "transitions".
        heldout: whether they are held out for validation.
    """

    recipe: Recipe
    total: int
    unit: str
    heldout: bool = False

    def block(self, number: int) -> Block | None:
        """The block with this number; None if those before it are enough."""
        first = HELDOUT if self.heldout else 0
        if self.recipe["kind"] == "demonstrator":
            begin, end = DEMONSTRATIONS * number, DEMONSTRATIONS * (number + 1)
            if self.unit == "episodes":
                end = min(end, self.total)
            return Block(self.recipe, range(first + begin, first + end), 0) if begin < end else None
        lanes = min(self.recipe.get("lanes", LANES), -(-self.total // STEPS))
        if number * lanes * STEPS >= self.total:
            return None
        begin = first + number * lanes
        return Block(self.recipe, range(begin, begin + lanes), min(STEPS, -(-self.total // lanes)))


def parts_of(name: str, size: int | None, episodes: int | None, heldout: bool) -> list[Part]:
    """The parts of a dataset.

    Args:
        name: of its recipe.
        size: in transitions; None: as many as the recipe says.
        episodes: instead of a size, the number of a demonstrator's episodes.
        heldout: whether to make the held-out part, which is a tenth as large.

    Raises:
        UserError: there is no such recipe, a policy that it needs is missing, or the size is in the wrong unit.
    """
    recipe = read(name)
    demonstrated = recipe["kind"] == "demonstrator"
    if episodes is not None and not demonstrated:
        raise UserError(f"{name} is measured in transitions: give --size instead of --episodes")
    if recipe["kind"] == "concatenation":
        total = size or recipe.get("size")
        share = total and -(-total // len(recipe["parts"]))
        return [part for inner in recipe["parts"] for part in parts_of(inner, share, None, heldout)]
    policy_file(recipe)
    unit = "episodes" if demonstrated and size is None else "transitions"
    total = size or episodes or recipe["episodes" if demonstrated else "size"]
    return [Part(recipe, -(-total // SHARE) if heldout else total, unit, heldout)]


class Generation:
    """An unfinished dataset: a folder with a journal for every block. It continues with what is there.

    Args:
        folder: to work in.
        parts: of the dataset, in order.
        about: what else determines its content, as plain data, such as versions.

    Attributes:
        made: how much of the total existed when ``run`` returned.

    Raises:
        UserError: the folder holds another dataset.
    """

    def __init__(self, folder: Path, parts: list[Part], about: Mapping[str, Any]) -> None:
        self.folder, self.parts, self.made = Path(folder), parts, 0
        plan = json.loads(json.dumps(dict(parts=[vars(part) for part in parts], **about), default=to_json))
        stated = self.folder / PLAN
        if stated.is_file():
            with reading(f"{stated}", f"delete {self.folder} to start again"):
                before = json.loads(stated.read_text("utf-8"))
                differ = [key for key in plan if before.get(key) != plan[key]]
            if differ:
                raise UserError(
                    f"{self.folder} was started with other {' and '.join(differ)}; delete it to start again, or use the"
                    " command and the versions that it was started with"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(stated, json.dumps(plan, indent=1))

    @property
    def unit(self) -> str:
        """What is counted: "transitions" or "episodes"."""
        return self.parts[0].unit

    @property
    def total(self) -> int:
        """Their total number."""
        return sum(part.total for part in self.parts)

    def run(self, workers: int, going: Callable[[], bool], progress: Callable[[int], None]) -> bool:
        """Makes everything that is missing.

        Args:
            workers: number of processes; with one, this process does the work.
            going: polled; False stops as soon as possible.
            progress: called now and then with how much of the total exists.

        Returns:
            Whether everything exists.

        Raises:
            UserError: an environment or a policy fails, another process makes the dataset, or the disk is full.
        """
        workers = len(list(itertools.islice(self._blocks({}), workers)))
        here = nullcontext(_Here(self.unit, going, progress))
        with here if workers == 1 else _Processes(self.unit, workers) as team:
            done: dict[int, int] = {}
            waiting, under_way = self._blocks(done), dict[Future[int], int]()
            while going():
                for p, number, block in itertools.islice(waiting, workers - len(under_way)):
                    under_way[team.submit(block, self._path(p, number))] = p
                if not under_way:
                    return True
                for future in wait(under_way, 0.2, FIRST_COMPLETED).done:
                    p = under_way.pop(future)
                    done[p] = done.get(p, 0) + future.result()
                progress(team.made)
            self.made = team.made
        return False

    def _blocks(self, done: Mapping[int, int]) -> Iterator[tuple[int, int, Block]]:
        """The blocks to make, until what is ``done`` of each part is enough."""
        for p, part in enumerate(self.parts):
            for number in itertools.count():
                if done.get(p, 0) >= part.total or (block := part.block(number)) is None:
                    break
                yield p, number, block

    def __iter__(self) -> Iterator[Episode]:
        """The episodes in order, once all exist."""
        done = dict.fromkeys(range(len(self.parts)), 0)
        for p, number, block in self._blocks(done):
            with Journal(self._path(p, number), write=False) as journal:
                for place in block.order(journal):
                    if done[p] >= self.parts[p].total:
                        break
                    episode = journal[place]
                    done[p] += 1 if self.unit == "episodes" else len(episode.rewards)
                    yield episode

    def _path(self, p: int, number: int) -> Path:
        return self.folder / f"{p}-{number:05d}.journal"

    def clear(self) -> None:
        """Deletes the folder with its journals."""
        shutil.rmtree(self.folder)


def _make(block: Block, path: Path, unit: str, going: Callable[[], bool], add: Callable[[int], None]) -> int:
    """Fills the journal of a block, and returns how much it then holds. ``add`` is called with each increase."""
    with Journal(path) as journal:
        known = 0

        def goes_on() -> bool:
            nonlocal known
            count = len(journal) if unit == "episodes" else journal.steps
            if count > known:
                add(count - known)
            known = count
            return going()

        block.play(journal, goes_on)
        goes_on()
        return known


class _Here:
    """Makes blocks in this process, on one thread like the worker processes."""

    def __init__(self, unit: str, going: Callable[[], bool], progress: Callable[[int], None]) -> None:
        self.unit, self.going, self.progress, self.made = unit, going, progress, 0

    def submit(self, block: Block, path: Path) -> Future[int]:
        future: Future[int] = Future()
        with one_thread():
            future.set_result(_make(block, path, self.unit, self.going, self._add))
        return future

    def _add(self, count: int) -> None:
        self.made += count
        self.progress(self.made)


class _Processes:
    """Makes blocks in worker processes, which end with this one, however it ends."""

    def __init__(self, unit: str, workers: int) -> None:
        context = get_context("spawn")
        self.unit, self.stop, self.count = unit, context.Event(), context.Value("q", 0)
        self.pool = ProcessPoolExecutor(workers, context, _begin, (self.stop, self.count))

    @property
    def made(self) -> int:
        return self.count.value

    def submit(self, block: Block, path: Path) -> Future[int]:
        # A terminal signals all processes. Workers start with these signals blocked; this process stops them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            return self.pool.submit(_in_worker, block, path, self.unit)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: Any) -> None:
        self.stop.set()
        self.pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "a worker was killed, perhaps because the memory was full: resume with --resume and fewer --workers"
            ) from error


_SHARED: list[Any] = []
"""In a worker: the event that stops it, and the counter of what has been made."""


def _begin(stop: Any, count: Any) -> None:
    """Initialises a worker."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _SHARED[:] = stop, count


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)


def _in_worker(block: Block, path: Path, unit: str) -> int:
    stop, count = _SHARED

    def add(more: int) -> None:
        with count.get_lock():
            count.value += more

    return _make(block, path, unit, lambda: not stop.is_set(), add)
