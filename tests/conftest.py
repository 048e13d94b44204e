import os
import warnings
from ctypes.util import find_library

CORES = os.cpu_count() or 1
THREADS = max(1, min(2, CORES // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))))
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))  # before importing torch; inherited by commands that tests start
if find_library("OSMesa"):
    os.environ.setdefault("MUJOCO_GL", "osmesa")  # before importing dm_control, which reads it then

import drawing
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from offlinerl import agents
from offlinerl.cli import main
from offlinerl.data.dataset import Dataset
from offlinerl.experience.sources import OfflineData
from offlinerl.experience.table import Table
from offlinerl.types import Batch, Leaf, Spec
from offlinerl.util.trees import tree_leaves, tree_map

torch.set_num_threads(min(THREADS, torch.get_num_threads()))
warnings.filterwarnings("ignore", message=".*LeafSpec.*")

SPEC = Spec(5, 2, (-1.0, -1.0), (1.0, 1.0))

ACTING = [name for name in agents.names() if agents.outline(name).kinds != ("observations",)]
"""The agents that have a policy."""


def random_table(rows: int = 400, spec: Spec = SPEC, seed: int = 0) -> Dataset:
    """Transitions in episodes of 20 steps; every other episode terminates."""
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(rows + 1, spec.obs_dim)).astype(np.float32)
    last = np.arange(rows) % 20 == 19
    terminated = last & (np.arange(rows) % 40 == 39)
    return Dataset.of_rows(
        obs[:-1],
        obs[1:],
        action=rng.uniform(-1, 1, (rows, spec.action_dim)).astype(np.float32),
        reward=rng.normal(size=rows).astype(np.float32),
        terminated=terminated,
        last=last,
    )


def transitions(data: Dataset, gamma: float, n: int = 1) -> Batch:
    """All rows of a dataset as an agent trains on them, in numpy."""
    leaves = tuple(Leaf(path, leaf.shape[1:], str(leaf.dtype)) for path, leaf in tree_leaves(data.observations))
    bounds = abs(data.action).max(0) + 1
    table = Table(data, Spec(leaves, data.action.shape[1], tuple(-bounds), tuple(bounds)), gamma, n)
    return tree_map(lambda x: x.numpy(), table.transitions(torch.arange(len(data))))


LONGEST = (
    "ray", "collect", "processes", "policy_gradient", "notebooks", "edges", "newcomers", "generate", "stopping", "docs",
    "online_cli", "pixels", "on_disk", "weighing", "cli", "odd_environments", "manipulation", "report", "properties",
    "bad_input", "fuzz", "runs", "formats", "own_agent", "mapped", "workers", "checkpoint", "values", "policies",
)  # fmt: skip
"""Test files, the slowest first; the others are faster."""


def pytest_collection_modifyitems(items):
    """Run the slowest files first, so that at the end no worker is left alone with one of them."""
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session", autouse=True)
def coarse_pictures():
    """Draw coarse pictures, except in commands in new processes and in tests that use ``fine_pictures``."""
    with drawing.coarse():
        yield


@pytest.fixture
def fine_pictures(monkeypatch):
    monkeypatch.setattr(Figure, "savefig", drawing.SAVE_FIGURE)


@pytest.fixture
def spec() -> Spec:
    return SPEC


@pytest.fixture
def source_of():
    """Builds a source of random transitions for some seeds."""
    return lambda seeds, batch=32, updates=5: OfflineData(Table(random_table(), SPEC, 0.99), seeds, batch, updates)


@pytest.fixture
def refused(capsys):
    """Runs a command line that must fail with a status and one line on standard error, and returns the line."""

    def check(*argv, status=1):
        capsys.readouterr()
        try:
            found = main([str(word) for word in argv])
        except SystemExit as leaving:  # raised by argparse
            found = leaving.code
        (line,) = capsys.readouterr().err.splitlines()
        assert found == status, line
        assert line.startswith("offlinerl") and "Traceback" not in line
        return line

    return check
