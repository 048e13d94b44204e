"""Datasets written in other formats: rows and ends are read back as they were written."""

import errno
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from pendulum import ID, empty_workplace, install, start_python
from test_formats import EPISODES, assert_rows, expected, ogbench, robomimic

import offlinerl
from offlinerl.cli import main
from offlinerl.data import lerobot, scales, tables, writers
from offlinerl.data.d4rl import load_hdf5
from offlinerl.data.minari_writer import Sink
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_leaves


@pytest.fixture
def here(tmp_path):
    with empty_workplace(tmp_path) as folder:
        yield folder


def assert_same(one, other):
    """Compare all rows and ends; the successor of a terminal step is not compared."""
    for name in ("action", "reward", "terminated", "last"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
    assert (one.log_prob is None) == (other.log_prob is None)
    if one.log_prob is not None:
        np.testing.assert_array_equal(one.log_prob, other.log_prob)
    for (path, here), (_, there) in zip(tree_leaves(one.obs), tree_leaves(other.obs), strict=True):
        np.testing.assert_array_equal(here, there, path)
        assert here.dtype == there.dtype
    for (path, here), (_, there) in zip(tree_leaves(one.next_obs), tree_leaves(other.next_obs), strict=True):
        np.testing.assert_array_equal(here[~one.terminated], there[~one.terminated], path)


def test_robomimic_and_back(here, capsys):
    robomimic(here / "lift.hdf5")
    assert main(["datasets", "export", "lift.hdf5", "again.hdf5", "--format", "robomimic"]) == 0
    data = offlinerl.load_dataset("again.hdf5")
    assert data.provenance["format"] == "robomimic HDF5" and data.provenance["rows_dropped"] == 0
    assert_rows(data)
    assert data.provenance["provenance"]["file"] == "lift.hdf5"
    with h5py.File("again.hdf5") as file:  # as robomimic's SequenceDataset reads it
        demos = file["data"]
        assert json.loads(demos.attrs["env_args"]) == dict(env_name="", type=2, env_kwargs={})
        assert demos.attrs["total"] == sum(demos[f"demo_{n}"].attrs["num_samples"] for n in range(len(EPISODES)))
        np.testing.assert_array_equal(demos["demo_3/next_obs/flat"], EPISODES[3]["obs"][1:])
        np.testing.assert_array_equal(demos["demo_3/dones"], EPISODES[3]["terminated"])
    assert main(["datasets", "export", "lift.hdf5", "again.hdf5", "--format", "robomimic"]) == 1
    assert "--overwrite" in capsys.readouterr().err


LIMITED = """
import resource, sys
from offlinerl.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (limit := 300_000, limit))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("target", [("a.hdf5", "--format", "robomimic"), ("a.hdf5",)])
def test_a_full_disk_leaves_nothing_of_a_file(here, target):
    """The operating system itself refuses to write; in a separate process."""
    rng, rows = np.random.default_rng(0), 8000
    columns = dict(obs=rng.normal(size=(rows, 20)), action=rng.normal(size=rows), terminated=np.arange(rows) % 20 == 19)
    np.savez("log.npz", **columns)
    process = start_python(LIMITED, "datasets", "export", "log.npz", *target, cwd=here)
    (line,) = process.communicate(timeout=100)[1].splitlines()
    assert process.returncode == 1 and "a.hdf5 was not written, because the disk is full" in line
    assert [file.name for file in here.iterdir()] == ["log.npz"]


def test_a_full_disk_is_reported_instead_of_the_error_of_hdf5(here):
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left"), Sink(here / "some.hdf5") as sink:
        sink.error = full
        raise ValueError("unable to synchronously create a dataset")
    with pytest.raises(KeyboardInterrupt), Sink(here / "other.hdf5") as sink:
        sink.error = full
        raise KeyboardInterrupt


def test_robomimic_keeps_parts_and_names_the_environment(here, capsys):
    path = robomimic(here / "lift.hdf5", images=True)
    keys = ["--obs-keys", "agentview_image,gripper"]
    assert main(["datasets", "export", str(path), "d.hdf5", *keys]) == 1
    assert "--format robomimic" in capsys.readouterr().err
    assert main(["datasets", "export", str(path), "r.hdf5", "--format", "robomimic", *keys]) == 0
    whole = offlinerl.load_dataset(path, obs_keys=["agentview_image", "gripper"])
    again = offlinerl.load_dataset("r.hdf5")
    assert set(again.observations) == {"agentview_image", "gripper"} and again.obs["agentview_image"].dtype == np.uint8
    assert_same(whole, again)
    install(here / "minari")
    capsys.readouterr()
    assert main(["datasets", "export", ID, "p.hdf5", "--format", "robomimic"]) == 0
    assert "robomimic's policies act within -1 to 1" in capsys.readouterr().out  # Pendulum's torques reach 2
    with h5py.File("p.hdf5") as file:
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == "Pendulum-v1"
    assert_same(offlinerl.load_dataset(ID), offlinerl.load_dataset("p.hdf5"))


def test_lerobot_and_back(here, capsys, monkeypatch):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    robomimic(here / "lift.hdf5")
    out = ["datasets", "export", "lift.hdf5", "lift", "--format", "lerobot"]
    assert main(out) == 1
    assert "give --fps" in capsys.readouterr().err
    monkeypatch.setattr(writers, "ROWS_IN_A_FILE", 10)  # several files
    assert main([*out, "--fps", "20"]) == 0
    assert len(list(Path("lift/data").rglob("*.parquet"))) > 2
    data, whole = offlinerl.load_dataset("lift"), offlinerl.load_dataset("lift.hdf5")
    assert data.provenance["format"] == "LeRobot" and data.provenance["fps"] == 20
    assert_same(whole, data)
    assert len(data) == len(expected()[0]), "no step is lost, though some were cut off"
    assert data.provenance["provenance"]["file"] == "lift.hdf5"
    assert main([*out[:2], "lift", "again", *out[4:]]) == 0  # its frame rate is known
    assert_same(whole, offlinerl.load_dataset("again"))
    assert main(["datasets", "export", "again", "last.hdf5"]) == 0
    assert_same(whole, offlinerl.load_dataset("last.hdf5"))


def test_lerobots_own_reader_finds_its_metadata(here):
    """The metadata as LeRobot 0.4.4 reads them: tasks with pandas, the bounds of episodes, statistics."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    data = offlinerl.load_dataset(robomimic(here / "lift.hdf5"))
    writers.write_lerobot(data, here / "lift", 10, "lift the cube")
    tasks = pandas.read_parquet("lift/meta/tasks.parquet")
    assert tasks.index.tolist() == ["lift the cube"] and tasks["task_index"].tolist() == [0]
    info = json.loads(Path("lift/meta/info.json").read_text())
    (file,) = Path("lift/data").rglob("*.parquet")
    assert file == Path("lift") / info["data_path"].format(chunk_index=0, file_index=0)
    frames = pq.read_table(file).to_pandas()
    assert sorted(frames.columns) == sorted(info["features"])
    assert info["total_frames"] == len(frames)
    assert frames["index"].tolist() == list(range(len(frames)))
    episodes = pq.read_table("lift/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    for number, (of, one) in enumerate(zip(episodes, EPISODES, strict=True)):
        rows = frames[of["dataset_from_index"] : of["dataset_to_index"]]
        assert (rows["episode_index"] == number).all() and of["tasks"] == ["lift the cube"]
        assert of["length"] == len(rows) == len(one["action"]) + (not one["terminated"][-1])
        np.testing.assert_array_equal(np.stack(rows["observation.state"]), one["obs"][: len(rows)])
        np.testing.assert_allclose(rows["timestamp"], np.arange(len(rows)) / 10, rtol=1e-6)
        assert rows["next.done"].tolist() == [False] * (len(rows) - 1) + [True]
    stats = json.loads(Path("lift/meta/stats.json").read_text())
    np.testing.assert_allclose(stats["action"]["mean"], data.action.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["observation.state"]["max"], data.observations.max(0), rtol=1e-6)


def test_lerobot_keeps_images_and_single_numbers(here):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    whole = offlinerl.load_dataset(robomimic(here / "lift.hdf5", images=True), obs_keys=["agentview_image", "gripper"])
    writers.write_lerobot(whole, here / "lift", 10, "lift")
    again = offlinerl.load_dataset("lift", obs_keys=["observation.images.agentview_image", "observation.gripper"])
    np.testing.assert_array_equal(again.obs["observation.images.agentview_image"], whole.obs["agentview_image"])
    np.testing.assert_array_equal(again.obs["observation.gripper"], whole.obs["gripper"])
    stats = json.loads(Path("lift/meta/stats.json").read_text())["observation.images.agentview_image"]
    assert np.shape(stats["mean"]) == (3, 1, 1) and 0 < stats["max"][0][0][0] <= 1
    rows = np.arange(12)
    grey = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 1), np.uint8)
    choices = offlinerl.load_dataset(dict(obs=grey, action=rows % 3, reward=rows, terminated=rows % 6 == 5))
    writers.write_lerobot(choices, here / "choices", 10, "choose")
    again = offlinerl.load_dataset("choices", obs_keys=["observation.images.top"])
    np.testing.assert_array_equal(again.obs, choices.obs)
    np.testing.assert_array_equal(again.action, choices.action)
    assert again.provenance["action_dtype"] == "int64"
    deep = offlinerl.load_dataset(dict(obs=np.repeat(grey, 9, -1), action=rows, reward=rows, terminated=rows == 11))
    with pytest.raises(UserError, match="are no pictures"):
        writers.write_lerobot(deep, here / "deep", 10, "none")
    with pytest.raises(UserError, match=r"shape \(8, 8\) are no pictures"):
        writers.write_lerobot(replace(choices, observations=grey[..., 0]), here / "flat", 10, "none")
    assert not Path("deep").exists() and not Path("flat").exists()


def test_trajectories_without_rewards_are_converted(here):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    data = offlinerl.load_dataset(ogbench(here / "cube.npz"))
    writers.write_robomimic(data, here / "cube.hdf5")
    writers.write_lerobot(data, here / "cube", 10, "play")
    for name in ("cube.hdf5", "cube"):
        assert_same(data, offlinerl.load_dataset(name))


def walks(**changes):
    """Two truncated episodes of three steps."""
    rows = np.arange(6, dtype=np.float32)[:, None]
    columns = dict(obs=rows, next_obs=rows + 1, action=rows, reward=rows[:, 0], terminated=np.zeros(6))
    return offlinerl.load_dataset(columns | dict(truncated=np.array([0, 0, 1, 0, 0, 1])) | changes)


FRAMES = np.random.default_rng(0).integers(0, 256, (8, 6, 5, 3), np.uint8)
JOINTS = np.arange(16, dtype=np.float32).reshape(8, 2)
AT = np.array([0, 1, 2, 4, 5, 6])
KEPT = dict(
    choices=dict(action=np.arange(6) % 3),
    log_prob=dict(log_prob=-np.arange(6.0)),
    images=dict(obs=FRAMES[AT], next_obs=FRAMES[AT + 1]),
    grey=dict(obs=FRAMES[AT, ..., 0], next_obs=FRAMES[AT + 1, ..., 0]),
    depth=dict(obs=FRAMES[AT, ..., 0] / np.float32(9), next_obs=FRAMES[AT + 1, ..., 0] / np.float32(9)),
    parts=dict(obs=dict(arm=JOINTS[AT], cam=FRAMES[AT]), next_obs=dict(arm=JOINTS[AT + 1], cam=FRAMES[AT + 1])),
)
"""The columns that define a dataset of two walks."""
LOST = {("d4rl", "parts"), ("lerobot", "grey"), *((form, "depth") for form in ("robomimic", "lerobot", "minari"))}


def beyond():
    """Two walks that go on beyond a terminal state, as AntMaze's do."""
    return replace(walks(), terminated=np.array([False, True, True, True, False, True]))


def stored(data, form):
    """Write a dataset in a format on the command line, and read it again."""
    data.write("source")
    target = dict(d4rl="kept.hdf5", robomimic="kept.hdf5", lerobot="kept", minari="kept/some-v0")[form]
    how = ["import", "source", target] if form == "minari" else ["export", "source", target, "--format", form]
    assert main(["datasets", *how, *(["--fps", "10"] if form == "lerobot" else [])]) == 0
    features = json.loads(Path(target, "meta/info.json").read_text())["features"] if form == "lerobot" else ()
    return offlinerl.load_dataset(target, obs_keys=[name for name in features if name.startswith("obs")] or None)


@pytest.mark.parametrize("kept", [*KEPT, "beyond"])
@pytest.mark.parametrize("form", ["d4rl", "robomimic", "lerobot", "minari"])
def test_every_format_is_read_as_it_was_written(here, form, kept):
    if form == "lerobot":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    if (form, kept) in LOST:
        pytest.skip("which the format has no place for, or makes a vector of")
    data = beyond() if kept == "beyond" else walks(**KEPT[kept])
    again = stored(data, form)
    assert_same(data, again)
    assert np.dtype(again.provenance["action_dtype"]).kind == ("i" if kept == "choices" else "f")


@pytest.mark.parametrize("form", ["d4rl", "robomimic", "lerobot", "minari"])
def test_a_successor_that_is_not_the_next_row_is_kept(here, capsys, form):
    if form == "lerobot":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    data = walks(next_obs=np.array([[1.0], [50], [3], [40], [50], [50]]))  # after 1, 3 and 4
    again = stored(data, form)
    cut = form in ("lerobot", "minari")  # these formats cannot store two observations between two steps
    assert_same(replace(data, last=np.array([0, 1, 1, 1, 1, 1], bool)) if cut else data, again)
    said = "in 3 steps, the next observation is not the next row's, and this format ends episodes there: 2 became 5"
    assert (said in capsys.readouterr().out.replace("\n", " ")) == cut
    assert again.provenance["provenance"].get("cut_apart") == (3 if cut else None)


def test_single_transitions_are_kept_one_by_one(here):
    Path("log.csv").write_text("obs,action,reward,next_obs\n1,.1,0,2\n50,.2,1,51\n7,.3,2,8\n")
    assert main(["datasets", "filter", "log.csv", "--episodes", "0", "--out", "single/steps-v0"]) == 0
    data = offlinerl.load_dataset("single/steps-v0")
    assert data.obs.ravel().tolist() == [1, 50, 7] and data.next_obs.ravel().tolist() == [2, 51, 8]
    assert data.episode_lengths.tolist() == [1, 1, 1] and not data.terminated.any()


def test_ends_after_a_goal_are_written_as_in_d4rls_own_files(here, capsys):
    """In such files all ends are timeouts; in those of other data they are not."""
    data = beyond()
    stored(data, "d4rl")
    with h5py.File("kept.hdf5") as file:
        np.testing.assert_array_equal(file["timeouts"], data.last)
        np.testing.assert_array_equal(file["terminals"], data.terminated)
    assert len(load_hdf5("kept.hdf5", "d4rl")) == 4  # d4rl.qlearning_dataset leaves out steps that time out
    capsys.readouterr()
    assert main(["datasets", "validate", "kept.hdf5"]) == 0
    assert "right after a terminal row" not in capsys.readouterr().out
    Path("kept.hdf5").rename("antmaze-umaze-v0.hdf5")  # jumps are ends for this name; here are none
    assert_same(offlinerl.load_dataset("antmaze-umaze-v0.hdf5", reward="none"), data)
    walks(terminated=np.array([0, 0, 1, 0, 0, 0])).write("ends")
    assert main(["datasets", "export", "ends", "ends.hdf5"]) == 0
    with h5py.File("ends.hdf5") as file:
        assert file["timeouts"][()].tolist() == [False] * 5 + [True]


def test_d4rls_format_keeps_episodes_longer_than_the_time_limit(here):
    rows = np.arange(402.0)
    walks(obs=rows[:, None], next_obs=rows[:, None] + 1, action=rows, reward=rows, terminated=0 * rows,
          truncated=rows % 201 == 200).write("long")  # fmt: skip
    assert main(["datasets", "export", "long", "long.hdf5"]) == 0
    assert offlinerl.load_dataset("long.hdf5", env="Pendulum-v1").episode_lengths.tolist() == [201, 201]
    with h5py.File("long.hdf5", "a") as file:
        del file.attrs["episode_ends"]
    with pytest.raises(UserError, match="after the 200 steps that its environment allows"):
        offlinerl.load_dataset("long.hdf5", env="Pendulum-v1")


def test_lerobot_keeps_the_probabilities_of_actions(here):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    data = walks(log_prob=-np.arange(6.0), terminated=np.array([0, 0, 0, 0, 0, 1]))
    writers.write_lerobot(data, here / "logged", 10, "walk")
    again = offlinerl.load_dataset("logged")
    assert_same(again, data)
    np.testing.assert_array_equal(again.log_prob, -np.arange(6.0))


def test_lerobot_keeps_the_last_step_of_an_episode_without_motion(here):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    data = walks(next_obs=np.array([[1.0], [2], [2], [4], [5], [5]]))
    writers.write_lerobot(data, here / "still", 10, "stand")
    assert_same(offlinerl.load_dataset("still"), data)


def test_images_of_lerobot_are_decoded_one_episode_at_a_time(here, monkeypatch):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    at = np.array([0, 1, 2, 4, 5, 6])
    data = walks(obs=images[at], next_obs=images[at + 1])
    writers.write_lerobot(data, here / "seen", 10, "see")
    decoded, decode = [], lerobot._decoded
    monkeypatch.setattr(lerobot, "_decoded", lambda column: decoded.append(len(column)) or decode(column))
    assert_same(offlinerl.load_dataset("seen", obs_keys=["observation.images.top"]), data)
    assert set(decoded) == {4}  # of the eight in the file


@pytest.mark.parametrize("shape", [(3000, 2), (300, 20, 20, 3)])
def test_statistics_equal_numpys_and_need_little_memory(shape, monkeypatch):
    column = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8 if len(shape) == 4 else np.float32)
    axes, unit = ((0, 1, 2), 255) if len(shape) == 4 else (0, 1)
    monkeypatch.setattr(scales, "WEIGHED", 1 << 10)
    tracemalloc.start()
    found = writers._statistics(column)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    for name in ("min", "max", "mean", "std"):
        due = getattr(column.astype(np.float64), name)(axes) / unit
        np.testing.assert_allclose(np.ravel(found[name]), due, rtol=1e-12)
    assert peak < 200_000


def test_columns_of_lists_become_arrays_of_any_depth():
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    column = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    fixed = pa.list_(pa.list_(pa.float32(), 2), 3)
    for kind in (None, fixed):
        chunks = pa.chunked_array([pa.array(column[:1].tolist(), kind), pa.array(column[1:].tolist(), kind)])
        np.testing.assert_array_equal(tables.from_arrow(chunks), column)
        np.testing.assert_array_equal(tables.from_arrow(chunks.slice(1, 2)), column[1:3])
    for rows in ([[1.0], [1.0, 2.0]], [None, [1.0]]):
        with pytest.raises(ValueError, match="lists of unequal lengths"):
            tables.from_arrow(pa.chunked_array([rows]))
