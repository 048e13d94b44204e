"""The episodes that ``offlinerl select --episodes`` needs to find a good policy, relative to equal shares, on simulated
returns: ``python tests/benchmarks/finding.py``. ``tests/test_select.py`` requires at most half."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_select import KINDS, equal_shares, needed_by, problems

from offlinerl.evaluation.statistics import confidence_bounds, next_to_play


def upper_bounds(*sums: np.ndarray) -> np.ndarray:
    """The policy with the highest mean plus two standard errors."""
    return confidence_bounds(*sums, 2).argmax(1)


def main() -> None:
    ratios: dict[str, list[np.ndarray]] = {"next_to_play": [], "upper bounds": []}
    for kind in KINDS:
        mean, returns = problems(kind, np.random.default_rng(3))
        equal, _ = needed_by(equal_shares, mean, returns)
        hard = equal > mean.shape[1]  # only problems in which episodes can be saved
        for name, share in zip(ratios, (next_to_play, upper_bounds), strict=True):
            ratios[name].append(needed_by(share, mean, returns)[0][hard] / equal[hard])
            print(f"{kind:12} {name:14} {np.median(ratios[name][-1]):.2f}", flush=True)
    for name, of_kinds in ratios.items():
        print(f"{'all':12} {name:14} {np.median(np.concatenate(of_kinds)):.2f}")


if __name__ == "__main__":
    main()
