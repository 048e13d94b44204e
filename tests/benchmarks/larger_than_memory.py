"""Training on a dataset on the disk: the memory that it needs, and its speed compared with data in memory.

``python tests/benchmarks/larger_than_memory.py memory --gigabytes 12`` makes a file in D4RL's format in a temporary
folder, trains on it with ``table`` "disk", which includes building the files, and prints the peak memory of this
process: all resident memory, including pages of files, and its own memory. It needs twice that size on the disk.

``python tests/benchmarks/larger_than_memory.py speed`` prints updates and minibatches per second of CPU time of
both, in turn within one process, on a dataset that fits the page cache.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import h5py
import numpy as np

O, A, EPISODE, BLOCK = 60, 9, 280, 1 << 16
"""Kitchen's shapes."""


def write(path: Path, gigabytes: float) -> int:
    """Write a file of this size in D4RL's format, and return its number of rows."""
    rows = int(gigabytes * 1e9 / (4 * (O + A + 1) + 2))
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(BLOCK, O)).astype(np.float32)
    action = rng.uniform(-1, 1, (BLOCK, A)).astype(np.float32)
    with h5py.File(path, "w") as file:
        shapes = dict(observations=(O,), actions=(A,), rewards=(), terminals=(), timeouts=())
        columns = {
            name: file.create_dataset(name, (rows, *shape), "f4" if i < 3 else "?")
            for i, (name, shape) in enumerate(shapes.items())
        }
        for start in range(0, rows, BLOCK):
            count, number = min(BLOCK, rows - start), np.arange(start, min(start + BLOCK, rows))
            obs[:, 0] = start / rows  # all blocks differ
            columns["observations"][start : start + count] = obs[:count]
            columns["actions"][start : start + count] = action[:count]
            columns["rewards"][start : start + count] = obs[:count, 1]
            columns["timeouts"][start : start + count] = number % EPISODE == EPISODE - 1
    return rows


def resident() -> dict[str, float]:
    """Memory of this process in gigabytes: all resident memory, and only its own without pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        name: int(line.split()[1]) / 1e6 for line in lines if (name := line.partition(":")[0]) in ("VmRSS", "RssAnon")
    }


class Watch(threading.Thread):
    """Records the peak of resident memory, checked every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = dict(VmRSS=0.0, RssAnon=0.0)

    def run(self) -> None:
        while True:
            self.most = {name: max(size, self.most[name]) for name, size in resident().items()}
            time.sleep(0.02)


def memory(folder: Path, args: argparse.Namespace) -> None:
    free = shutil.disk_usage(folder).free / 1e9
    if free < 2.2 * args.gigabytes:
        sys.exit(f"{folder} has {free:.0f} GB left, and this needs {2.2 * args.gigabytes:.0f}: choose less --gigabytes")
    os.environ["OFFLINERL_HOME"] = str(folder / "cache")
    import offlinerl

    rows = write(folder / "large.hdf5", args.gigabytes)
    print(f"{rows:,} rows, {(folder / 'large.hdf5').stat().st_size / 1e9:.1f} GB")
    watch = Watch()
    watch.start()
    train = dict(updates=args.updates, eval_every=args.updates // 2, table="disk", compile=False)
    for again in ("from the file", "again"):
        began, cpu = time.perf_counter(), time.process_time()
        run = offlinerl.fit(args.agent, folder / "large.hdf5", over=dict(train=train), out=folder / again.split()[0])
        print(
            f"{again}: {time.perf_counter() - began:.0f} s, {time.process_time() - cpu:.0f} s of CPU time, of which"
            f" training at {run.summary['updates_per_second']:.0f} updates/s; resident at the most"
            f" {watch.most['VmRSS']:.2f} GB, of which {watch.most['RssAnon']:.2f} GB were no pages of files",
            flush=True,
        )


def speed(folder: Path, args: argparse.Namespace) -> None:
    os.environ["OFFLINERL_HOME"] = str(folder / "cache")
    import torch

    from offlinerl import agents
    from offlinerl.data import load
    from offlinerl.experience.sources import OfflineData
    from offlinerl.experience.table import Table
    from offlinerl.types import Spec

    torch.set_num_threads(1)
    write(folder / "large.hdf5", args.gigabytes)
    spec = Spec(O, A, (-1.0,) * A, (1.0,) * A)
    agent = agents.get(args.agent)(spec, (0,))
    sources = {}
    for table in ("memory", "disk"):
        data = load.load(str(folder / "large.hdf5"), table=table)
        sources[table] = OfflineData(Table(data, spec, agent.gamma), (0,), 256)
    for what in ("minibatches", "updates"):
        found = {table: [] for table in sources}
        for _ in range(args.turns + 1):
            for table, source in sources.items():
                began = time.process_time()
                for _ in range(args.blocks):
                    block = source.draw()
                    if what == "updates":
                        agent.learn(block)
                found[table].append(args.blocks * source.piece / (time.process_time() - began))
        rates = {table: statistics.median(rates[1:]) for table, rates in found.items()}
        shares = [disk / held for held, disk in zip(found["memory"][1:], found["disk"][1:], strict=True)]
        print(
            f"{what}/s of CPU time: {rates['memory']:,.0f} in memory, {rates['disk']:,.0f} on the disk, median share"
            f" {statistics.median(shares):.3f} of {min(shares):.3f} to {max(shares):.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "speed"))
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of the file (default: 1)")
    parser.add_argument("--agent", default="xql", help="(default: xql)")
    parser.add_argument("--updates", type=int, default=2000, help="to measure the memory (default: 2000)")
    parser.add_argument("--turns", type=int, default=9, help="of both (default: 9)")
    parser.add_argument("--blocks", type=int, default=4, help="of 50 updates in a turn (default: 4)")
    parser.add_argument("--folder", type=Path, help="for the files (default: the system's for temporary ones)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        dict(memory=memory, speed=speed)[args.what](Path(folder), args)


if __name__ == "__main__":
    main()
