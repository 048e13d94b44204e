"""Workers as processes of Ray, here or on a cluster."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from typing import Any

import numpy as np

from offlinerl.rollout.actor_pool import Delivery, Lost, Worker
from offlinerl.util.errors import UserError


class RayBackend:
    """Workers that are Ray actors, each a process on a core of its own.

    Args:
        workers: how many there will be.
        address: of a cluster, as ``ray.init`` takes it; by default this machine alone.

    Raises:
        UserError: Ray is not installed; later, that no cluster answers, that it has too few cores, or that a worker
            cannot be made there.
    """

    def __init__(self, workers: int, address: str | None = None):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed")  # the pool says so
        try:
            import ray
        except ImportError as error:
            raise UserError("workers need Ray: install it with pip install 'offlinerl[ray]'") from error
        self.ray, self.workers, self.address, self.started_ray = ray, workers, address, False
        if address not in (None, "auto"):
            self._check_address(address)

    def _check_address(self, address: str) -> None:
        """Ray itself would try for minutes."""
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not (host and port.isdigit()):
            raise UserError(f"the address of a Ray cluster must be auto or HOST:PORT, not {address}")
        try:
            socket.create_connection((host, int(port)), 10).close()
        except (OSError, OverflowError) as error:
            raise self._no_cluster(error) from error

    def _no_cluster(self, error: Exception) -> UserError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return UserError(
            f"no Ray cluster answers at {self.address} ({reason}); start one with `ray start --head`, or give its token"
            " to Ray if it asks for one"
        )

    def start(self, *args: Any) -> Any:
        self._start_ray()
        return self.ray.remote(num_cpus=1)(Worker).remote(*args)

    def _start_ray(self) -> None:
        if self.ray.is_initialized():
            return
        here = dict(address="local", num_cpus=self.workers, include_dashboard=False)
        where = dict(address=self.address) if self.address else here
        try:
            self.ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            if not self.address:
                raise
            raise self._no_cluster(error) from error
        self.started_ray = True
        cores = int(self.ray.cluster_resources().get("CPU", 0))
        if cores < self.workers:
            raise UserError(f"{self.workers} workers want as many cores, and Ray has {cores} at {self.address}")

    def share(self, weights: Mapping[str, np.ndarray]) -> Any:
        self._start_ray()  # which ``put`` would do too, in its own way
        return self.ray.put(weights)

    def submit(self, worker: Any, method: str, *arguments: Any) -> Any:
        return getattr(worker, method).remote(*arguments)

    def receive(self, answer: Any) -> Delivery:
        try:
            return self.ray.get(answer)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None
        except self.ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            if getattr(error, "actor_init_failed", False):
                raise UserError(f"a worker cannot begin: {lines[-1]}") from error
            raise Lost(lines[0]) from error

    def stop(self, worker: Any) -> None:
        if self.ray.is_initialized():
            self.ray.kill(worker)

    def close(self) -> None:
        if self.started_ray:
            self.ray.shutdown()
        self.started_ray = False
