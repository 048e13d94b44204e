"""Datasets whose columns are files in the cache, compared with the same datasets in memory."""

import sys
from dataclasses import replace

import h5py
import numpy as np
import pendulum
import pytest
import torch
from gymnasium.spaces import Box, Dict
from test_trees import random_rows

import offlinerl
from offlinerl import dataset_commands
from offlinerl.data import edit, load
from offlinerl.data.dataset import COLUMNS
from offlinerl.data.describe import describe, plot, summary
from offlinerl.data.fingerprint import checksum_of_successors, contents_of
from offlinerl.data.minari_writer import write_minari
from offlinerl.data.writers import write_lerobot, write_robomimic
from offlinerl.experience.table import Table
from offlinerl.types import Leaf, Spec
from offlinerl.util import memory
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_leaves

O, A = 5, 2
SPEC = Spec(O, A, (-1.0,) * A, (1.0,) * A)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFLINERL_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "cache" / "tables"


def d4rl(path, rows=600, seed=0, **columns):
    """Episodes of 1 to 30 steps; some terminate and others are truncated."""
    rng = np.random.default_rng(seed)
    ends = np.zeros(rows, bool)
    ends[np.minimum(np.cumsum(rng.integers(1, 31, rows)), rows) - 1] = True
    terminals = ends & (rng.random(rows) < 0.5)
    columns = dict(
        observations=rng.normal(3, 2, (rows, O)).astype(np.float32), rewards=rng.normal(size=rows).astype(np.float32),
        actions=rng.uniform(-1.2, 1, (rows, A)).astype(np.float32), terminals=terminals, timeouts=ends & ~terminals,
    ) | columns  # fmt: skip
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            file[name] = column
    return path


def both(source, **settings):
    """A dataset in memory and the same on the disk."""
    memory_, disk = (load.load(str(source), table=table, **settings) for table in ("memory", "disk"))
    assert disk.on_disk and not memory_.on_disk
    return memory_, disk


def require_equal(one, other):
    for (path, a), (again, b) in zip(tree_leaves(one), tree_leaves(other), strict=True):
        assert path == again
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), path)
        assert np.asarray(a).dtype == np.asarray(b).dtype


def columns_of(data):
    return {name: getattr(data, name) for name in COLUMNS}


@pytest.mark.parametrize("block", [7, 1 << 16])
@pytest.mark.parametrize("successors", [False, True])
def test_columns_statistics_and_checksum_are_those_of_the_dataset_in_memory(tmp_path, monkeypatch, block, successors):
    monkeypatch.setattr("offlinerl.data.d4rl.BLOCK", block)
    more = dict(next_observations=np.random.default_rng(1).normal(size=(600, O))) if successors else {}
    one, other = both(d4rl(tmp_path / "log.hdf5", **more))
    require_equal(columns_of(one), columns_of(other))
    require_equal(one.moments, other.moments)
    assert contents_of(one) == contents_of(other) and one.provenance == other.provenance
    assert checksum_of_successors(one) == checksum_of_successors(other)
    assert {type(leaf) for _, leaf in tree_leaves(columns_of(other))} == {np.memmap}
    monkeypatch.undo()
    require_equal(columns_of(one), columns_of(load.load(str(tmp_path / "log.hdf5"))))


def test_parts_on_the_disk_have_the_same_description_and_data_frame(tmp_path):
    pytest.importorskip("pandas", reason="pandas is not installed")
    parts = [data.take(np.array([0, 2])) for data in both(d4rl(tmp_path / "log.hdf5"))]
    assert parts[1].on_disk
    one, other = (data.to_pandas(next_obs=True) for data in parts)
    assert one.equals(other)
    assert summary(parts[0]) == summary(parts[1]) and describe(parts[0]) == describe(parts[1])
    plot(parts[1], tmp_path / "picture.png")


@pytest.mark.parametrize(
    "index",
    [
        3, -1, np.int64(-2), True, slice(2, -3, 2), slice(None, None, -1), [0, -1], np.array([[5, -5], [1, 1]]),
        np.arange(40) % 3 == 0, np.zeros(40, bool), None, ..., (), (-1, 0), (slice(4), -1), ([1, -1], [0, 1]),
        (np.arange(40) > 30, slice(None, 2)), (..., 0), (None, 3),
    ],
)  # fmt: skip
def test_parts_on_the_disk_are_indexed_as_arrays_are(tmp_path, index):
    ends = np.arange(100) % 20 == 19
    data = both(d4rl(tmp_path / "log.hdf5", 100, terminals=ends, timeouts=np.zeros(100, bool)))
    one, other = (of.take(np.array([1, 3])).take(np.array([0, 1])) for of in data)
    assert len(other) == 40 and other.on_disk
    for name in ("observations", "action"):
        np.testing.assert_array_equal(getattr(other, name)[index], getattr(one, name)[index])
    if not isinstance(index, tuple):
        np.testing.assert_array_equal(other.next_at[index], one.next_at[index])


def test_a_row_beyond_a_part_on_the_disk_is_refused(tmp_path):
    part = load.load(str(d4rl(tmp_path / "log.hdf5")), table="disk").take(np.array([1, 3]))
    for index in (len(part), -len(part) - 1, np.ones(3, bool)):
        with pytest.raises(IndexError):
            part.action[index]


def vectors(rows=200):
    data = random_rows(rows)
    return replace(data, observations=data.observations["state"])


def minari(folder, data):
    boxes = Dict(image=Box(0, 255, (16, 16, 3), np.uint8), state=Box(-np.inf, np.inf, (7,), np.float32))
    about = dict(dataset_id="test/frames-v0", env_spec=None, observation_space=boxes, action_space=Box(-1, 1, (2,)))
    write_minari(folder, dataset_commands._episodes(data, boxes, about["action_space"]), **about)


def several(folder):
    folder.mkdir()
    for number in (9, 10):
        d4rl(folder / f"part{number}.hdf5", seed=number)


WRITERS = dict(
    minari=lambda path: minari(path, random_rows(200)), robomimic=lambda path: write_robomimic(vectors(), path),
    lerobot=lambda path: write_lerobot(vectors(), path, 10, "test"), several=several,
    parquet=lambda path: vectors().to_pandas(next_obs=True).to_parquet(path.with_suffix(".parquet")),
)  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_is_the_same_on_the_disk(tmp_path, kind):
    path = tmp_path / f"{kind}.parquet" if kind == "parquet" else tmp_path / kind
    WRITERS[kind](path)
    one, other = both(path)
    require_equal(columns_of(one), columns_of(other))
    assert len(one) > 150 and one.provenance == other.provenance and contents_of(one) == contents_of(other)


def test_frames_are_kept_once_and_stacked_from_the_disk(tmp_path):
    minari(tmp_path / "frames", random_rows(200))
    one, other = both(tmp_path / "frames")
    assert other.observations["image"].dtype == np.uint8 and len(other.observations["image"]) == 220
    spec = Spec((Leaf("image", (16, 16, 9), "uint8"), Leaf("state", (21,), "float32")), 2, (-1.0, -1.0), (1.0, 1.0))
    for memory_, disk in ((one, other), (one.best(0.5), other.best(0.5))):
        rows = torch.randint(len(memory_), (2, 3, 8))
        tables = [Table(data, spec, 0.9, 3, stack=3) for data in (memory_, disk)]
        require_equal(*(table.transitions(rows) for table in tables))


@pytest.mark.parametrize("n_step", [1, 3])
def test_batches_are_the_same_to_the_bit_also_of_parts(tmp_path, n_step):
    one, other = both(d4rl(tmp_path / "log.hdf5"))
    pairs = [
        (one, other),
        (one.best(0.3), other.best(0.3)),
        *zip(edit.split(one, 0.9), edit.split(other, 0.9), strict=True),
    ]
    pairs.append((pairs[1][0].best(0.5), pairs[1][1].best(0.5)))  # a part of a part
    for memory_, disk in pairs:
        require_equal(columns_of(memory_), columns_of(disk))
        require_equal(memory_.moments, disk.moments)
        tables = [Table(data, SPEC, 0.9, n_step) for data in (memory_, disk)]
        tables[1].next_actions = tables[0].next_actions = True
        rows = torch.randint(len(memory_), (4, 2, 16))
        require_equal(*(table.transitions(rows) for table in tables))
        require_equal(*(table.windows(rows, 6) for table in tables))
    assert not any(isinstance(value, np.ndarray) for _, value in tree_leaves(disk.observations)), "it was copied"


@pytest.mark.parametrize("agent", ["bc", "xql"])
def test_a_run_is_the_same_to_the_bit_and_resumes_on_either(tmp_path, agent):
    """With normalisation, held-out episodes, and episodes that are not used."""
    file = d4rl(tmp_path / "log.hdf5")
    train = dict(updates=20, eval_every=10, block=5, batch=16, top=0.8, compile=False)
    over = dict(train=train, agent=dict(normalize=True, hidden=[16, 16]))
    runs = [
        offlinerl.fit(agent, file, seeds=[0, 1], over=dict(over, train={**train, "table": table}), out=tmp_path / table)
        for table in ("memory", "disk")
    ]
    longer = dict(train=dict(updates=30, table="disk"))
    runs.append(offlinerl.fit(resume=tmp_path / "memory", over=longer))
    runs.append(offlinerl.fit(resume=tmp_path / "disk", over=dict(train=dict(updates=30, table="memory"))))
    for one, other in (runs[:2], runs[2:]):
        require_equal(dict(one.agent.state_dict()), dict(other.agent.state_dict()))
        assert one.summary["losses"] == other.summary["losses"] and one.summary["data"] == other.summary["data"]


def folders(cache):
    return [found for found in cache.iterdir() if found.is_dir()]


def test_files_are_built_once_and_again_if_their_source_changes(tmp_path, cache, capsys):
    file = d4rl(tmp_path / "log.hdf5")
    load.load(str(file), table="disk")
    assert "written once into files" in capsys.readouterr().out
    (place,) = folders(cache)
    made = (place / "reward.npy").stat().st_mtime_ns
    load.load(str(file), table="disk")
    assert "in files, in" in capsys.readouterr().out and (place / "reward.npy").stat().st_mtime_ns == made
    load.load(str(file), table="disk", mode="d4rl")  # other rows of the same file
    assert len(folders(cache)) == 2
    old = load.load(str(file), table="disk")
    d4rl(file, rows=500)
    one, other = both(file)
    require_equal(columns_of(one), columns_of(other))
    assert len(one) < 500 < old.provenance["rows_in_source"] and len(folders(cache)) == 2
    assert np.isfinite(old.obs).all(), "what a training has open stays"
    (place / "reward.npy").write_bytes(b"broken")
    require_equal(columns_of(one), columns_of(load.load(str(file), table="disk")))


def test_faults_are_found_as_in_memory_and_no_files_remain(tmp_path, cache):
    broken = np.random.default_rng(0).normal(size=(600, O)).astype(np.float32)
    broken[[41, 500]] = np.nan
    flags = np.zeros(600)
    flags[7] = 0.5
    for name, columns in dict(nan=dict(observations=broken), flags=dict(terminals=flags)).items():
        file, said = d4rl(tmp_path / f"{name}.hdf5", **columns), []
        for table in ("memory", "disk"):
            with pytest.raises(UserError) as error:
                load.load(str(file), table=table)
            said.append(str(error.value))
        assert said[0] == said[1] and ("41" in said[0] or "row 7" in said[0])
    assert not cache.exists() or not folders(cache)


def test_a_disk_without_space_is_reported_before_anything_is_written(tmp_path, cache, monkeypatch):
    file = d4rl(tmp_path / "log.hdf5")
    monkeypatch.setattr("shutil.disk_usage", lambda where: type("Usage", (), dict(free=10_000)))
    with pytest.raises(UserError, match=r"takes 0.0 GB as files, and the disk of .* has 0.0 GB left: free some space"):
        load.load(str(file), table="disk")
    assert not folders(cache)


def test_auto_uses_the_disk_if_memory_is_short(tmp_path, monkeypatch):
    table, episode = tmp_path / "log.npz", np.arange(600) // 20
    np.savez(table, obs=np.random.default_rng(0).normal(size=(600, O)), action=np.zeros((600, A)), episode=episode)
    for source in (d4rl(tmp_path / "log.hdf5"), table):  # the size of one is known in advance, that of the other is not
        room = load.load(str(source)).nbytes
        for share, on_the_disk in ((4, False), (1, True), (0, True)):
            monkeypatch.setattr(memory, "available", lambda size=share * room: size)
            data = load.load(str(source), table="auto")
            assert data.on_disk == on_the_disk
            require_equal(columns_of(data), columns_of(load.load(str(source))))
        monkeypatch.setattr(memory, "available", lambda: None)  # on a system that does not report its memory
        assert not load.load(str(source), table="auto").on_disk


def test_available_memory_respects_the_limits_of_control_groups(tmp_path):
    assert 0 < memory.available() < 1 << 50
    group = tmp_path / "pod" / "job"
    group.mkdir(parents=True)
    stat = "anon 1\nactive_file 900000\ninactive_file 100000\n"
    for name, text in {"memory.max": "5000000", "memory.current": "3000000", "memory.stat": stat}.items():
        (group / name).write_text(text)
    assert memory._left(group) == 3_000_000
    (group / "memory.max").write_text("max")
    assert memory._left(group) is None and memory._left(group.parent) is None


WRITE = """
import sys, time
from offlinerl.data import load
from offlinerl.data.builder import Builder
add = Builder.add
def slowly(self, *part):
    add(self, *part)
    print("added", flush=True)
    time.sleep(float(sys.argv[2]))
Builder.add = slowly
data = load.load(sys.argv[1], table="disk")
print("rows", len(data), flush=True)
"""


def test_a_killed_build_is_restarted_and_other_processes_wait(tmp_path, cache):
    parts = tmp_path / "parts"
    parts.mkdir()
    for number in range(3):
        d4rl(parts / f"{number}.hdf5", seed=number)

    def start(pause):
        return pendulum.start_python(WRITE, parts, pause)

    killed = start(5)
    assert "added\n" in [killed.stdout.readline() for _ in range(3)]
    killed.kill(), killed.wait(), killed.stdout.close()
    (left,) = folders(cache)
    assert left.name.startswith(".")
    both_said = [process.communicate(timeout=100)[0] for process in [start(0.4), start(0.4)]]
    assert sum("waits for another run" in said for said in both_said) == 1
    rows = len(load.load(str(parts)))
    assert all(f"rows {rows}\n" in said for said in both_said)
    (whole,) = folders(cache)
    assert not whole.name.startswith(".") and not (whole / ".part").exists()


LARGE = """
import sys, threading, time
import torch
from offlinerl.data import edit, load
from offlinerl.experience.sources import OfflineData
from offlinerl.experience.table import Table
from offlinerl.data.fingerprint import contents_of
from offlinerl.types import Spec

def own():  # MB in memory that are no pages of files
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1e3 for line in file if line.startswith("RssAnon"))

def watch():
    while True:
        most[0] = max(most[0], own())
        time.sleep(0.005)

torch.set_num_threads(1)
before = own()
most = [before]
threading.Thread(target=watch, daemon=True).start()
data = load.load(sys.argv[1], table="disk")
contents_of(data), data.moments, data.action_limits
part, _ = edit.split(data, 0.9)
part.moments
source = OfflineData(Table(part, Spec(16, 2, (-1.0,) * 2, (1.0,) * 2), 0.9), (0,), 256)
for _ in range(5):
    assert source.draw().obs.isfinite().all()
print(round(most[0] - before), round(data.nbytes / 1e6))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_only_a_small_part_of_a_large_dataset_is_in_memory(tmp_path):
    """While its files are written, summarised, split and sampled from."""
    rows, block = 1_500_000, np.random.default_rng(0).normal(size=(50_000, 16)).astype(np.float32)
    with h5py.File(tmp_path / "large.hdf5", "w") as file:
        for name, like in dict(observations=block, actions=block[:, :2].clip(-1, 1), rewards=block[:, 0]).items():
            column = file.create_dataset(name, (rows, *like.shape[1:]), "f4")
            for start in range(0, rows, len(block)):
                column[start : start + len(block)] = like
        file["terminals"], file["timeouts"] = np.zeros(rows, bool), np.arange(rows) % 500 == 499
    process = pendulum.start_python(LARGE, tmp_path / "large.hdf5")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    taken, size = map(int, out.split()[-2:])
    assert taken < 80 < 140 < size


@pytest.mark.parametrize("source", ["logs", "logs/*.csv", "logs/*"])
def test_files_are_made_anew_when_the_columns_of_a_file_are_named_otherwise(tmp_path, cache, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    days = [tmp_path / "logs" / f"day{day}.csv" for day in (1, 2)]
    for day in days:
        day.write_text("x,y,u,end\n" + "".join(f"{row},{row + 100},0.5,{row % 3 // 2}\n" for row in range(6)))
    for names, first in ("x,y", [0, 100]), ("y,x", [100, 0]):
        for day in days:
            load.load(str(day), columns=f"obs={names} action=u terminated=end")
        one, other = both(source)
        require_equal(columns_of(one), columns_of(other))
        assert other.obs[0].tolist() == first
    (place,) = folders(cache)
    made = (place / "reward.npy").stat().st_mtime_ns
    load.load(source, table="disk")
    assert (place / "reward.npy").stat().st_mtime_ns == made
