"""Data-parallel training of one policy by several processes of this machine.

Rank 0 is the process that the user started. It builds the run, starts the other ranks, and is the only one that
writes, prints and evaluates. The other ranks build the same run from the same settings and join the training loop.
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
"""Timeout of collective operations: an evaluation on rank 0 may take long, and a dead process is detected by its closed
connection."""

LEAVING = 5.0
"""Seconds that a process may take to end after it has closed its connection."""

FOLLOW = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from offlinerl.training import follower"
"""Code that starts another rank. It gets the ``sys.path`` of this process, to find the same modules."""


class Team:
    """The processes of a run, of which this is one; without data parallelism, the only one.

    Args:
        size: world size, the number of processes.
        rank: of this process.
        entry: the dataset and the task, from which the other ranks build the run.

    Attributes:
        others: on rank 0, the processes that it started.
    """

    def __init__(self, size: int = 1, rank: int = 0, entry: Entry | None = None):
        self.size, self.rank, self.entry = size, rank, entry
        self.others: list[subprocess.Popen[bytes]] = []

    @property
    def first(self) -> bool:
        return self.rank == 0

    # Start and end

    def start(self, settings: Mapping[str, Any], device: torch.device, folder: Path) -> None:
        """On rank 0, start the other ranks and wait until they have built the run with these settings.

        Raises:
            UserError: one of them failed.
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
            # In a session of its own it does not get the terminal's Ctrl-C: rank 0 tells the other ranks to stop.
            other = subprocess.Popen(
                [sys.executable, "-c", f"{FOLLOW}; follower.main({rank})"], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, start_new_session=True, preexec_fn=end_with_parent,
            )  # fmt: skip
            self.others.append(other)
            assert other.stdin is not None
            with self.reporting_lost():
                other.stdin.write(pickle.dumps(sys.path))
                cloudpickle.dump(job, other.stdin)
                other.stdin.flush()
        for other in self.others:
            assert other.stdout is not None
            if not other.stdout.readline():
                raise self.lost() or UserError("a training process did not start")
        with self.reporting_lost():
            self.connect(store)

    def connect(self, store: dist.Store) -> None:
        """Initialise the process group through a store, with NCCL for tensors on GPUs and gloo for those on CPUs."""
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE)

    def close(self) -> None:
        """Kill the other ranks if they still run, and destroy the process group."""
        for other in self.others:
            other.kill()
            other.communicate()
        self.others.clear()
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def reporting_lost(self) -> Iterator[None]:
        """Replace the error of a broken connection by one that says which process has ended."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            if lost := self.lost():
                raise lost from error
            raise

    def lost(self) -> Mishap | None:
        """The exception to raise if one of the other ranks has ended, else None."""
        deadline = time.monotonic() + LEAVING
        for rank, other in enumerate(self.others, 1):
            try:
                status = other.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue
            how = signal.Signals(-status).name if status < 0 else f"status {status}"
            return Mishap(f"process {rank} of the {self.size} that train together ended with {how}")
        return None

    # Collective operations

    def agree(self, *numbers: int) -> list[int]:
        """The maximum of each number over all processes."""
        if self.size == 1:
            return [*map(int, numbers)]
        found = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def mean(self, values: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
        """The mean of each number over all processes; all give the same names."""
        if self.size == 1 or not values:
            return {name: [*of] for name, of in values.items()}
        total = torch.tensor([*values.values()], dtype=torch.float64)
        dist.all_reduce(total)
        return dict(zip(values, (total / self.size).tolist(), strict=True))

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        found = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    # Lightning

    def trainer_settings(self) -> dict[str, Any]:
        """Arguments for a Lightning ``Trainer``."""
        if self.size == 1:
            return dict(devices=1)
        strategy = AgentDDP(cluster_environment=ExternalProcesses(self.rank))
        return dict(devices=self.size, strategy=strategy, use_distributed_sampler=False)


class ExternalProcesses(LightningEnvironment):
    """Tells Lightning that the processes exist already, all on one machine and each with its own device.

    Args:
        rank: of this process.
    """

    creates_processes_externally = True

    def __init__(self, rank: int):
        super().__init__()
        self.rank = rank

    def local_rank(self) -> int:
        return self.rank

    def node_rank(self) -> int:
        return 0


class AgentDDP(DDPStrategy):
    """Lightning's DDP without its model wrapper. Agents do not call ``backward``, on which the wrapper relies; they
    average their gradients themselves, in the graph of the update; see ``Agent.share_batches``. All ranks begin with
    the same weights, since these depend only on the seeds."""

    def _configure_launcher(self) -> None:
        self._launcher = None  # the processes already run

    def configure_ddp(self) -> None:
        pass
