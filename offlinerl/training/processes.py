"""Several processes of this machine that train one policy together (data parallelism).

The first one, which the user started, builds the run, starts the others and is the only one that writes, shows and
evaluates anything. Each of the others builds the same run by the same settings, and joins in the training loop.
"""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import cloudpickle
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from offlinerl import agents
from offlinerl.data.registry import Entry
from offlinerl.util.errors import Mishap, UserError
from offlinerl.util.interrupt import end_with_parent

PATIENCE = timedelta(days=7)
"""For each other: the first one evaluates as long as it takes, and who dies is noticed by a closed connection."""

LEAVING = 5.0
"""Seconds that a process may take to end after it has closed its connection."""

FOLLOW = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from offlinerl.training import follower"
"""What starts another process, which must find the modules that this one does, a user's too."""


class Team:
    """The processes of a training, of which this is one; a training in one process is a team of one.

    Args:
        size: how many.
        rank: which one this is; 0 is the first.
        entry: the dataset and the task, which the others need to build the run.

    Attributes:
        others: those that the first one started.
    """

    def __init__(self, size: int = 1, rank: int = 0, entry: Entry | None = None):
        self.size, self.rank, self.entry = size, rank, entry
        self.others: list[subprocess.Popen[bytes]] = []

    @property
    def first(self) -> bool:
        return self.rank == 0

    # Beginning and end

    def start(self, settings: Mapping[str, Any], device: torch.device, folder: Path) -> None:
        """The first one starts the others, which build the run of these settings, and waits until they have.

        Raises:
            UserError: one of them could not.
        """
        if self.size == 1:
            return
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
        agent = agents.get(settings["fit"]["agent"])
        job = dict(
            settings=settings, entry=self.entry, device=device.type, folder=folder, threads=torch.get_num_threads(),
            port=store.port, own=agent if agent.__module__ == "__main__" else None,
        )  # fmt: skip
        for rank in range(1, self.size):
            # In a session of its own, a terminal's Ctrl-C does not reach it: the first one passes on what it hears.
            other = subprocess.Popen(
                [sys.executable, "-c", f"{FOLLOW}; follower.main({rank})"], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, start_new_session=True, preexec_fn=end_with_parent,
            )  # fmt: skip
            self.others.append(other)
            assert other.stdin is not None
            with self.losing_none():
                other.stdin.write(pickle.dumps(sys.path))
                cloudpickle.dump(job, other.stdin)
                other.stdin.flush()
        for other in self.others:
            assert other.stdout is not None
            if not other.stdout.readline():
                raise self.lost() or UserError("a process of the training does not begin")
        with self.losing_none():
            self.connect(store)

    def connect(self, store: dist.Store) -> None:
        """Meet the others at a store; on a GPU, NCCL carries what is there, and gloo what is not."""
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE)

    def close(self) -> None:
        """Be done with the others; those that still run are ended."""
        for other in self.others:
            other.kill()
            other.communicate()
        self.others.clear()
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def losing_none(self) -> Iterator[None]:
        """Says in one sentence, instead of what a broken connection raises, that another process has ended."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            if lost := self.lost():
                raise lost from error
            raise

    def lost(self) -> Mishap | None:
        """What to raise if one of the others has ended."""
        deadline = time.monotonic() + LEAVING
        for rank, other in enumerate(self.others, 1):
            try:
                status = other.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue
            how = signal.Signals(-status).name if status < 0 else f"status {status}"
            return Mishap(f"process {rank} of the {self.size} that train together has ended, with {how}")
        return None

    # Agreeing

    def agree(self, *numbers: int) -> list[int]:
        """The largest that any process gave, of each number."""
        if self.size == 1:
            return [*map(int, numbers)]
        found = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def mean(self, values: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
        """The means over the processes of numbers by name, the same names in each."""
        if self.size == 1 or not values:
            return {name: [*of] for name, of in values.items()}
        total = torch.tensor([*values.values()], dtype=torch.float64)
        dist.all_reduce(total)
        return dict(zip(values, (total / self.size).tolist(), strict=True))

    def gather(self, value: Any) -> list[Any]:
        """What each process gave, by rank."""
        if self.size == 1:
            return [value]
        found = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    # Lightning's part

    def trainer_settings(self) -> dict[str, Any]:
        """What a Trainer must be told."""
        if self.size == 1:
            return dict(devices=1)
        strategy = Together(cluster_environment=Started(self.rank))
        return dict(devices=self.size, strategy=strategy, use_distributed_sampler=False)


class Started(LightningEnvironment):
    """Processes of one machine that are there already, each on a device of its own.

    Args:
        rank: of this one.
    """

    creates_processes_externally = True

    def __init__(self, rank: int):
        super().__init__()
        self.rank = rank

    def local_rank(self) -> int:
        return self.rank

    def node_rank(self) -> int:
        return 0


class Together(DDPStrategy):
    """Lightning's DDP for agents, which call no ``backward`` that its wrapper could watch: they take the mean of their
    gradients themselves, within the graph of their update; see ``Agent.share_batches``. They begin with the same
    weights, for the seeds decide them."""

    def _configure_launcher(self) -> None:
        self._launcher = None  # nothing is left to launch

    def configure_ddp(self) -> None:
        pass
