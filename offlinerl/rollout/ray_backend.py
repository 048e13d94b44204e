"""Workers as Ray processes, on this machine or on a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from offlinerl.rollout.actor_pool import Delivery, Lost, Worker
from offlinerl.util.errors import UserError
from offlinerl.util.ray_cluster import RayCluster


class RayBackend:
    """Workers that are Ray actors, each a process on its own core.

    Args:
        workers: how many there will be.
        address: of a cluster, as ``ray.init`` takes it; by default only this machine.

    Raises:
        UserError: Ray is not installed; later, no cluster answers, it has too few cores, or a worker cannot be created
            there.
    """

    def __init__(self, workers: int, address: str | None = None):
        self.cluster = RayCluster(workers, address, "workers")
        self.ray = self.cluster.ray

    def start(self, *args: Any) -> Any:
        self.cluster.start()
        return self.ray.remote(num_cpus=1)(Worker).remote(*args)

    def share(self, weights: Mapping[str, np.ndarray]) -> Any:
        self.cluster.start()  # else ``put`` would start Ray with other settings
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
                raise UserError(f"a worker cannot start: {lines[-1]}") from error
            raise Lost(lines[0]) from error

    def stop(self, worker: Any) -> None:
        if self.ray.is_initialized():
            self.ray.kill(worker)

    def close(self) -> None:
        self.cluster.close()
