"""Workers as processes of Ray, here or on a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from offlinerl.rollout.actor_pool import Delivery, Lost, Worker
from offlinerl.util.errors import UserError
from offlinerl.util.ray_cluster import RayCluster


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
        self.cluster = RayCluster(workers, address, "workers")
        self.ray = self.cluster.ray

    def start(self, *args: Any) -> Any:
        self.cluster.start()
        return self.ray.remote(num_cpus=1)(Worker).remote(*args)

    def share(self, weights: Mapping[str, np.ndarray]) -> Any:
        self.cluster.start()  # which ``put`` would do too, in its own way
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
        self.cluster.close()
