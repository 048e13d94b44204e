"""Training speed on a quiet and on a busy machine, with torch's way of waiting and with ours, in one run.

``python tests/benchmarks/busy_machine.py`` measures updates/s of XQL on Kitchen's shapes at batch 256: alone, beside
another training, and beside a program that never waits. Only the ratios matter; nothing else may run at the same time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

TORCH, OURS = "torch", "ours"
"""How threads wait for each other: as torch sets it up, or as our trainings do."""


def child(way: str, compiled: bool, threads: int) -> None:
    """For each line of standard input, train for that number of seconds and print the updates/s."""
    import torch

    from offlinerl import benchmark
    from offlinerl.agents.xql import XQL
    from offlinerl.experience.sources import OfflineData
    from offlinerl.experience.table import Table
    from offlinerl.util.threads import set_threads

    (set_threads if way == OURS else torch.set_num_threads)(threads)
    agent = XQL(benchmark.KITCHEN, (0,), dropout=0.1)
    agent.compile = compiled
    source = OfflineData(Table(benchmark.synthetic_table(), benchmark.KITCHEN, 0.99), (0,), 256, 10)
    agent.learn(source.draw())
    print("ready", flush=True)
    for line in sys.stdin:
        began, updates = time.perf_counter(), agent.updates
        while time.perf_counter() - began < float(line):
            agent.learn(source.draw())
        print((agent.updates - updates) / (time.perf_counter() - began), flush=True)


class Training:
    """A process that trains when it is told to."""

    def __init__(self, way: str, compiled: int, threads: int):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--child", way, str(compiled), str(threads)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout.readline() == "ready\n"

    def begin(self, seconds: float) -> None:
        print(seconds, file=self.process.stdin, flush=True)

    def rate(self) -> float:
        return float(self.process.stdout.readline())

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measured(pair: list[Training], seconds: float) -> tuple[float, float, float]:
    """Updates/s alone, of the slower one of two, and beside an endless loop."""
    pair[0].begin(seconds)
    alone = pair[0].rate()
    for training in pair:
        training.begin(seconds)
    together = min(training.rate() for training in pair)
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        pair[0].begin(seconds)
        return alone, together, pair[0].rate()
    finally:
        loop.kill()
        loop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--compiled", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is taken (default: 3)")
    args = parser.parse_args()
    if args.child:
        way, compiled, threads = args.child
        child(way, compiled == "1", int(threads))
        return
    print(f"{'':10}{'threads':>8}{'waits':>9}{'alone':>8}{'two, each':>16}{'beside a loop':>16}   updates/s")
    for compiled in args.compiled:
        for threads in args.threads:
            pairs = {way: [Training(way, compiled, threads) for _ in range(2)] for way in (TORCH, OURS)}
            found = {way: [] for way in pairs}
            for _ in range(args.rounds):  # in turn, because the speed of the machine varies
                for way, pair in pairs.items():
                    found[way].append(measured(pair, args.seconds))
            for way, rounds in found.items():
                alone, together, beside = (statistics.median(column) for column in zip(*rounds, strict=True))
                print(
                    f"{'compiled' if compiled else 'eager':10}{threads:8}{way:>9}{alone:8.1f}"
                    f"{together:9.1f} ({together / alone:4.0%}){beside:9.1f} ({beside / alone:4.0%})",
                    flush=True,
                )
                for training in pairs[way]:
                    training.end()


if __name__ == "__main__":
    main()
