"""The log-probabilities of the behaviour policy are kept by datasets and files."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from pendulum import empty_workplace

import offlinerl
from offlinerl.cli import main
from offlinerl.data.builder import Builder
from offlinerl.data.dataset import Dataset


@pytest.fixture
def here(tmp_path):
    with empty_workplace(tmp_path) as folder:
        yield folder


def logged(rows=60, seed=0):
    """Six episodes with log-probabilities; three of them are truncated."""
    rng = np.random.default_rng(seed)
    last = np.arange(rows) % 10 == 9
    obs, beyond = rng.normal(size=(2, rows, 3)).astype(np.float32)
    next_obs = np.where(last[:, None], beyond, np.roll(obs, -1, 0))
    return Dataset.of_rows(
        obs, next_obs, action=rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        reward=rng.normal(size=rows).astype(np.float32), terminated=last & (np.arange(rows) % 20 == 9), last=last,
        log_prob=rng.normal(size=rows).astype(np.float32), name="logged",
    )  # fmt: skip


def without(data):
    return replace(data, log_prob=None)


@pytest.mark.parametrize("target", ["out.hdf5", "test/logged-v0"])
def test_files_keep_them(here, target):
    data = logged()
    data.write("columns")
    np.testing.assert_array_equal(offlinerl.load_dataset("columns").log_prob, data.log_prob)
    assert main(["datasets", "filter", "columns", "--episodes", "1-3", "--out", target]) == 0
    found = offlinerl.load_dataset(target)
    np.testing.assert_array_equal(found.log_prob, data.log_prob[10:40])
    np.testing.assert_array_equal(found.action, data.action[10:40])
    assert main(["datasets", "export", target, "again.hdf5", "--format", "robomimic"]) == 0
    np.testing.assert_array_equal(offlinerl.load_dataset("again.hdf5").log_prob, data.log_prob[10:40])


def test_frames_tables_and_arrays_keep_them(here):
    data = logged()
    frame = data.to_pandas(next_obs=True)
    np.testing.assert_array_equal(offlinerl.load_dataset(frame).log_prob, data.log_prob)
    frame.rename(columns=dict(log_prob="mu")).to_csv("log.csv", index=False)
    assert offlinerl.load_dataset("log.csv").log_prob is None
    words = "obs=obs_* next_obs=next_obs_* action=action_* reward=reward terminated=terminated truncated=truncated"
    argv = ["datasets", "export", "log.csv", "a.hdf5", "--columns", *words.split(), "log_prob=mu"]
    assert main(argv) == 0
    np.testing.assert_allclose(offlinerl.load_dataset("a.hdf5").log_prob, data.log_prob, rtol=1e-6)
    arrays = dict(obs=data.obs, action=data.action, reward=data.reward, terminated=data.terminated, truncated=data.last)
    found = offlinerl.load_dataset(arrays | dict(log_prob=data.log_prob))  # without the truncated rows
    np.testing.assert_array_equal(found.log_prob, data.log_prob[~data.last | data.terminated])


def test_parts_and_slices_keep_them(here):
    data = logged()
    data.write("columns")
    for one in (data, Dataset.mapped("columns")):
        np.testing.assert_array_equal(one.take([0, 4]).log_prob, np.r_[data.log_prob[:10], data.log_prob[40:50]])
        np.testing.assert_array_equal(one[5:25].log_prob, data.log_prob[5:25])
    assert without(data).take([0]).log_prob is None and without(data)[:5].log_prob is None


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("order", [(0, 1, 0), (1, 0, 0)])
def test_log_probs_that_only_some_parts_have_are_dropped_and_reported(tmp_path, limit, order):
    parts = [logged(seed=0), without(logged(seed=1))]
    into = Builder("parts", lambda: tmp_path / "files", limit)
    for number in order:
        into.add(parts[number])
    whole = into.finish("whole", {})
    assert whole.log_prob is None and whole.provenance["log_prob"] == "left out, for not all parts have it"
    np.testing.assert_array_equal(whole.reward, np.concatenate([parts[number].reward for number in order]))
    into = Builder("parts", lambda: tmp_path / "both", limit)
    for seed in (0, 2):
        into.add(logged(seed=seed))
    whole = into.finish("whole", {})
    np.testing.assert_array_equal(whole.log_prob, np.r_[logged(seed=0).log_prob, logged(seed=2).log_prob])


def test_merging_reports_dropped_log_probs(here, capsys):
    logged().write("with"), without(logged()).write("without")
    assert main(["datasets", "merge", "with", "without", "--out", "all.hdf5"]) == 0
    assert "log_prob is left out, for not all parts have it" in capsys.readouterr().out
    assert offlinerl.load_dataset("all.hdf5").log_prob is None
    assert main(["datasets", "merge", "with", "with", "--out", "both.hdf5"]) == 0
    assert "left out" not in capsys.readouterr().out
    np.testing.assert_array_equal(offlinerl.load_dataset("both.hdf5").log_prob, np.tile(logged().log_prob, 2))


def test_log_probs_with_nan_are_ignored(here):
    with h5py.File("a.hdf5", "w") as file:
        for name, width in dict(observations=(3,), actions=(2,), rewards=(), terminals=()).items():
            file[name] = np.zeros((20, *width), np.float32)
        file["timeouts"] = np.arange(20) % 10 == 9
        file["infos/action_log_probs"] = np.where(np.arange(20) == 3, np.nan, -1.0)
    assert offlinerl.load_dataset("a.hdf5").log_prob is None
    with h5py.File("a.hdf5", "a") as file:
        file["infos/action_log_probs"][3] = -2.0
    found = offlinerl.load_dataset("a.hdf5", mode="d4rl").log_prob  # without the rows that time out
    np.testing.assert_array_equal(found, np.where(np.arange(18) == 3, -2.0, -1.0))
