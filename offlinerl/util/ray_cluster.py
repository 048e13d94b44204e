"""Ray, started on this machine or joined as an existing cluster."""

from __future__ import annotations

import logging
import os
import socket

from offlinerl.util.errors import UserError, first_line


class RayCluster:
    """A Ray cluster to run processes on.

    Args:
        cores: number of cores that a cluster must have; on this machine only, the number that Ray is started with.
        address: of a cluster, as in ``ray.init``; by default Ray is started on this machine only.
        what: what needs the cores, for messages, such as "workers".

    Raises:
        UserError: Ray is not installed, or no cluster answers; ``start`` raises it if there are too few cores.
    """

    def __init__(self, cores: int, address: str | None, what: str):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed")  # callers report it
        try:
            import ray
        except ImportError as error:
            raise UserError(f"{what} need Ray: install it with pip install 'offlinerl[ray]'") from error
        self.ray, self.cores, self.address, self.what, self.started = ray, cores, address, what, False
        if address not in (None, "auto"):
            self._check_address(address)

    def _check_address(self, address: str) -> None:
        """Raise soon if nothing answers at the address; Ray itself would try for minutes."""
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not (host and port.isdigit()):
            raise UserError(f"the address of a Ray cluster must be auto or HOST:PORT, not {address}")
        try:
            socket.create_connection((host, int(port)), 10).close()
        except (OSError, OverflowError) as error:
            raise self._no_cluster(error) from error

    def _no_cluster(self, error: Exception) -> UserError:
        return UserError(
            f"no Ray cluster answers at {self.address} ({first_line(error)}); start one with `ray start --head`, or"
            " give its token to Ray if it asks for one"
        )

    def start(self) -> None:
        """Start or join the cluster, unless Ray is initialised already.

        Raises:
            UserError: no cluster answers, or it has too few cores.
        """
        if self.ray.is_initialized():
            return
        here = dict(address="local", num_cpus=self.cores, include_dashboard=False)
        where = dict(address=self.address) if self.address else here
        try:
            self.ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            if not self.address:
                raise
            raise self._no_cluster(error) from error
        self.started = True
        cores = int(self.ray.cluster_resources().get("CPU", 0))
        if cores < self.cores:
            raise UserError(f"{self.cores} {self.what} need as many cores, but Ray has {cores} at {self.address}")

    def close(self) -> None:
        """Disconnect, and stop Ray if it was started here."""
        if self.started:
            self.ray.shutdown()
        self.started = False
