"""Test whether ``offlinerl select`` ranks ten policies on their dataset in the order of their true returns:
``python tests/benchmarks/choosing.py kitchen``.

The policies are from several algorithms and from short and long trainings, so that some are bad and some are good.
Their true returns are means over episodes in the environment. Finished runs are kept in ``--keep`` and not repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import offlinerl

TEN = (
    ("bc", 300), ("bc", 1000), ("bc", 5000), ("xql", 1000), ("xql", 5000),
    ("iql", 1000), ("iql", 5000), ("td3bc", 1000), ("td3bc", 5000), ("awac", 3000),
)  # fmt: skip
"""Agents and their numbers of updates."""


def trained(agent: str, updates: int, dataset: str, episodes: int, keep: Path, threads: int) -> Path:
    """The folder of a finished run, evaluated over ``episodes`` episodes."""
    run = keep / dataset / f"{agent}-{updates}"
    if (run / "summary.json").exists():
        return run
    train = dict(updates=updates, eval_every=updates, final_episodes=episodes, compile=False)
    again = (run / "last.ckpt").exists()
    offlinerl.fit(
        agent, threads=threads,
        **(dict(resume=run) if again else dict(dataset=dataset, out=run, over=dict(train=train))),
    )  # fmt: skip
    return run


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 0 for the lowest value; equal values share their mean rank."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts + 1) / 2)[which]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", nargs="+")
    parser.add_argument("--episodes", type=int, default=50, help="of every policy, for its true return (default: 50)")
    parser.add_argument("--updates", type=int, default=10_000, help="of fitted Q evaluation (default: 10000)")
    parser.add_argument("--terminal-ends", action="store_true", help="see offlinerl select")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path("runs/choosing"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = {}
    for dataset in args.datasets:
        runs = [trained(*of, dataset, args.episodes, args.keep, args.threads) for of in TEN]
        summaries = {str(run): json.loads((run / "summary.json").read_text()) for run in runs}
        file = args.keep / dataset / "select.json"
        found = json.loads(file.read_text()) if file.exists() else {}
        had = found.get("method", {})
        if (had.get("updates"), had.get("terminal_ends", False)) != (args.updates, args.terminal_ends):
            found = offlinerl.select(runs, updates=args.updates, terminal_ends=args.terminal_ends, json_file=file)
        estimates = {policy["run"]: policy["estimate"] for policy in found["policies"]}
        true = {run: summary["last"]["mean"] for run, summary in summaries.items()}
        chosen, best = found["policies"][0]["run"], max(true, key=lambda run: true[run])
        correlation = np.corrcoef(ranks([true[run] for run in true]), ranks([estimates[run] for run in true]))[0, 1]
        results[dataset] = dict(
            rank_correlation=float(correlation), regret=true[best] - true[chosen],
            policies={Path(run).name: dict(true=true[run], estimate=estimates[run]) for run in true},
        )  # fmt: skip
        kind = summaries[str(runs[0])]["score_kind"]
        print(f"\n{dataset}: {kind} over {args.episodes} episodes, and the estimate of its discounted return")
        for run in sorted(true, key=lambda run: -true[run]):
            print(f"  {Path(run).name:<14}{true[run]:>10.1f}{estimates[run]:>12.2f}")
        print(f"  Spearman's rank correlation {correlation:.2f}; regret at 1: {true[best] - true[chosen]:.1f}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
