"""Files in the supported formats: every row and every end is read as it was written."""

import io
import json
import re
import sys
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import yaml
from pendulum import empty_workplace

import offlinerl
from offlinerl.agents.checkpoint import load_agent
from offlinerl.cli import main
from offlinerl.data import edit, formats, registry, tables
from offlinerl.data.d4rl import load_hdf5
from offlinerl.data.episode import Episode
from offlinerl.data.load import load
from offlinerl.data.mapping import parse_columns
from offlinerl.data.minari_writer import write_minari
from offlinerl.data.validate import validate
from offlinerl.envs.make import make
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_leaves

FEW = dict(updates=6, eval_every=3, batch=8, compile=False)


@pytest.fixture
def here(tmp_path):
    with empty_workplace(tmp_path) as folder:
        yield folder


def episode(number, steps=None, O=3, A=2):
    """T + 1 observations and T steps; all numbers differ, also between episodes. Episodes of odd numbers terminate."""
    rng = np.random.default_rng(number)
    T = 4 + number % 4 if steps is None else steps
    return dict(
        obs=rng.normal(size=(T + 1, O)).astype(np.float32), action=rng.uniform(-1, 1, (T, A)).astype(np.float32),
        reward=rng.normal(size=T).astype(np.float32), terminated=(np.arange(T) == T - 1) & bool(number % 2),
    )  # fmt: skip


EPISODES = [episode(number) for number in range(7)]


def expected(episodes=EPISODES, final=True):
    """All transitions, computed in plain loops; without ``final``, there is no observation after the last step."""
    rows = []
    for one in episodes:
        T = len(one["action"])
        kept = T if final or one["terminated"][-1] else T - 1
        for t in range(kept):
            ends = not final and t == T - 1  # its successor is unknown and not needed
            successor = one["obs"][t] if ends else one["obs"][t + 1]
            rows.append(
                (one["obs"][t], successor, one["action"][t], one["reward"][t], one["terminated"][t], t == kept - 1)
            )
    return [np.array(column) for column in zip(*rows, strict=True)]


def assert_rows(data, episodes=EPISODES, final=True):
    got = (data.obs, data.next_obs, data.action, data.reward, data.terminated, data.last)
    names = ("obs", "next_obs", "action", "reward", "terminated", "last")
    for name, have, due in zip(names, got, expected(episodes, final), strict=True):
        np.testing.assert_array_equal(have, due, name)
    assert data.obs.dtype == data.action.dtype == data.reward.dtype == np.float32
    assert data.terminated.dtype == data.last.dtype == bool


def acts(path, capsys, agents=("bc", "xql"), **more):
    """The file can be shown, has no faults, and can be trained on without an environment."""
    assert main(["datasets", "show", str(path)]) == 0
    assert main(["datasets", "validate", str(path)]) == 0, capsys.readouterr()
    for agent in agents:
        run = offlinerl.fit(agent, path, over=dict(train=FEW), **more)
        data = offlinerl.load_dataset(path, **more)
        assert offlinerl.load_policy(run.folder)(data.obs[0]).shape == data.action[0].shape
        assert np.isfinite(list(run.summary["held_out"].values())).all()
    return run


# robomimic


def robomimic(path, episodes=EPISODES, next_obs=True, images=False):
    """As robomimic's dataset_states_to_obs.py writes it, with demonstrations in no particular order."""
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps(dict(env_name="Lift", type=1, env_kwargs={}))
        for number in reversed(range(len(episodes))):
            one, demo = episodes[number], file.create_group(f"data/demo_{number}")
            demo.attrs["num_samples"] = len(one["action"])
            demo["actions"], demo["rewards"] = one["action"], one["reward"]
            demo["dones"], demo["states"] = one["terminated"].astype(np.int64), np.zeros((len(one["action"]), 9))
            for name, shown in dict(obs=one["obs"][:-1], **(dict(next_obs=one["obs"][1:]) if next_obs else {})).items():
                demo[f"{name}/eef_pos"], demo[f"{name}/gripper"] = shown[:, :2].astype(np.float64), shown[:, 2:]
                if images:
                    demo[f"{name}/agentview_image"] = picture(shown)
        chosen = [f"demo_{number}" for number in range(0, len(episodes), 2)]
        file["mask/train"] = np.array(chosen, dtype="S8")
    return path


def picture(shown):
    """Images [T, 16, 16, 3] that differ between observations."""
    return np.broadcast_to((np.abs(shown[:, :1, None, None]) * 50).astype(np.uint8), (len(shown), 16, 16, 3)).copy()


def test_robomimic_rows_are_those_written(here, capsys):
    robomimic(here / "lift.hdf5")
    data = offlinerl.load_dataset("lift.hdf5")
    assert_rows(data)
    assert data.provenance["format"] == "robomimic HDF5" and data.provenance["rows_dropped"] == 0
    assert len(first := list(tree_leaves(data.observations))) == 1 and len(first[0][1]) == len(data) + len(EPISODES)
    acts(here / "lift.hdf5", capsys)


def test_robomimic_without_next_obs_lacks_the_last_step_of_truncated_episodes(here):
    data = offlinerl.load_dataset(robomimic(here / "lift.hdf5", next_obs=False))
    assert_rows(data, final=False)
    assert data.provenance["rows_dropped"] == 4  # of the four episodes that do not terminate


def test_robomimic_subsets_choose_demonstrations_and_obs_keys_choose_parts(here, capsys):
    path = robomimic(here / "lift.hdf5", images=True)
    assert_rows(offlinerl.load_dataset(path, subset="train", obs_keys=["eef_pos", "gripper"]), EPISODES[::2])
    turned = offlinerl.load_dataset(path, obs_keys=["gripper", "eef_pos"])
    np.testing.assert_array_equal(turned.obs, expected()[0][:, [2, 0, 1]])
    whole = offlinerl.load_dataset(path)
    assert set(whole.observations) == {"agentview_image", "eef_pos", "gripper"}
    np.testing.assert_array_equal(whole.next_obs["agentview_image"], picture(expected()[1]))
    assert main(["fit", "bc", "--dataset", str(path), "--subset", "valid"]) == 1
    assert "has no subset 'valid'; it has train" in capsys.readouterr().err
    assert main(["fit", "bc", "--dataset", str(path), "--obs-keys", "joints"]) == 1
    assert "no part 'joints'; they have agentview_image, eef_pos, gripper" in capsys.readouterr().err
    run = offlinerl.fit("bc", path, over=dict(train=FEW))
    assert run.policy({name: leaf[0] for name, leaf in whole.obs.items()}).shape == (2,)
    assert validate(str(path)) == []  # also of successors with several parts
    with h5py.File(path, "a") as file:
        file["data/demo_2/next_obs/agentview_image"][1, 3, 4, 2] += 9
    (found,) = validate(str(path))
    assert found.kind == "jump" and found.rows.tolist() == [len(EPISODES[0]["action"]) + len(EPISODES[1]["action"]) + 1]


def test_robomimic_files_without_observations_say_what_to_run(here, capsys):
    with h5py.File("demo.hdf5", "w") as file:
        file["data/demo_0/actions"], file["data/demo_0/states"] = np.zeros((3, 2)), np.zeros((3, 5))
    assert main(["datasets", "show", "demo.hdf5"]) == 1
    assert "demo_0 has no observations; make them with robomimic's dataset_states_to_obs.py" in capsys.readouterr().err


def test_parts_of_all_demonstrations_are_read_in_the_order_of_the_first(here):
    robomimic(here / "lift.hdf5")
    with h5py.File("lift.hdf5", "a") as file:  # written in another order, which the file keeps
        demo = file["data/demo_2"]
        parts = {name: {key: demo[name][key][()] for key in demo[name]} for name in ("obs", "next_obs")}
        for name, of in parts.items():
            del demo[name]
            turned = demo.create_group(name, track_order=True)
            for key in reversed(of):
                turned[key] = of[key]
    assert_rows(offlinerl.load_dataset("lift.hdf5"))
    with h5py.File("lift.hdf5", "a") as file:
        file["data/demo_2"].move("next_obs/gripper", "next_obs/joint")
    with pytest.raises(UserError, match="demo_2: next_obs of shape"):
        offlinerl.load_dataset("lift.hdf5")
    with h5py.File("lift.hdf5", "a") as file:
        file["data/demo_2"].move("next_obs/eef_pos", "next_obs/arm")
    with pytest.raises(UserError, match="demo_2: observations have no part 'eef_pos'; they have joint, arm"):
        offlinerl.load_dataset("lift.hdf5")


def test_a_demonstration_with_other_parts_is_named(here):
    """The parts have the same width, so they could be confused."""
    robomimic(here / "lift.hdf5")
    with h5py.File("lift.hdf5", "a") as file:
        for name in ("obs", "next_obs"):
            file["data/demo_2"].move(f"{name}/gripper", f"{name}/a_joint")
    with pytest.raises(UserError, match="demo_2 has the part 'a_joint' of observations, unlike the demonstrations bef"):
        offlinerl.load_dataset("lift.hdf5")
    with h5py.File("lift.hdf5", "a") as file:
        del file["data/demo_1/obs/eef_pos"]
    with pytest.raises(UserError, match="demo_1 lacks the part 'eef_pos' of observations, unlike the demonstrations b"):
        offlinerl.load_dataset("lift.hdf5")
    robomimic(here / "lift.hdf5")
    with h5py.File("lift.hdf5", "a") as file:
        file["data/demo_2/obs/more"] = file["data/demo_2/next_obs/more"] = np.zeros((6, 1))
    assert_rows(offlinerl.load_dataset("lift.hdf5", obs_keys=["eef_pos", "gripper"]))


@pytest.mark.parametrize(
    ("place", "content", "says"),
    [
        ("obs/gripper", np.zeros((2, 1)), "demo_2: the parts of its observations have unequal lengths: eef_pos 6 r"),
        ("obs/gripper", 3.0, "unequal lengths: eef_pos 6 rows, gripper no rows; record it again"),
        ("next_obs/gripper", np.zeros((2, 1)), "demo_2: the parts of its observations have unequal lengths"),
        ("obs", np.zeros((6, 3)), "demo_2: obs is one array, and must be a group of them, as in obs/eef; rec"),
        ("obs/gripper/left", np.zeros((6, 1)), "demo_2: obs/gripper is a group, and must be an array; record it again"),
        ("", np.zeros(3), "demo_2 has no observations; make them with robomimic's dataset_states_to_obs.py"),
        ("actions", 3.0, "demo_2 is damaged or does not have the expected contents"),
    ],
)  # fmt: skip
def test_a_damaged_demonstration_is_named(here, capsys, place, content, says):
    robomimic(here / "lift.hdf5")
    with h5py.File("lift.hdf5", "a") as file:
        del file["/".join(f"data/demo_2/{place}".rstrip("/").split("/")[:4])]
        file[f"data/demo_2/{place}"] = content
    for command in ("show", "validate"):
        assert main(["datasets", command, "lift.hdf5"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line


def test_a_subset_must_list_existing_demonstrations(here, capsys):
    robomimic(here / "lift.hdf5")
    with h5py.File("lift.hdf5", "a") as file:
        file["mask/far"] = np.array(["demo_0", "demo_9"], "S8")
    for command in ("show", "validate"):
        assert main(["datasets", command, "lift.hdf5", "--subset", "far"]) == 1
        assert "the subset 'far' lists demo_9, which the file does not have" in capsys.readouterr().err


# OGBench


def ogbench(path, episodes=EPISODES):
    """T + 1 rows per trajectory; the last action has no effect."""
    rows = [
        (one["obs"], np.concatenate([one["action"], np.full((1, 2), 99, np.float32)]),
         np.arange(len(one["obs"])) == len(one["action"]))
        for one in episodes
    ]  # fmt: skip
    names, columns = ("observations", "actions", "terminals"), map(np.concatenate, zip(*rows, strict=True))
    np.savez_compressed(
        path, **dict(zip(names, columns, strict=True)), qpos=np.zeros((sum(len(r[0]) for r in rows), 4))
    )
    return path


def no_ends(episodes=EPISODES):
    zeros = dict(reward=0, terminated=False)
    return [one | {name: np.full_like(one[name], value) for name, value in zeros.items()} for one in episodes]


def test_ogbench_rows_are_those_written(here, capsys):
    path = ogbench(here / "cube-single-play-v0.npz")
    data = offlinerl.load_dataset(path)
    assert_rows(data, no_ends())
    assert not (data.action == 99).any(), "the action that led nowhere is not used"
    assert data.provenance["rows_in_source"] == len(data)
    acts(path, capsys)
    assert "all rewards are 0" in capsys.readouterr().out


def test_ogbench_rows_equal_those_of_ogbenchs_loader(here):
    ogbench_utils = pytest.importorskip("ogbench.utils", reason="ogbench is not installed")
    path = ogbench(here / "cube-single-play-v0.npz")
    theirs, ours = ogbench_utils.load_dataset(str(path)), offlinerl.load_dataset(path)
    for name, column in dict(observations=ours.obs, next_observations=ours.next_obs, actions=ours.action).items():
        np.testing.assert_array_equal(column, theirs[name])
    np.testing.assert_array_equal(ours.last, theirs["terminals"] == 1)


def ogbench_as_loaded(path, layout, **more):
    """The arrays that ``ogbench.utils.load_dataset`` returns in its two layouts, written to a file."""
    raw = np.load(ogbench(path.with_name("raw.npz")))
    obs, action, final = raw["observations"], raw["actions"], raw["terminals"]
    marks = np.r_[final[1:], True]  # the last steps
    if layout == "compact":
        columns = dict(observations=obs, actions=action, terminals=final | marks, valids=1.0 - final)
    else:
        columns = dict(observations=obs[~final], actions=action[~final], terminals=marks[~final])
        columns["next_observations"] = obs[np.r_[False, ~final[:-1]]]
    columns["terminals"] = columns["terminals"].astype(np.float32)
    np.savez(path, **columns, **more)
    return path


@pytest.mark.parametrize("layout", ["compact", "regular"])
def test_arrays_of_ogbenchs_loader_are_read_like_its_files(here, capsys, layout):
    path = ogbench_as_loaded(here / "play.npz", layout)
    assert_rows(offlinerl.load_dataset(path), no_ends())
    acts(path, capsys, ("bc",))
    ogbench_utils = pytest.importorskip("ogbench.utils", reason="ogbench is not installed")
    theirs = ogbench_utils.load_dataset(str(here / "raw.npz"), compact_dataset=layout == "compact")
    for name, column in np.load(path).items():
        np.testing.assert_array_equal(column, theirs[name])


def test_ogbenchs_single_tasks_in_the_compact_layout_end_where_trajectories_do(here):
    rows = [len(one["obs"]) for one in EPISODES]
    rewards, masks = np.arange(sum(rows), dtype=np.float32), np.arange(sum(rows)) % 3 > 0
    data = offlinerl.load_dataset(ogbench_as_loaded(here / "play.npz", "compact", rewards=rewards, masks=masks))
    valid = np.load("play.npz")["valids"] == 1
    np.testing.assert_array_equal(data.obs, expected()[0])
    np.testing.assert_array_equal(data.reward, rewards[valid])
    np.testing.assert_array_equal(data.terminated, ~masks[valid])
    assert data.episode_lengths.tolist() == [T - 1 for T in rows] and validate("play.npz") == []


def test_arrays_that_only_resemble_ogbenchs_layouts_are_read_as_tables(here):
    ends = np.arange(6) % 3 == 2
    columns = dict(observations=np.arange(6.0), actions=np.zeros(6), next_observations=np.arange(1.0, 7))
    for more in (dict(terminals=ends), dict(terminals=ends.astype(np.float32), rewards=np.ones(6))):
        np.savez("mine.npz", **columns, **more)
        assert offlinerl.load_dataset("mine.npz").terminated.tolist() == ends.tolist()
    np.savez("mine.npz", **columns, terminals=ends, rewards=np.ones(6), valids=np.arange(6) != 4)
    assert offlinerl.load_dataset("mine.npz").provenance["format"] == "table"
    del columns["next_observations"]
    np.savez("mine.npz", **columns, terminals=ends, rewards=np.ones(6), valids=~ends)
    assert offlinerl.load_dataset("mine.npz").provenance["format"] == "table"


def test_an_npz_like_ogbenchs_with_other_ends_is_refused_but_readable_as_a_table(here, capsys):
    one = EPISODES[1]
    columns = dict(observations=one["obs"][:-1], actions=one["action"], terminals=np.zeros(len(one["action"])))
    np.savez("mine.npz", **columns)
    assert main(["datasets", "show", "mine.npz"]) == 1
    assert "the last row is not the end of a trajectory" in capsys.readouterr().err
    data = offlinerl.load_dataset("mine.npz", columns="obs=observations action=actions terminated=terminals")
    assert_rows(data, [one | dict(reward=one["reward"] * 0, terminated=np.zeros_like(one["terminated"]))], final=False)


def test_ogbench_images_and_discrete_actions(here):
    images = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 6), np.uint8)
    np.savez("powderworld.npz", observations=images, actions=np.arange(12) % 3, terminals=np.arange(12) % 6 == 5)
    data = offlinerl.load_dataset("powderworld.npz")
    np.testing.assert_array_equal(data.obs, images[[0, 1, 2, 3, 4, 6, 7, 8, 9, 10]])
    np.testing.assert_array_equal(data.next_obs, images[[1, 2, 3, 4, 5, 7, 8, 9, 10, 11]])
    assert data.action[:, 0].tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 0, 1] and data.provenance["action_dtype"] == "int64"


# d3rlpy


def d3rlpy(path, episodes=EPISODES, discrete=False):
    """As d3rlpy 2.8.1's ``ReplayBuffer.dump`` does."""
    columns = ["observations", "actions", "rewards", "terminated"]
    with h5py.File(path, "w") as file:
        file["columns"], file["num_episodes"], file["version"] = columns, len(episodes), "2.1"
        for number, one in enumerate(episodes):
            action = (one["action"][:, :1] > 0).astype(np.int64) if discrete else one["action"]
            values = (one["obs"][:-1], action, one["reward"][:, None], bool(one["terminated"][-1]))
            for name, value in zip(columns, values, strict=True):
                file[f"{name}_{number}"] = value
    return path


def test_d3rlpy_rows_are_those_written(here, capsys):
    path = d3rlpy(here / "replay.h5")
    data = offlinerl.load_dataset(path)
    assert_rows(data, final=False)
    assert data.provenance["format"] == "d3rlpy HDF5" and data.provenance["rows_dropped"] == 4
    acts(path, capsys)
    assert (
        offlinerl.fit("dqn", d3rlpy(here / "choices.h5", discrete=True), over=dict(train=FEW)).policy.spec.num_actions
        == 2
    )


def test_a_missing_episode_of_a_d3rlpy_file_is_named(here, capsys):
    path = d3rlpy(here / "replay.h5")
    for name in ("rewards_5", "observations_5"):
        with h5py.File(path, "a") as file:
            del file[name]
        assert main(["datasets", "show", str(path)]) == 1
        assert f"episode 5: there are no {name}, though it has 7 episodes; write it again" in capsys.readouterr().err


def test_d3rlpy_reads_the_same_of_the_file(here):
    """d3rlpy itself can read the file of the test above."""
    dataset = pytest.importorskip("d3rlpy.dataset", reason="d3rlpy is not installed")
    with d3rlpy(here / "replay.h5").open("rb") as file:
        theirs = dataset.ReplayBuffer.load(file, dataset.InfiniteBuffer())
    ours = offlinerl.load_dataset("replay.h5")
    assert sum(episode.transition_count for episode in theirs.episodes) == len(ours)


# Tables


def write_csv(path, episodes=EPISODES, final=False, delimiter=",", ids=str):
    """One row per step; with ``final``, an additional row with the last observation and blanks."""
    lines = ["x,y,angle,u,v,r,ended,run"]
    for number, one in enumerate(episodes):
        for obs, *step in zip(one["obs"], one["action"], one["reward"], one["terminated"], strict=False):
            action, reward, over = step
            cells = [*map(float, obs), *map(float, action), float(reward), int(over), ids(number)]
            lines.append(",".join(map(str, cells)))
        if final:
            lines.append(",".join([*(str(float(x)) for x in one["obs"][-1]), "", "", "", "", ids(number)]))
    path.write_text("\n".join(line.replace(",", delimiter) for line in lines) + "\n")
    return path


COLUMNS = ["obs=x,y,angle", "action=u,v", "reward=r", "terminated=ended", "episode=run"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_rows_are_those_written(here, delimiter):
    data = offlinerl.load_dataset(write_csv(here / "log.csv", delimiter=delimiter), columns=COLUMNS)
    assert_rows(data, final=False)
    assert data.provenance["rows_dropped"] == 4
    assert_rows(offlinerl.load_dataset(write_csv(here / "final.csv", final=True), columns=COLUMNS))


def test_columns_need_to_be_given_only_once(here, capsys):
    write_csv(here / "log.csv", final=True)
    assert main(["datasets", "show", "log.csv"]) == 1
    said = capsys.readouterr().err
    assert "no column is known to hold the observations; say which, as in --columns" in said and "x, y, angle" in said
    assert main(["datasets", "show", "log.csv", "--columns", *COLUMNS]) == 0
    assert yaml.safe_load(Path("log.csv.columns.yaml").read_text())["obs"] == ["x", "y", "angle"]
    assert_rows(offlinerl.load_dataset("log.csv"))
    acts(here / "log.csv", capsys)
    assert main(["datasets", "show", "log.csv", "--columns", "obs=x,y", *COLUMNS[1:]]) == 0
    assert offlinerl.load_dataset("log.csv").obs.shape[1] == 2, "what is given again replaces what was"
    assert "# before: - angle\n" in Path("log.csv.columns.yaml").read_text(), "but does not lose it"
    few = dict(train=dict(updates=2, batch=4, compile=False))
    capsys.readouterr()
    offlinerl.fit("bc", "log.csv", columns=COLUMNS, over=few)
    assert "log.csv.columns.yaml had other columns, which it keeps as a comment: obs=x,y " in capsys.readouterr().out
    offlinerl.fit("bc", "log.csv", columns=COLUMNS, over=few)
    assert "had other columns" not in capsys.readouterr().out


def test_a_column_that_tells_episodes_apart_but_is_not_used_is_named(here, capsys):
    Path("log.csv").write_text("x,u,done,episode\n" + "".join(f"{i},0.5,{i == 5:d},{i // 2}\n" for i in range(6)))
    columns = ["obs=x", "action=u", "terminated=done"]
    said = "the column episode is not used to tell episodes apart: add episode=episode to --columns"
    for command in ("show", "validate"):
        assert main(["datasets", command, "log.csv", "--columns", *columns]) == 0
        assert said in " ".join(capsys.readouterr().out.split())
    offlinerl.fit("bc", "log.csv", over=dict(train=dict(updates=2, batch=4, compile=False)))
    assert said in capsys.readouterr().out
    assert main(["datasets", "validate", "log.csv", "--columns", *columns, "episode=episode"]) == 0
    assert "not used" not in capsys.readouterr().out


def recorded(run):
    """The columns that a run says it was trained on."""
    return yaml.safe_load((Path(run) / "config.yaml").read_text())["fit"].get("columns")


def without_columns(run):
    """As a run of an older version, which recorded only the columns that were given."""
    config = yaml.safe_load((Path(run) / "config.yaml").read_text())
    del config["fit"]["columns"]
    (Path(run) / "config.yaml").write_text(yaml.safe_dump(config))


LONGER = dict(over=dict(train=dict(updates=8)))


def test_a_run_records_the_columns_that_were_stored_and_only_new_ones_are_stored(here, capsys):
    log, stored = write_csv(here / "log.csv", final=True), Path("log.csv.columns.yaml")
    few, turned = dict(over=dict(train=FEW)), ["obs=angle,y,x", *COLUMNS[1:]]
    offlinerl.fit("bc", log, columns=COLUMNS, out="given", **few)
    assert yaml.safe_load(stored.read_text()) == parse_columns(COLUMNS)
    offlinerl.fit("bc", log, out="found", **few)
    assert recorded("given") == recorded("found") == parse_columns(COLUMNS)
    offlinerl.fit("bc", log, columns=turned, out="turned", **few)
    assert yaml.safe_load(stored.read_text()) == parse_columns(turned)
    capsys.readouterr()
    offlinerl.select(["given", "found"], updates=2, critics=2)
    assert "its contents are not those" not in capsys.readouterr().out
    for run in ("given", "found"):
        assert offlinerl.fit(resume=run, **LONGER).summary["updates"] == 8
    offlinerl.fit(file=Path("given/config.yaml"), out="again")
    assert recorded("again") == parse_columns(COLUMNS)
    assert yaml.safe_load(stored.read_text()) == parse_columns(turned), "what none of these commands was given"
    without_columns("turned")
    offlinerl.fit(resume="turned", **LONGER)
    assert recorded("turned") == parse_columns(turned)
    without_columns("found")
    with pytest.raises(UserError, match="its contents differ"):
        offlinerl.fit(resume="found", **LONGER)


def test_a_run_records_the_columns_that_were_recognised(here):
    Path("logs").mkdir()
    for name in ("log.csv", "logs/a.csv", "logs/b.csv"):
        Path(name).write_text("obs_x,obs_y,action,done\n" + "1,2,.3,0\n3,4,.4,0\n5,6,.5,1\n" * 8)

    def cached():
        return {path: path.stat().st_mtime_ns for path in Path("cache/tables").rglob("*.npy")}

    for number, dataset in enumerate((here / "log.csv", here / "logs")):
        run = offlinerl.fit("bc", dataset, over=dict(train=FEW | dict(table="disk")), out=f"run{number}")
        assert recorded(run.folder) == offlinerl.load_dataset(dataset).provenance["columns"]
        assert recorded(run.folder)["obs"] == ["obs[._]*"]
        files = cached()
        assert files and offlinerl.fit(resume=run.folder, **LONGER).summary["updates"] == 8
        assert cached() == files, "nothing is written twice"
    assert not [*Path().rglob("*columns.yaml")]
    Path("logs/b.csv").write_text("obs_x,obs_y,action,action_logp,done\n" + "1,2,.3,0,0\n3,4,.4,0,1\n" * 8)
    Path("logs/a.csv").rename("logs/c.csv")
    run = offlinerl.fit("bc", "logs", over=dict(train=FEW), out="partly")
    assert offlinerl.fit(resume=run.folder, **LONGER).summary["updates"] == 8


def test_the_columns_of_a_run_are_not_those_of_every_other_dataset(here):
    few = dict(over=dict(train=FEW))
    log, config = write_csv(here / "log.csv"), Path("run/config.yaml")
    offlinerl.fit("bc", log, columns=COLUMNS, out="run", **few)
    write_csv(here / "other.csv")
    assert recorded(offlinerl.fit(file=config, dataset="other.csv", **few).folder) == parse_columns(COLUMNS)
    turned = ["obs=angle,y,x", *COLUMNS[1:]]
    offlinerl.load_dataset("other.csv", columns=turned)
    assert recorded(offlinerl.fit(file=config, dataset="other.csv", **few).folder) == parse_columns(turned)
    Path("log.csv.columns.yaml").write_text(yaml.safe_dump(parse_columns(turned)))
    assert recorded(offlinerl.fit(file=config, dataset="log.csv", **few).folder) == parse_columns(COLUMNS)
    data = offlinerl.load_dataset("other.csv", columns=COLUMNS)
    for dataset in (data, robomimic(here / "lift.hdf5")):
        assert recorded(offlinerl.fit(file=config, dataset=dataset, **few).folder) is None
    assert offlinerl.fit(resume="run", dataset=data, **LONGER).summary["updates"] == 8


def test_episodes_may_have_words_as_ids_and_interleaved_rows(here):
    """Two robots wrote into one log, and its rows are not in the order of time."""
    one, other = EPISODES[0], EPISODES[1]
    rows = [
        dict(x=obs[0], y=obs[1], angle=obs[2], u=action[0], v=action[1], r=reward, ended=over, run=name, t=t)
        for name, of in (("b", one), ("a", other))
        for t, (obs, action, reward, over) in enumerate(
            zip(of["obs"], of["action"], of["reward"], of["terminated"], strict=False)
        )
    ]  # fmt: skip
    mixed = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    text = ",".join(rows[0]) + "\n" + "\n".join(",".join(str(value) for value in row.values()) for row in mixed)
    Path("log.csv").write_text(text)
    data = offlinerl.load_dataset("log.csv", columns=[*COLUMNS, "step=t"])
    first = [one, other] if mixed[0]["run"] == "b" else [other, one]
    assert_rows(data, first, final=False)


def test_parquet_npz_and_frames_are_tables_too(here, capsys):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    frame = pandas.read_csv(write_csv(here / "log.csv"))
    frame["run"] = frame["run"].map("run {}".format)
    assert_rows(offlinerl.load_dataset(frame, columns=COLUMNS), final=False)
    run = offlinerl.fit("bc", frame, columns=COLUMNS, over=dict(train=FEW))
    assert run.summary["dataset"] == "frame"
    frame.to_parquet("log.parquet")
    assert_rows(offlinerl.load_dataset("log.parquet", columns=COLUMNS), final=False)
    acts(here / "log.parquet", capsys)
    state, action = (list(frame[names].to_numpy()) for names in (["x", "y", "angle"], ["u", "v"]))
    ends = dict(done=frame["ended"].astype(bool), episode_id=frame["run"])
    wide = pandas.DataFrame(dict(state=state, action=action, reward=frame["r"], **ends))
    wide.to_parquet("wide.parquet")
    data = offlinerl.load_dataset("wide.parquet")  # recognised by the usual names
    np.testing.assert_array_equal(data.obs, offlinerl.load_dataset("log.parquet").obs)
    np.savez("log.npz", **{name: np.stack(wide[name]) for name in ("state", "action", "reward")}, done=wide["done"],
             episode_id=frame["run"].to_numpy(str))  # fmt: skip
    np.testing.assert_array_equal(offlinerl.load_dataset("log.npz").next_obs, data.next_obs)
    run = acts(here / "log.npz", capsys, ("bc",))
    assert "obs=state" in capsys.readouterr().out


def test_frames_of_numbered_columns_and_episodes_without_a_name(here):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(np.arange(12.0).reshape(4, 3))
    data = offlinerl.load_dataset(frame, columns=dict(obs=["0", "2"], action=["1"]))
    np.testing.assert_array_equal(data.obs, [[0, 2], [3, 5], [6, 8]])
    for ids in (["a", None, "b", "b"], [1.0, np.nan, 2.0, 2.0], [1, pandas.NA, 2, 2]):
        named = dict(obs=np.arange(4.0), action=np.arange(4.0), episode=ids)
        with pytest.raises(UserError, match="row 1 does not say which episode it is of"):
            offlinerl.load_dataset(pandas.DataFrame(named))


def test_an_episode_begins_where_step_numbers_restart(here):
    lines = [f"{10 * number + t},{t},1" for number in range(3) for t in range(number + 1)]
    Path("log.csv").write_text("\n".join(["x,t,u", *lines]))
    data = offlinerl.load_dataset("log.csv", columns="obs=x action=u step=t")
    np.testing.assert_array_equal(data.obs[:, 0], [10, 20, 21])
    np.testing.assert_array_equal(data.next_obs[:, 0], [11, 21, 22])
    np.testing.assert_array_equal(data.last, [True, False, True])
    assert data.provenance["episode_ends"] == "step"


STEPS = "obs=x action=u step=t"


def write_steps(path, steps):
    """A table of rows with these numbers or times."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(["x,t,u\n", *(f"{row / 10},{step},{row % 3 / 10}\n" for row, step in enumerate(steps))]))


def notes(source, columns=STEPS):
    """What is odd about the rows of a table with a reward of 0."""
    entry = registry.limited(registry.resolve(str(source)), dict(columns=columns))
    return {finding.kind: finding.message for finding in validate(entry) if finding.kind != "no rewards"}


@pytest.mark.parametrize(
    "steps",
    [
        [0, 1, 2, 3, 0, 1, 2],
        [5, 6, 7, 5, 6, 5, 5, 6],
        [0.002, 0.11, 0.2, 0.31, 0.009, 0.1, 0.2, 0, 0.1],
        [1000.5, 1001.5, 1002.5, 200.5, 201.5, 202.5],  # another clock
        [3, 4, 5, 0, 1, 2],
    ],
)
def test_steps_that_start_again_are_no_fault(here, steps):
    write_steps(here / "log.csv", steps)
    assert notes("log.csv") == {}


@pytest.mark.parametrize(
    ("steps", "row", "number"),
    [
        ([0, 1, 1, 2, 3], 2, 1),
        ([0, 0, 1, 2, 3], 1, 1),
        ([0, 1, 3, 2, 4, 5], 3, 1),
        ([1, 0, 2, 3, 4], 1, 1),
        ([0, 1, 2, 3, 0, 1, 2, 2, 3], 7, 1),
        ([100.0, 100.1, 100.2, 100.2, 100.3, 100.25, 100.4], 3, 2),
        (["2026-01-31T12:00:00", "2026-01-31T12:00:02", "2026-01-31T12:00:01", "2026-01-31T12:00:03"], 2, 1),
    ],
)
def test_rows_that_are_not_in_the_order_of_their_steps_are_told(here, capsys, steps, row, number):
    write_steps(here / "log.csv", steps)
    said = f"log.csv: step does not increase at row {row}, so a new episode begins there"
    said += f"; {number} such rows: remove" if number > 1 else ": remove"
    assert notes("log.csv")["step order"].startswith(said)
    write_steps(here / "logs/1.csv", range(5))
    write_steps(here / "logs/2.csv", steps)
    write_steps(here / "logs/3.csv", [0, 1, 2, 2, 3])
    said = (
        f"2.csv: step does not increase at row {row}, so a new episode begins there; {number + 1} such rows in 2 files"
    )
    assert notes("logs")["step order"].startswith(said)
    capsys.readouterr()
    assert main(["datasets", "show", "logs"]) == 0 and said in " ".join(capsys.readouterr().out.split())
    assert load("logs", table="disk").provenance == load("logs").provenance
    if number == 1:
        offlinerl.fit("bc", "logs", over=dict(train=FEW))
        assert said in capsys.readouterr().out


def test_an_end_that_is_marked_explains_why_the_step_falls(here):
    Path("log.csv").write_text("x,u,t,done\n1,.1,0,0\n2,.2,1,1\n3,.3,1,0\n4,.4,2,0\n5,.5,3,1\n")
    assert notes("log.csv", f"{STEPS} truncated=done") == {}
    assert offlinerl.load_dataset("log.csv").provenance["episode_ends"] == "step and truncated"


@pytest.mark.parametrize("kind", ["seconds", "dates", "numbers", "runs"])
def test_rows_that_seem_to_be_missing_are_told(here, kind):
    times = 0.1 * np.delete(np.arange(30), [12, 13, 14, 20])
    if kind == "dates":
        start = np.datetime64("2026-01-31T12:00:00.000")
        times = [start + np.timedelta64(round(1000 * time), "ms") for time in times]
    elif kind == "numbers":
        times = np.rint(10 * times).astype(int)
    write_steps(here / "log.csv", times)
    write_steps(here / "logs/0.csv", range(9))
    columns = STEPS
    if kind == "runs":  # rows of two episodes in any order
        header, *rows = (here / "log.csv").read_text().splitlines()
        both = [f"{'-' * (run == 'b')}{row},{run}" for row in rows for run in "ab"]
        Path("log.csv").write_text("\n".join([f"{header},run", *both[::-1]]))
        columns += " episode=run"
    steps, usual = 4 if kind == "runs" else 2, "1, up to 4" if kind == "numbers" else "0.1, up to 0.4"
    said = f"in {steps} steps the time stamps advance by more than 1.5 times the median of {usual}: rows may be missing"
    found = notes("log.csv", columns)
    assert list(found) == ["missing rows"]
    assert found["missing rows"].startswith(said)
    if kind != "runs":
        assert found["missing rows"].endswith("first before row 12 of log.csv")
        write_steps(here / "logs/1.csv", times)
        assert notes("logs")["missing rows"].endswith("first before row 12 of 1.csv")


@pytest.mark.parametrize(
    "names", [("1.1", "1.10"), ("1_11", "11_1"), ("12e3", "120e2"), (str(1 << 64), str(1 + (1 << 64)))]
)
def test_episode_ids_are_compared_as_written(here, names):
    rows = [f"{row},0,{names[number]}" for row, number in enumerate((0, 1, 0, 1))]
    Path("log.csv").write_text("\n".join(["obs,action,episode", *rows]))
    data = offlinerl.load_dataset("log.csv")
    np.testing.assert_array_equal(np.c_[data.obs, data.next_obs], [[0, 2], [1, 3]])


def test_an_episode_column_may_also_be_an_observation(here):
    Path("log.csv").write_text("x,action,task\n5,0,1\n6,0,1\n7,0,2\n")
    data = offlinerl.load_dataset("log.csv", columns="obs=x,task action=action episode=task")
    np.testing.assert_array_equal(data.obs, [[5, 1]])


@pytest.mark.parametrize(("done", "cut"), [("done", "timeout"), ("dones", "truncated")])
@pytest.mark.parametrize("kind", ["csv", "hdf5"])
def test_an_end_by_time_limit_is_not_terminal(here, done, cut, kind):
    columns = dict(
        observations=np.arange(6.0)[:, None], actions=np.zeros((6, 1)), rewards=np.ones(6),
        **{done: np.arange(6) % 3 == 2, cut: np.arange(6) == 5},
    )  # fmt: skip
    if kind == "csv":
        lines = [",".join(str(float(cell.item())) for cell in row) for row in zip(*columns.values(), strict=True)]
        Path("log.csv").write_text("\n".join([",".join(columns), *lines]))
    else:
        with h5py.File("log.hdf5", "w") as file:
            file.update(columns)
    data = offlinerl.load_dataset(f"log.{kind}")
    assert data.obs[:, 0].tolist() == [0, 1, 2, 3, 4] and data.terminated.tolist() == [0, 0, 1, 0, 0]


def test_a_pattern_skips_columns_that_belong_to_another_field(here):
    Path("log.csv").write_text("obs_0,act_0,act_1,action_log_prob,done\n1,2,3,-5,0\n4,5,6,-6,1\n")
    data = offlinerl.load_dataset("log.csv")
    assert data.action.tolist() == [[2, 3], [5, 6]] and data.log_prob.tolist() == [-5, -6]
    for name in ("action_logp", "action_log_prob"):
        Path("log.csv").write_text(f"obs_0,action_0,action_1,{name},done\n1,2,3,-5,0\n4,5,6,-6,1\n")
        assert offlinerl.load_dataset("log.csv").action.tolist() == [[2, 3], [5, 6]]
    data = offlinerl.load_dataset("log.csv", columns="obs=obs_0 action=action_* reward=action_1")
    assert data.action.tolist() == [[2, -5]], "the last row has no successor"


def test_rows_are_sorted_by_their_steps_and_no_two_have_the_same(here):
    columns = "obs,action,episode,step"
    Path("log.csv").write_text(f"{columns}\n3,.3,0,2\n1,.1,0,0\n2,.2,0,1\n5,.5,1,1\n4,.4,1,0\n")
    assert offlinerl.load_dataset("log.csv").obs[:, 0].tolist() == [1, 2, 4]
    again = "1,.1,0,0\n2,.2,0,1\n101,.1,0,0\n102,.2,0,1\n"
    Path("log.csv").write_text(f"{columns}\n{again}")
    with pytest.raises(UserError, match="rows 0 and 2 are of one episode, 0, and of one step, 0: give every episode"):
        offlinerl.load_dataset("log.csv")
    Path("log.csv").write_text(f"obs,action,done,step\n{again}")  # which may count something else
    assert offlinerl.load_dataset("log.csv").episode_lengths.tolist() == [3]


@pytest.mark.parametrize("blank", ["", "nan", "inf"])
@pytest.mark.parametrize("columns", ["obs=x action=u step=t episode=run", "obs=x action=u step=t"])
def test_a_row_without_a_step_number_is_refused(here, columns, blank):
    rows = [f"{row},{blank if row == 2 else row},{row / 10},0" for row in range(5)]
    Path("log.csv").write_text("\n".join(["x,t,u,run", *rows]))
    with pytest.raises(UserError, match=r"log\.csv: row 2 does not say which step it is; repair or remove it"):
        offlinerl.load_dataset("log.csv", columns=columns)


def test_tables_of_a_folder_have_the_columns_of_the_first_one_in_its_order(here, capsys):
    (here / "logs").mkdir()
    Path("logs/a.csv").write_text("obs_x,obs_y,action,reward\n1,100,0,7\n2,200,0,7\n")
    Path("logs/b.csv").write_text("reward,obs_y,obs_x,action\n7,300,3,0\n7,400,4,0\n")
    data = offlinerl.load_dataset("logs")
    assert data.obs.tolist() == [[1, 100], [3, 300]] and data.reward.tolist() == [7, 7]
    assert data.provenance["columns"]["obs"] == ["obs[._]*"]
    assert validate("logs") == []
    given = offlinerl.load_dataset("logs", columns="obs=obs_* action=action")
    assert given.obs.tolist() == data.obs.tolist()
    Path("logs/columns.yaml").unlink()
    for header, says in {
        "reward,obs_y,action": "b.csv has no column 'obs_x', which logs/a.csv has for obs",
        "obs_y,obs_x,action": "b.csv has no column 'reward', which logs/a.csv has for reward",
        "obs_y,obs_x,obs_z,action,reward": "a.csv has no column 'obs_z', which logs/b.csv has for obs",
    }.items():
        Path("logs/b.csv").write_text(f"{header}\n" + 2 * (",".join("1" * len(header.split(","))) + "\n"))
        for command in ("show", "validate"):
            assert main(["datasets", command, "logs"]) == 1
            assert says in capsys.readouterr().err


def test_successors_must_have_the_parts_of_observations(here, capsys):
    Path("log.csv").write_text("x,y,z,nx,ny,u\n1,2,3,4,5,6\n1,2,3,4,5,6\n")
    for successors in ("nx", "nx,ny"):
        given = ["obs=x,y,z", f"next_obs={successors}", "action=u"]
        assert main(["datasets", "show", "log.csv", "--columns", *given]) == 1
        said = capsys.readouterr().err
        assert "next_obs of shape" in said and "do not match obs of shape (3,)" in said and len(said.splitlines()) == 1
    robomimic(here / "lift.hdf5", images=True)
    with h5py.File("lift.hdf5", "a") as file:
        del file["data/demo_1/next_obs/agentview_image"]
    assert main(["datasets", "show", "lift.hdf5"]) == 1
    assert "demo_1: next_obs of shape (3,) do not match obs of shape {'agentview_image'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "npz", "hdf5"])
def test_episodes_without_steps_are_skipped(here, kind):
    """A recording that was stopped immediately: it has one observation or none."""
    episodes = [episode(0), episode(1, 0), episode(2)]
    if kind == "csv":
        path = write_csv(here / "log.csv", episodes, final=True)
        data = offlinerl.load_dataset(path, columns=COLUMNS)
    else:
        data = offlinerl.load_dataset(path := dict(npz=ogbench, hdf5=robomimic)[kind](here / f"log.{kind}", episodes))
    assert_rows(data, [no_ends, list][kind != "npz"]([episodes[0], episodes[2]]))
    assert data.provenance["rows_dropped"] == 0
    assert [found.kind for found in validate(str(path))] == ([] if data.reward.any() else ["no rewards"])


def masked(**more):
    """Two trajectories of four steps: one reaches the goal in the middle, the other at the end."""
    columns = dict(
        observations=np.arange(8.0)[:, None], next_observations=np.arange(1.0, 9)[:, None], actions=np.zeros(8),
        rewards=-np.ones(8), masks=np.array([1, 0, 1, 1, 1, 1, 1, 0.0]),
    )  # fmt: skip
    return {name: column for name, column in {**columns, **more}.items() if column is not None}


def write_columns(path, columns):
    if path.suffix == ".npz":
        np.savez(path, **columns)
    else:
        with h5py.File(path, "w") as file:
            file.update(columns)
    return path


@pytest.mark.parametrize("kind", ["npz", "hdf5"])
@pytest.mark.parametrize("successors", [True, False])
@pytest.mark.parametrize("name", ["terminals", "dones_float", "timeouts"])
def test_masks_mark_terminations_and_other_flags_mark_ends(here, kind, successors, name):
    columns = masked(**{name: np.arange(8) % 4 == 3})
    if not successors:
        columns.pop("next_observations")
    data = offlinerl.load_dataset(write_columns(here / f"log.{kind}", columns))
    kept = np.flatnonzero(np.arange(8) != 3) if not successors else np.arange(8)  # then row 3 has no successor
    np.testing.assert_array_equal(data.obs[:, 0], kept)
    assert kept[data.terminated].tolist() == [1, 7] and data.episode_lengths.tolist() == [len(kept) - 4, 4]
    assert data.next_obs[1] == 2 and validate(str(here / f"log.{kind}")) == []


@pytest.mark.parametrize("kind", ["npz", "hdf5"])
def test_masks_alone_end_episodes(here, kind):
    data = offlinerl.load_dataset(write_columns(here / f"log.{kind}", masked()))
    assert np.flatnonzero(data.terminated).tolist() == [1, 7] and data.episode_lengths.tolist() == [2, 6]


@pytest.mark.parametrize("terminals", [None, np.zeros(8)])
def test_if_masks_and_terminals_mark_nothing_the_time_limit_ends_episodes(here, terminals):
    path = write_columns(here / "log.hdf5", masked(masks=np.ones(8), terminals=terminals))
    data = load_hdf5(path, max_episode_steps=4)
    assert data.episode_lengths.tolist() == [4, 4] and not data.terminated.any()


def test_masks_of_another_meaning_are_ignored_and_d4rl_mode_has_none(here):
    flags = dict(terminals=np.arange(8) % 4 == 3)
    for masks in (np.zeros((8, 4, 4)), np.full(8, 0.5)):
        data = offlinerl.load_dataset(write_columns(here / "log.hdf5", masked(**flags, masks=masks)))
        assert np.flatnonzero(data.terminated).tolist() == [3, 7]
    one, other = (load_hdf5(write_columns(here / "log.hdf5", masked(**flags, **more)), "d4rl") for more in (
        {}, dict(masks=None)))  # fmt: skip
    np.testing.assert_array_equal(one.obs, other.obs)
    np.testing.assert_array_equal(one.terminated, other.terminated)


@pytest.mark.parametrize("kind", ["npz", "hdf5"])
def test_masks_other_than_0_and_1_are_refused(here, kind):
    masks = np.where(np.arange(8) == 5, 0.5, 1)
    path = write_columns(here / f"log.{kind}", masked(masks=masks, terminals=np.arange(8) % 4 == 3))
    with pytest.raises(UserError, match=rf"log\.{kind}: masks? must be 0 or 1, but row 5 holds 0\.5; repair or remove"):
        offlinerl.load_dataset(path)


def test_a_mask_that_is_left_blank_ends_nothing(here):
    Path("log.csv").write_text("obs,action,masks,episode\n1,.1,1,0\n2,.2,0,0\n3,,,0\n4,.4,1,1\n5,,,1\n")
    data = offlinerl.load_dataset("log.csv")
    assert data.terminated.tolist() == [0, 1, 0] and data.next_obs[:, 0].tolist() == [2, 3, 5]


@pytest.mark.parametrize("kind", ["csv", "parquet", "frame"])
def test_missing_values_do_not_turn_whole_numbers_into_fractions(here, kind):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(dict(
        obs=np.arange(6.0), action=pandas.array([0, 1, None, 1, 0, None], "Int64"), episode=[0, 0, 0, 1, 1, 1],
        done=pandas.array([False, True, None, False, None, None], "boolean"),
    ))  # fmt: skip
    if kind == "csv":
        frame.to_csv("log.csv", index=False)
    elif kind == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        frame.to_parquet("log.parquet")
    data = offlinerl.load_dataset(frame if kind == "frame" else f"log.{kind}")
    assert data.provenance["action_dtype"] == "int64" and data.action[:, 0].tolist() == [0, 1, 1, 0]
    assert data.terminated.tolist() == [0, 1, 0, 0] and data.next_obs[:, 0].tolist() == [1, 2, 4, 5]
    frame["action"] = [0.0, 1, np.nan, 1, 0, np.nan]
    assert offlinerl.load_dataset(frame).provenance["action_dtype"] == "float64", "what is a fraction stays one"
    frame["action"] = pandas.array([None, 1, None, 1, 0, None], "Int64")
    with pytest.raises(UserError, match="actions has NaN or infinite values in 1 rows"):
        offlinerl.load_dataset(frame)


def test_cells_of_a_csv_file_keep_their_types(here):
    """Blank cells among numbers, spaces, whole numbers too large for 64 bits, and words."""
    Path("log.csv").write_text("a,b,c,d,e,f\n 1 ,1.5,,true, x,99999999999999999999\n2, ,inf,,y ,1\n-3,1e2, ,FALSE,,2\n")
    found = tables._table(Path("log.csv"), list("abcdef"))
    assert [found[name].dtype.kind for name in "abcdef"] == list("iffOUf")
    for name, due in dict(a=[1, 2, -3], b=[1.5, np.nan, 100], c=[np.nan, np.inf, np.nan], d=[1, None, 0],
                          e=["x", "y", ""], f=[1e20, 1, 2]).items():  # fmt: skip
        np.testing.assert_array_equal(found[name], due)


@pytest.mark.parametrize("kind", ["parquet", "fixed", "frame"])
@pytest.mark.parametrize("whole", [False, True])
def test_cells_that_are_lists_may_be_missing_in_an_episode_s_last_row(here, kind, whole):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as pq

    columns = "obs=x action=a reward=r episode=e"
    x = [[1.0, 2], [2, 3], [3, 4], [4, 5], [5, 6]]
    a = [[1], [0], None, [1], None] if whole else [[1.0, 2], [3, 4], None, [5, 6], None]
    table = dict(x=x, a=a, r=[1.0, 2, None, 3, None], e=[0, 0, 0, 1, 1])
    if kind == "fixed":
        table |= dict(x=pa.array(x, pa.list_(pa.float32(), 2)), a=pa.array(a, pa.list_(pa.float32(), 2 - whole)))
    pq.write_table(pa.table(table), "log.parquet")
    frame = kind == "frame"
    data = offlinerl.load_dataset(pandas.read_parquet("log.parquet") if frame else "log.parquet", columns=columns)
    assert data.obs.tolist() == [x[0], x[1], x[3]] and data.next_obs.tolist() == [x[1], x[2], x[4]]
    assert data.action.tolist() == [a[0], a[1], a[3]] and data.reward.tolist() == [1, 2, 3]
    kinds = dict(parquet="int64", frame="int64") if whole else {}
    assert data.provenance["action_dtype"] == kinds.get(kind, "float32" if kind == "fixed" else "float64")


def test_cells_that_are_lists_have_one_length(here):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(dict(obs=[[1, 2], (1,), np.ones(2)], action=[1.0, 2, 3]))
    with pytest.raises(UserError, match=r"the column obs .*unequal lengths: 1, 2\); give every row as many numbers"):
        offlinerl.load_dataset(frame)
    frame["obs"] = [[1, 2], "x", [2, 3]]
    with pytest.raises(UserError, match="column obs must be numbers, but row"):
        offlinerl.load_dataset(frame)
    frame["obs"] = list(np.arange(12).reshape(3, 2, 2).astype(np.uint8))
    assert offlinerl.load_dataset(frame).obs.shape == (2, 2, 2)


def test_a_blank_among_booleans_is_not_false(here):
    """A blank is not an action, and among flags it marks nothing."""
    columns = "obs=x action=a reward=r episode=e terminated=t"
    Path("log.csv").write_text(
        "x,a,r,e,t\n0,True,1,a,\n1,False,2,a,True\n2,,0,a,\n3,True,4,b,False\n4,True,4,b,False\n5,,,b,\n"
    )
    data = offlinerl.load_dataset("log.csv", columns=columns)
    assert data.action[:, 0].tolist() == [1, 0, 1, 1] and data.terminated.tolist() == [0, 1, 0, 0]
    assert data.next_obs[:, 0].tolist() == [1, 2, 4, 5] and data.provenance["action_dtype"] == "int64"
    for name, rows in dict(actions="0,True,1\n1,,2\n2,True,1\n", rewards="0,1,True\n1,2,\n2,1,False\n").items():
        Path("log.csv").write_text("x,a,r\n" + rows)
        with pytest.raises(UserError, match=f"{name} has NaN or infinite values in 1 rows, the first of them 1"):
            offlinerl.load_dataset("log.csv", columns="obs=x action=a reward=r")


@pytest.mark.parametrize("pattern", ["logs/**/*.csv", "logs/*/run.csv", "logs/mon???/run.csv"])
def test_the_columns_of_a_pattern_of_folders_are_written_above_them(here, pattern):
    (here / "logs" / "monday").mkdir(parents=True)
    write_csv(here / "logs" / "monday" / "run.csv")
    assert_rows(offlinerl.load_dataset(pattern, columns=COLUMNS), final=False)
    assert_rows(offlinerl.load_dataset(pattern), final=False)
    files = {file.relative_to(here).as_posix() for file in here.rglob("*")}
    assert files == {"logs", "logs/columns.yaml", "logs/monday", "logs/monday/run.csv"}


def test_a_folder_or_pattern_of_files_with_one_episode_each(here, capsys):
    logs = here / "logs"
    logs.mkdir()
    for number, one in enumerate(EPISODES):
        write_csv(logs / f"run_{number + 5}.csv", [one], final=True)  # 10 comes after 9
    columns = COLUMNS[:-1]
    assert_rows(offlinerl.load_dataset("logs", columns=columns))
    assert (logs / "columns.yaml").is_file() and not list(logs.glob("*.csv.columns.yaml"))
    assert_rows(offlinerl.load_dataset("logs/run_*.csv"))
    assert_rows(offlinerl.load_dataset("logs/run_1?.csv"), EPISODES[5:])
    assert_rows(offlinerl.load_dataset("logs/run_6.csv"), EPISODES[1:2])
    offlinerl.fit("bc", "logs/run_*.csv", over=dict(train=FEW), out="of-a-pattern")
    assert offlinerl.fit(resume="of-a-pattern", over=dict(train=dict(updates=9))).summary["updates"] == 9
    (logs / "._run_5.csv").write_bytes(b"\0\5\x16\7 Mac OS X")  # as macOS writes beside every file on a foreign disk
    data = offlinerl.load_dataset("logs")
    assert data.provenance["files"][0] == "run_5.csv" and data.provenance["rows_dropped"] == 0
    run = acts(logs, capsys)
    assert run.summary["dataset"] == "logs"
    assert offlinerl.fit(resume=run.folder, over=dict(train=dict(updates=9))).summary["updates"] == 9
    robomimic(here / "a.hdf5"), robomimic(here / "b.hdf5")
    assert_rows(offlinerl.load_dataset("?.hdf5"), EPISODES * 2)
    ogbench(here / "c.npz")
    with pytest.raises(UserError, match="has files of OGBench npz or robomimic HDF5"):
        offlinerl.load_dataset("?.[hn]*")
    with pytest.raises(UserError, match="no file is like"):
        offlinerl.load_dataset("nothing*.csv")
    (here / "empty").mkdir()
    with pytest.raises(UserError, match="holds no dataset, nor files of a format that is known"):
        offlinerl.load_dataset("empty")


def test_files_without_a_step_are_skipped_and_counted(here, capsys):
    """Logs that were stopped immediately."""
    Path("logs").mkdir()
    for number, text in enumerate(("", "x,y,angle,u,v,r,ended\n", "x,y,angle,u,v,r,ended\n1,2,3,.4,.5,6,0\n")):
        Path(f"logs/{number}.csv").write_text(text)
    columns = COLUMNS[:-1]
    with pytest.raises(UserError, match="none of the 3 files of logs holds a step to learn from"):
        offlinerl.load_dataset("logs", columns=columns)
    with pytest.raises(UserError, match=r"0.csv is empty: it has no rows"):
        offlinerl.load_dataset("logs/0.csv", columns=columns)
    write_csv(here / "logs/5.csv", EPISODES[:1], final=True), write_csv(here / "logs/6.csv", EPISODES[1:2], final=True)
    data = offlinerl.load_dataset("logs", columns=columns)
    assert_rows(data, EPISODES[:2])
    steps = sum(len(one["action"]) for one in EPISODES[:2])
    assert data.provenance["rows_in_source"] == steps + 1 and data.provenance["rows_dropped"] == 1
    assert data.provenance["files"] == ["5.csv", "6.csv"]
    assert data.provenance["empty_files"] == ["0.csv", "1.csv", "2.csv"]
    assert validate("logs") == [] and main(["datasets", "show", "logs"]) == 0
    assert "2 files, and 3 more without a step" in capsys.readouterr().out
    whole = {name: np.zeros(3) for name in ("observations", "actions", "rewards", "terminals")}
    Path("files").mkdir()
    for number, rows in enumerate((3, 1, 0)):
        write_columns(here / f"files/{number}.hdf5", {name: column[:rows] for name, column in whole.items()})
    data = offlinerl.load_dataset("files")
    assert len(data) == 2 and data.provenance["empty_files"] == ["1.hdf5", "2.hdf5"]
    assert data.provenance["rows_in_source"] == 4 and data.provenance["rows_dropped"] == 2


@pytest.mark.parametrize(("kind", "columns"), [("npz", None), ("npz", "obs=obs action=action"), ("parquet", None)])
def test_empty_files_are_skipped_and_counted(here, capsys, refused, kind, columns):
    """As a logger leaves them that was killed before it wrote."""
    (here / "logs").mkdir()
    given = [] if columns is None else ["--columns", *columns.split()]
    for number in range(4):
        path = here / f"logs/{number}.{kind}"
        if number in (0, 2):
            path.touch()
        elif kind == "parquet":
            pandas = pytest.importorskip("pandas", reason="pandas is not installed")
            pytest.importorskip("pyarrow", reason="pyarrow is not installed")
            pandas.DataFrame(dict(obs=np.arange(5.0), action=np.ones(5))).to_parquet(path)
        else:
            np.savez(path, obs=np.arange(10.0).reshape(5, 2), action=np.ones((5, 1)))
    assert "is empty: it has no rows" in refused("datasets", "show", f"logs/0.{kind}", *given)
    assert "is empty: it has no" in refused("datasets", "validate", f"logs/0.{kind}", *given)
    assert main(["datasets", "validate", "logs", *given]) == 0
    assert main(["datasets", "show", "logs", *given]) == 0
    assert "2 files, and 2 more without a step" in capsys.readouterr().out
    assert offlinerl.load_dataset("logs", columns=columns).provenance["empty_files"] == [f"0.{kind}", f"2.{kind}"]
    (here / "demos").mkdir()
    robomimic(here / "demos/0.hdf5", EPISODES[:1]), Path("demos/1.hdf5").touch()
    for command in ("show", "validate"):
        assert "demos/1.hdf5 is not an HDF5 file, or only a part of one" in refused("datasets", command, "demos")


def test_files_with_rows_of_other_sizes_are_refused(here):
    (here / "logs").mkdir()
    robomimic(here / "logs/a.hdf5"), robomimic(here / "logs/b.hdf5", [episode(0, O=4)])
    with pytest.raises(UserError, match=r"observations of shape \(4,\) do not match those of shape \(3,\)"):
        offlinerl.load_dataset("logs")


def write_episodes(kind, episodes):
    """Episodes of parts of observations, in files of one format or in one file. Returns the source, the place of the
    last episode, and how to read it."""
    reading = {}
    if kind == "minari":
        found = (
            Episode(obs, np.ones((3, 1)), np.zeros(3), np.zeros(3, bool), np.zeros(3, bool), {}) for obs in episodes
        )
        space = gym.spaces.Dict(
            front=gym.spaces.Box(0, 255, (8, 8, 3), np.uint8), q=gym.spaces.Box(-9, 9, (2,), np.float32)
        )
        about = dict(observation_space=space, action_space=gym.spaces.Box(-1, 1, (1,), np.float32))
        write_minari(Path("mine"), found, dataset_id="test/some-v0", env_spec=None, **about)
        return "mine", f"episode {len(episodes) - 1}", reading
    Path("logs").mkdir()
    for number, obs in enumerate(episodes):
        if kind == "npz":
            np.savez(f"logs/{number}.npz", **{key: part[:3] for key, part in obs.items()}, u=np.ones(3))
            reading = dict(columns="obs.front=front obs.q=q action=u")
            continue
        with h5py.File("logs.hdf5" if kind == "robomimic" else f"logs/{number}.hdf5", "a") as file:
            demo = file.create_group(f"data/demo_{number if kind == 'robomimic' else 0}")
            demo["actions"] = np.ones((3, 1))
            for key, part in obs.items():
                demo[f"obs/{key}"] = part[:3]
    source, place = ("logs.hdf5", "demo_") if kind == "robomimic" else ("logs", "")
    return source, f"{place}{len(episodes) - 1}", reading


@pytest.mark.parametrize("kind", ["npz", "robomimic", "robomimics", "minari"])
@pytest.mark.parametrize("odd", ["size", "axes", "type", "width"])
def test_an_episode_that_differs_from_those_before_it_is_named(here, capsys, kind, odd):
    rng = np.random.default_rng(0)
    episodes = [
        dict(front=rng.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8), q=np.ones((4, 2), np.float32)) for _ in range(3)
    ]
    front, last = (
        episodes[2]["front"],
        "observations 'front' of shape {} do not match those of shape (8, 8, 3) before them",
    )
    changed, says = dict(
        size=(dict(front=front[:, :4]), last.format("(4, 8, 3)")),
        axes=(dict(front=front.transpose(0, 3, 1, 2)), last.format("(3, 8, 8)")),
        type=(dict(front=front / np.float32(255)), "images 'front' are floats, and those before them uint8: store all"),
        width=(dict(q=np.ones((4, 5))), "observations 'q' of shape (5,) do not match those of shape (2,) before them"),
    )[odd]
    episodes[2] |= changed
    source, place, reading = write_episodes(kind, episodes)
    entry = registry.limited(registry.resolve(source), reading)
    (finding,) = validate(entry)
    assert finding.kind == "shape" and finding.fault and finding.rows.tolist() == [6, 7, 8]
    assert place in finding.message.split(":")[0] and says in finding.message
    with pytest.raises(UserError) as error:
        offlinerl.load_dataset(source, **reading)
    assert place in str(error.value).split(":")[0] and says in str(error.value)


def test_an_episode_with_other_parts_than_those_before_it_is_named(here):
    """The parts of a table become one vector if none of them is an image."""
    episodes = [dict(front=np.zeros((3, *shape), np.uint8), q=np.ones((3, 2))) for shape in ((8, 8, 3), (8,))]
    source, _, reading = write_episodes("npz", episodes)
    says = (
        r"1.npz: it has observations \[10\], actions \[1\], and what is before it observations/front \[8, 8, 3\], obs"
    )
    with pytest.raises(UserError, match=says):
        offlinerl.load_dataset(source, **reading)
    (finding,) = validate(registry.limited(registry.resolve(source), reading))
    assert "it has observations [10]" in finding.message


def test_images_of_two_types_are_not_merged(here):
    for number, kind in enumerate((np.uint8, np.float32)):
        np.savez(f"{number}.npz", obs=np.zeros((4, 8, 8, 3), kind), action=np.ones((4, 1)))
    parts = [offlinerl.load_dataset(f"{number}.npz") for number in range(2)]
    with pytest.raises(UserError, match="^1: images are floats, and those before them uint8: store all of them as"):
        edit.merge(parts)


def test_episodes_may_be_separated_only_by_flags(here):
    """Without an episode column, ends are marked in the row of the last step or in the row after it."""
    first, second = episode(2, 3), episode(4, 2)
    for where in ("step", "behind"):
        rows = ["x,y,angle,u,v,r,cut"]
        for one in (first, second):
            T = len(one["action"])
            for t in range(T):
                cut = int(where == "step" and t == T - 1)
                rows.append(",".join(map(str, [*map(float, one["obs"][t]), *map(float, one["action"][t]),
                                               float(one["reward"][t]), cut])))  # fmt: skip
            rows.append(",".join([*map(str, map(float, one["obs"][T])), "", "", "", "1" if where == "behind" else ""]))
        Path(f"{where}.csv").write_text("\n".join(rows))
        data = offlinerl.load_dataset(f"{where}.csv", columns="obs=x,y,angle action=u,v reward=r truncated=cut")
        assert_rows(data, [first, second])


def test_parts_of_observations_in_a_table(here):
    images = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), np.uint8)
    joints = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    np.savez("log.npz", camera=images, joints=joints, torque=np.zeros((6, 2), np.float32), stop=np.arange(6) == 5)
    data = offlinerl.load_dataset("log.npz", columns="obs.image=camera obs.joints=joints action=torque terminated=stop")
    np.testing.assert_array_equal(data.obs["image"], images)
    np.testing.assert_array_equal(data.obs["joints"], joints)
    np.testing.assert_array_equal(data.next_at, [1, 2, 3, 4, 5, 5])


class Sorted(gym.Env):
    """Shows the position of the goal, 5, and its own position, 1."""

    observation_space = gym.spaces.Dict({name: gym.spaces.Box(-9, 9, (1,), np.float32) for name in ("pos", "goal")})
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        return dict(goal=np.full(1, 5, np.float32), pos=np.ones(1, np.float32)), {}

    def step(self, action):
        return self.reset()[0], 0.0, False, True, {}


@pytest.mark.parametrize(("pos", "seen"), [("pos", [1, 5]), ("x", [5, 1])])
def test_parts_of_observations_have_one_order_in_data_and_environment(here, monkeypatch, pos, seen):
    monkeypatch.setitem(gym.registry, "Sorted-v0", gym.envs.registration.EnvSpec("Sorted-v0", "test_formats:Sorted"))
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    Path("log.csv").write_text("x,g,u\n" + "1,5,.5\n" * 12)
    columns = f"obs.{pos}=x obs.goal=g action=u"
    for dataset in ("log.csv", offlinerl.load_dataset(pandas.read_csv("log.csv"), columns=columns)):
        more = dict(columns=columns) if dataset == "log.csv" else {}
        run = offlinerl.fit("bc", dataset, env="Sorted-v0", over=dict(train=FEW), **more)
        task = load_agent(run.folder / "last.ckpt", "cpu").task
        assert make(task["env"], task.get("obs_keys")).reset()[0].tolist() == seen
    assert offlinerl.load_dataset("log.csv").obs[0].tolist() == [1, 5]


@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        ("obs=front,q", "obs.front=front obs.q=q"),
        ("obs=q,wrist,dq,front", "obs.wrist=wrist obs.front=front obs.state=q,dq"),
        ("obs=q next_obs=front,q", "next_obs.front=front next_obs.q=q"),
    ],
)
def test_images_are_no_part_of_a_vector(here, refused, columns, hint):
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (6, 8, 8, 3)).astype(np.uint8) for name in ("front", "wrist")}
    turns = rng.normal(size=(6, 3, 3))
    np.savez("log.npz", **images, q=np.ones((6, 2)), dq=np.ones((6, 2)), turns=turns, cmd=np.ones((6, 1)))
    for command in ("show", "validate"):
        said = refused("datasets", command, "log.npz", "--columns", *columns.split(), "action=cmd")
        assert "holds images, which are no part of a vector" in said and said.endswith(f", as in {hint}")
    named = offlinerl.load_dataset("log.npz", columns=f"{hint.replace('next_obs', 'obs')} action=cmd")
    assert named.obs["front"].shape == (5, 8, 8, 3)
    assert offlinerl.load_dataset("log.npz", columns="obs=q,turns action=cmd").obs.shape == (5, 11)


def test_successors_have_their_parts_in_the_order_of_observations(here):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    begins = dict(p=0, v=10, np=1, nv=11, u=0)
    frame = pandas.DataFrame({name: np.arange(3.0) + begin for name, begin in begins.items()})
    columns = "obs.pos=p obs.vel=v next_obs.vel=nv next_obs.pos=np action=u"
    data = offlinerl.load_dataset(frame, columns=columns)
    assert data.obs[0].tolist() == [0, 10] and data.next_obs[0].tolist() == [1, 11]
    assert data.provenance["obs_keys"] == ["pos", "vel"]
    turned = offlinerl.load_dataset(frame, columns=columns, obs_keys=["vel", "pos"])
    assert turned.next_obs[0].tolist() == [11, 1] and turned.provenance["obs_keys"] == ["vel", "pos"]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ("obs=x,z action=u,v", "has no column 'z'; it has x, y, angle"),
        ("obs=x,anle action=u,v", "has no column 'anle'; did you mean angle?"),
        ("obs=x", "must say what the observation and the action are"),
        ("x,y", "takes FIELD=NAME,NAME words and not 'x,y'"),
        ("obs=x act=u", "has no field 'act'; did you mean action or last?"),
        ("obs=x action=", "needs the names of columns for action"),
        ("obs=x obs=y action=u", "names obs twice; give all its columns at once, as in obs=x,y"),
        ("obs=x,run action=u,v", "column run must be numbers, but row 0 holds 'run 0'"),
        ("obs=x action=u,v terminated=r", "terminated must be 0 or 1, but row"),
    ],
)
def test_wrong_columns_are_reported(here, capsys, columns, says):
    write_csv(here / "log.csv", ids="run {}".format)
    assert main(["datasets", "show", "log.csv", "--columns", *columns.split()]) == 1
    assert says in capsys.readouterr().err
    assert not Path("log.csv.columns.yaml").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2]", "takes FIELD=NAME,NAME words and not 1"),
        ("7", "takes FIELD=NAME,NAME words and not 7"),
        ("obs: [x\naction: u", "while parsing a flow sequence; repair or delete it"),
    ],
)
def test_a_damaged_mapping_is_reported_in_one_line(here, refused, text, says):
    write_csv(here / "log.csv")
    Path("log.csv.columns.yaml").write_text(text)
    assert says in (line := refused("datasets", "show", "log.csv")) and "log.csv.columns.yaml does not say" in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("obs,action\n1,2\n3\n", "row 1 has 1 columns, and the header 2"),
        ("obs,obs\n1,2\n", "names the column 'obs' twice"),
        ("obs,action\n", "is empty: it has no rows"),
        ("obs,action\n1,2\n", "holds no step with a successor"),
        ("obs,action\n1,\n2,\n3,4\n5,6\n", "actions has NaN or infinite values in 2 rows"),
        ("obs,action\n1,2\n,3\n1,2\n", "observations has NaN or infinite values in 1 rows"),
        ("obs,action,reward\n1,2,0\n2,,5\n", "a reward belongs into the row of the action"),
        ('obs,action,e\n1,2,"a\nb"\n1,2,"b\n1,2,c\n', r"begins in line 4 has a quote too many or too few"),
        ('obs,action,e\n1,2,"b\n1,2,c\n1,2,"c"\n', r"begins in line 2 has a quote too many or too few"),
    ],
)
def test_damaged_tables_are_reported(here, capsys, text, says):
    import re

    Path("log.csv").write_text(text)
    assert main(["datasets", "show", "log.csv"]) == 1
    said = capsys.readouterr().err
    assert re.search(says, said) and len(said.splitlines()) == 1


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:900] + b"\xff" * 64 + b[964:]])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_archives_are_reported(here, refused, damage, save):
    rng = np.random.default_rng(0)
    save("log.npz", observations=rng.normal(size=(300, 2)), actions=rng.normal(size=300), rewards=np.zeros(300))
    Path("log.npz").write_bytes(damage(Path("log.npz").read_bytes()))
    for command in (["show"], ["validate"], ["export", "--columns", "obs=observations", "action=actions"]):
        files = ["log.npz", *(["out.hdf5"] if command[0] == "export" else [])]
        line = refused("datasets", command[0], *files, *command[1:])
        assert "log.npz is damaged" in line and "write it again" in line


@pytest.mark.parametrize(
    ("head", "mark", "names"),
    [
        ("\n  \nx,a", ",", ["x", "a"]), ("\ufeff\r\nx;a", ";", ["x", "a"]), ('"x, pos"|a', "|", ["x, pos", "a"]),
        ('"x, pos, in m";a;"r, rew, all"', ";", ["x, pos, in m", "a", "r, rew, all"]),
        ('"x\nin m",a', ",", ["x\nin m", "a"]), ('a,"say ""x"", or\n\ny"', ",", ["a", 'say "x", or\n\ny']),
    ],
)  # fmt: skip
def test_heads_of_csv_files(here, head, mark, names):
    rows = "\n".join(mark.join(str(row + at / 4) for at in range(len(names))) for row in range(3))
    for name in ("log.csv", "log") if "\n" not in "".join(names) else ("log.csv",):  # also without a suffix
        Path(name).write_text(f"{head}\n{rows}\n")
        assert tables.read_names(Path(name)) == names
        data = offlinerl.load_dataset(name, columns=dict(obs=names[:1], action=names[1:2]))
        assert data.obs[:, 0].tolist() == [0, 1] and data.action[:, 0].tolist() == [0.25, 1.25]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_utf_16_file_is_refused_with_advice(here, refused, encoding):
    text = "obs,action\n1,2\n3,4\n"
    Path("log.csv").write_text(text if encoding == "utf-16" else "\ufeff" + text, encoding)
    for more in ([], ["--columns", "obs=obs", "action=action"]):
        assert "log.csv is a text in UTF-16: save it as UTF-8" in refused("datasets", "show", "log.csv", *more)


def test_a_cell_that_is_not_a_boolean_like_the_others_is_named(here, refused):
    Path("log.csv").write_text("obs,action,done\n1,2,True\n1,2,\n3,4,no\n3,4,False\n")
    assert "column done must be numbers, but row 2 holds 'no'" in refused("datasets", "show", "log.csv")
    Path("log.csv").write_text("obs,action,done\n1,2,0\n1,2,True\n3,4,1\n")
    assert "column done must be numbers, but row 1 holds 'True'" in refused("datasets", "show", "log.csv")


@pytest.mark.parametrize(
    ("cells", "advice"),
    [
        (["1,5", "2", "0,25"], "row 0 holds '1,5'; write it with a decimal point"),
        (["0.1", "-2,5e3", "1"], "row 1 holds '-2,5e3'; write it with a decimal point"),
        (["open", "close", "open"], "row 0 holds 'open'; write a number for each word, as in 0 for close, 1 for open"),
        (["2026-01-31T12:00:00", "", ""], "write it in seconds (only a step may be a date"),
        (["12:00:01", "12:00:02", ""], "row 0 holds '12:00:01'; write it in seconds"),
        (["31.01.2026 12:00", "", ""], "row 0 holds '31.01.2026 12:00'; write it in seconds"),
        (["0.5 m", "1 m", "1 m"], "row 0 holds '0.5 m'; write the number alone"),
    ],
)
def test_what_to_do_with_a_cell_that_is_no_number(here, refused, cells, advice):
    Path("log.csv").write_text("x;a\n" + "".join(f"{cell};1\n" for cell in cells))
    assert advice in refused("datasets", "show", "log.csv", "--columns", "obs=x", "action=a")


@pytest.mark.parametrize("kind", ["csv", "zulu", "frame", "parquet"])
def test_rows_are_sorted_by_dates(here, kind):
    """The rows of an episode, a tenth of a second apart, are shuffled here. One without a date is refused."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    times = np.datetime64("2026-01-31T23:59:59.500") + 100 * np.arange(10).astype("timedelta64[ms]")
    frame = pandas.DataFrame(dict(run=np.repeat([0, 1], 10), t=np.tile(times, 2), x=np.arange(20.0), a=np.ones(20)))
    frame = frame.sample(frac=1, random_state=0)
    source: object = frame
    if kind in ("csv", "zulu"):
        text = frame.assign(t=[f"{time:%Y-%m-%d %H:%M:%S.%f}" + "Z" * (kind == "zulu") for time in frame.t])
        text.to_csv(source := here / "log.csv", index=False)
    elif kind == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        frame.to_parquet(source := here / "log.parquet")
    columns = ["obs=x", "action=a", "episode=run", "step=t"]
    data = offlinerl.load_dataset(source, columns=columns)
    assert sorted(data.obs[:, 0]) == [*range(9), *range(10, 19)]
    assert (data.next_obs == data.obs + 1).all() and (np.diff(data.obs[:9, 0]) == 1).all()
    if kind == "csv":
        lines = (here / "log.csv").read_text().splitlines()
        (here / "log.csv").write_text("\n".join([*lines[:5], lines[5].replace("2026", "noon"), *lines[6:]]))
        with pytest.raises(UserError, match="the step in row 4 is 'noon-01-31.*', and others are dates"):
            offlinerl.load_dataset(here / "log.csv", columns=columns)
    frame.loc[3, "t"] = None
    with pytest.raises(UserError, match="does not say which step it is"):
        offlinerl.load_dataset(frame, columns=columns)


@pytest.mark.parametrize("kind", ["text", "zulu", "nanoseconds", "objects", "zone"])
def test_a_frame_may_hold_dates_in_any_form(kind):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    times = pandas.Series(pandas.date_range("2026-01-31T23:59:59.5", periods=6, freq="100ms", tz="UTC"))
    ends = dict(text="", zulu="Z", nanoseconds="000")
    if kind == "objects":
        times = times.astype(object)
    elif kind in ends:
        times = times.dt.strftime("%Y-%m-%dT%H:%M:%S.%f") + ends[kind]
    frame = pandas.DataFrame(dict(t=times, x=np.arange(6.0), a=np.ones(6), run=0)).sample(frac=1, random_state=1)
    data = offlinerl.load_dataset(frame, columns=["obs=x", "action=a", "episode=run", "step=t"])
    assert data.obs[:, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["column", "objects", "parquet"])
def test_a_step_may_be_a_duration(here, kind):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    times = pandas.Series(pandas.to_timedelta(0.1 * np.arange(6), unit="s"))
    frame = pandas.DataFrame(dict(t=times, x=np.arange(6.0), a=np.ones(6), run=0)).sample(frac=1, random_state=1)
    if kind == "objects":
        frame["t"] = frame.t.astype(object)
    source: object = frame
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        frame.to_parquet(source := here / "log.parquet")
    data = offlinerl.load_dataset(source, columns=["obs=x", "action=a", "episode=run", "step=t"])
    assert data.obs[:, 0].tolist() == [0, 1, 2, 3, 4]
    frame.loc[3, "t"] = None
    with pytest.raises(UserError, match="row 4 does not say which step it is"):
        offlinerl.load_dataset(frame, columns=["obs=x", "action=a", "episode=run", "step=t"])


def test_a_column_whose_name_holds_a_comma_is_named_by_a_pattern(here, refused):
    Path("log.csv").write_text('"Target=X, mm",u\n' + "".join(f"{t},0.5\n" for t in range(4)))
    said = refused("datasets", "show", "log.csv", "--columns", "obs=Target=X, mm", "action=u")
    assert said.rstrip().endswith("no column 'Target=X'; for a name with a comma give a pattern: Target=X? mm")
    assert main(["datasets", "show", "log.csv", "--columns", "obs=Target=X? mm", "action=u"]) == 0


@pytest.mark.filterwarnings("error")
def test_dates_of_other_time_zones_are_compared_in_utc(here):
    times = [
        "2026-10-25T02:30:00+02:00",
        "2026-10-25 02:30:00.5+01:00",
        "2026-10-25T01:31Z",
        "2026-10-25T03:00:00-0130",
    ]
    rows = [f"{x},{time},1" for x, time in enumerate(times)]
    Path("log.csv").write_text("\n".join(["x,t,a", *(rows[i] for i in (2, 0, 3, 1))]))
    Path("log.csv").write_text("run," + Path("log.csv").read_text().replace("\n", "\n0,"))
    data = offlinerl.load_dataset("log.csv", columns=["obs=x", "action=a", "episode=run", "step=t"])
    assert data.obs[:, 0].tolist() == [0, 1, 2]


def test_a_long_cell_in_an_unused_column_does_no_harm(here):
    Path("log.csv").write_text("x,a,image\n" + f"1,2,{'A' * 200_000}\n" * 3)
    assert len(offlinerl.load_dataset("log.csv", columns="obs=x action=a")) == 2


# LeRobot


def lerobot(folder, version="v3.0", episodes=EPISODES, success=True, video=False, fps=10):
    """A dataset in the layout of LeRobot 0.4.4; v2.1 has one file per episode, v3.0 several episodes in a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    old = version == "v2.1"
    features = {
        "observation.state": dict(dtype="float32", shape=[2], names=["a", "b"]),
        "observation.environment_state": dict(dtype="float32", shape=[1], names=None),
        "action": dict(dtype="float32", shape=[2], names=None),
        "next.reward": dict(dtype="float32", shape=[1], names=None),
        "next.done": dict(dtype="bool", shape=[1], names=None),
    }  # fmt: skip
    if success:
        features["next.success"] = dict(dtype="bool", shape=[1], names=None)
    if video:
        features["observation.images.top"] = dict(
            dtype="video", shape=[48, 64, 3], names=["height", "width", "channels"]
        )
    data = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet" if old else \
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"  # fmt: skip
    videos = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4" if old else \
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"  # fmt: skip
    info = dict(
        codebase_version=version, robot_type="so100", total_episodes=len(episodes), chunks_size=1000, fps=fps,
        splits=dict(train=f"0:{len(episodes)}", val="0:2"), data_path=data, video_path=videos if video else None,
        features=features,
    )  # fmt: skip
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info))
    tables_, index, places, start, frames = [], 0, [], 0.0, []
    for number, one in enumerate(episodes):
        T = len(one["action"])
        columns = {
            "observation.state": list(one["obs"][:-1, :2]), "observation.environment_state": list(one["obs"][:-1, 2:]),
            "action": list(one["action"]), "next.reward": one["reward"], "next.done": np.arange(T) == T - 1,
            **({"next.success": one["terminated"]} if success else {}),
            "timestamp": (np.arange(T) / fps).astype(np.float32), "frame_index": np.arange(T),
            "episode_index": np.full(T, number), "index": index + np.arange(T), "task_index": np.zeros(T, np.int64),
        }  # fmt: skip
        tables_.append(pa.table(columns))
        index += T
        places.append({"episode_index": number, "length": T, "data/chunk_index": 0, "data/file_index": number // 4,
                       "videos/observation.images.top/chunk_index": 0, "videos/observation.images.top/file_index": 0,
                       "videos/observation.images.top/from_timestamp": start})  # fmt: skip
        start += T / fps
        frames.append(shades(number, T))
    if old:
        for number, table in enumerate(tables_):
            write_parquet(pq, table, folder / data.format(episode_chunk=0, episode_index=number))
            if video:
                path = videos.format(episode_chunk=0, episode_index=number, video_key="observation.images.top")
                write_video(folder / path, frames[number], fps)
        return folder
    for file in range(-(-len(tables_) // 4)):
        of = pa.concat_tables(tables_[4 * file : 4 * file + 4])
        write_parquet(pq, of, folder / data.format(chunk_index=0, file_index=file))
    write_parquet(pq, pa.Table.from_pylist(places), folder / "meta/episodes/chunk-000/file-000.parquet")
    if video:
        path = folder / videos.format(chunk_index=0, file_index=0, video_key="observation.images.top")
        write_video(path, np.concatenate(frames), fps)
    return folder


def shades(number, T):
    """Frames [T, 48, 64, 3] of a single grey each, so that they survive video compression."""
    grey = (20 + 30 * number + 5 * np.arange(T)) % 255
    return np.broadcast_to(grey[:, None, None, None].astype(np.uint8), (T, 48, 64, 3)).copy()


def write_parquet(pq, table, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def write_video(path, frames, fps):
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps, options={"qscale": "1"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 2
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_rows_are_those_written(here, capsys, version):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    folder = lerobot(here / "pusht", version)
    data = offlinerl.load_dataset(folder)
    assert_rows(data, final=False)
    assert data.provenance["format"] == "LeRobot" and data.provenance["version"] == version
    assert_rows(offlinerl.load_dataset(folder, subset="val"), EPISODES[:2], final=False)
    acts(folder, capsys)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_cameras_are_read_only_if_selected(here, version, monkeypatch):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pytest.importorskip("av", reason="av is not installed")
    folder = lerobot(here / "pusht", version, video=True)
    keys = ["observation.images.top", "observation.state"]
    with monkeypatch.context() as patch:  # the state and the action need no decoder
        patch.setitem(sys.modules, "av", None)
        data = offlinerl.load_dataset(folder)
        assert_rows(data, final=False)
        assert data.provenance["left_out"] == ["observation.images.top"]
        with pytest.raises(UserError, match=r"pip install 'offlinerl\[lerobot\]'"):
            offlinerl.load_dataset(folder, obs_keys=keys)
    data = offlinerl.load_dataset(folder, obs_keys=keys)
    whole = np.concatenate([shades(number, len(one["action"])) for number, one in enumerate(EPISODES)])
    images = data.observations["observation.images.top"].astype(int)
    assert images.shape == whole.shape and np.abs(images - whole).max() <= 8
    np.testing.assert_array_equal(data.obs["observation.state"], expected(final=False)[0][:, :2])


def test_lerobot_images_in_parquet_and_rewards_from_success(here):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import imageio.v3 as images
    import pyarrow.parquet as pq

    folder = lerobot(here / "pusht", "v2.1", EPISODES[:2])
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"]["observation.image"] = dict(dtype="image", shape=[48, 64, 3])
    del info["features"]["next.reward"]
    (folder / "meta/info.json").write_text(json.dumps(info))
    for number in range(2):
        path = folder / f"data/chunk-000/episode_{number:06d}.parquet"
        table = pq.read_table(path)
        cells = []
        for frame in shades(number, len(table)):
            buffer = io.BytesIO()
            images.imwrite(buffer, frame, extension=".png")
            cells.append(dict(bytes=buffer.getvalue(), path="frame.png"))
        pq.write_table(table.append_column("observation.image", pa.array(cells)), path)
    data = offlinerl.load_dataset(folder, obs_keys=["observation.image", "observation.state"])
    frames = [shades(number, len(EPISODES[number]["action"])) for number in range(2)]
    np.testing.assert_array_equal(data.observations["observation.image"], np.concatenate(frames))
    assert data.reward.tolist() == data.terminated.astype(float).tolist() and data.reward.sum() == 1


def test_lerobot_without_success_has_only_truncations(here):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    data = offlinerl.load_dataset(lerobot(here / "pusht", success=False))
    off = [one | dict(terminated=np.zeros_like(one["terminated"])) for one in EPISODES]
    assert_rows(data, off, final=False)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_folders_may_be_links_and_no_file_may_be_missing(here, version, capsys):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    folder = lerobot(here / "pusht", version)
    info = json.loads((folder / "meta/info.json").read_text())
    info["total_frames"] = sum(len(one["action"]) for one in EPISODES)
    (folder / "meta/info.json").write_text(json.dumps(info))
    (folder / "data/chunk-000").rename(here / "elsewhere")
    (folder / "data/chunk-000").symlink_to(here / "elsewhere")
    assert_rows(offlinerl.load_dataset(folder), final=False)
    (folder / "meta/info.json").write_text(json.dumps(info | dict(total_frames=info["total_frames"] + 1)))
    assert main(["datasets", "show", str(folder)]) == 1
    assert f"hold {info['total_frames']} of the {info['total_frames'] + 1} frames" in capsys.readouterr().err
    (folder / "meta/info.json").write_text(json.dumps(info))
    sorted((here / "elsewhere").iterdir())[1].unlink()
    missing, held = (1, 6) if version == "v2.1" else (4, 4)
    for command in ("show", "validate"):
        assert main(["datasets", command, str(folder)]) == 1
        assert (
            f"episode {missing} is not in the files below data/, which hold {held} of the 7" in capsys.readouterr().err
        )


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_lerobot_episode_in_two_files_is_refused(here, version, capsys):
    """A backup copy would be counted twice, and an episode that continues in the next file would become two."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as pq

    folder = lerobot(here / "pusht", version)
    first, second = sorted((folder / "data").glob("**/*.parquet"))[:2]
    (folder / "data/old").mkdir()
    (folder / "data/old/copy.parquet").write_bytes(first.read_bytes())
    says = f"episode 0 is in {first.relative_to(folder)} and again in data/old/copy.parquet; bring its frames together"
    for command in ("show", "validate"):
        assert main(["datasets", command, str(folder)]) == 1
        assert says in capsys.readouterr().err
    (folder / "data/old/copy.parquet").unlink()
    table = pq.read_table(first)
    pq.write_table(table.slice(0, len(table) - 2), first)
    pq.write_table(table.slice(len(table) - 2), folder / "data/chunk-000/rest.parquet")
    with pytest.raises(UserError, match=rf"episode \d is in .*{first.name} and again in data/chunk-000/rest\.parquet"):
        offlinerl.load_dataset(folder)


def test_incomplete_lerobot_folders_are_reported(here, capsys):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    folder = lerobot(here / "pusht")
    assert main(["datasets", "show", str(folder), "--obs-keys", "observation.wrist"]) == 1
    assert "no part 'observation.wrist'; they have observation.state" in capsys.readouterr().err
    info = json.loads((folder / "meta/info.json").read_text())
    (folder / "meta/info.json").write_text(json.dumps(info | dict(codebase_version="v1.6")))
    assert main(["datasets", "show", str(folder)]) == 1
    assert "version v1.6 of LeRobot's format; convert it" in capsys.readouterr().err


# Detecting the format


def test_the_format_is_detected_from_the_contents_not_the_name(here):
    kinds = dict(
        robomimic=robomimic(here / "a.csv"), ogbench=ogbench(here / "b.npz").rename("b.hdf5"),
        d3rlpy=d3rlpy(here / "c.npz"), table=write_csv(here / "d.hdf5"),
    )  # fmt: skip
    assert {kind: formats.kind_of(path) for kind, path in kinds.items()} == {kind: kind for kind in kinds}
    with h5py.File("e.csv", "w") as file:
        file["observations"] = np.zeros((3, 2))
    assert formats.kind_of(Path("e.csv")) == "d4rl"
    Path("f.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"part")
    assert formats.kind_of(Path("f.hdf5")) == "d4rl"
    Path("g.json").write_text('{"a": 1,\n"b": 2}')
    assert formats.kind_of(Path("g.json")) == "d4rl"
    data = offlinerl.load_dataset("a.csv")
    assert_rows(data)


def test_subset_and_columns_are_refused_where_they_do_not_apply(here, capsys):
    ogbench(here / "a.npz"), robomimic(here / "b.hdf5")
    assert main(["datasets", "show", "a.npz", "--subset", "train"]) == 1
    assert "leave out --subset" in capsys.readouterr().err
    assert main(["datasets", "show", "b.hdf5", "--columns", "obs=a", "action=b"]) == 1
    assert "leave out --columns" in capsys.readouterr().err


def test_faults_are_found_in_other_formats_too(here, capsys):
    broken = [dict(one) for one in EPISODES]
    broken[2]["obs"] = broken[2]["obs"].copy()
    broken[2]["obs"][1, 0] = np.nan
    robomimic(here / "lift.hdf5", broken)
    assert main(["datasets", "validate", "lift.hdf5"]) == 1
    assert "NaN or infinite values: obs in 1 rows, next_obs in 1 rows" in capsys.readouterr().out
    assert main(["datasets", "show", "lift.hdf5"]) == 1
    assert "demo_2: observations has NaN or infinite values in 1 rows" in capsys.readouterr().err


def test_only_some_demonstrations_may_have_successors(here):
    path = robomimic(here / "lift.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_1/next_obs"], file["data/demo_4/next_obs"]
    assert offlinerl.load_dataset(path).provenance["rows_dropped"] == 1 and validate(str(path)) == []
    with h5py.File(path, "a") as file:
        file["data/demo_2/next_obs/eef_pos"][1, 0] += 9
    (found,) = validate(str(path))
    assert found.kind == "jump" and found.rows.tolist() == [sum(len(one["action"]) for one in EPISODES[:2]) + 1]


def test_successors_with_other_parts_are_a_fault(here, capsys):
    path = robomimic(here / "lift.hdf5")
    with h5py.File(path, "a") as file:
        for number in range(len(EPISODES)):
            del file[f"data/demo_{number}/next_obs/gripper"]
    assert main(["datasets", "validate", str(path)]) == 1
    assert "shape: next_observations have 2 numbers, and observations 3 numbers" in capsys.readouterr().out


def test_validate_reports_words_among_observations(here, refused):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow as pa
    import pyarrow.parquet as pq

    lerobot(here / "play", episodes=EPISODES[:1])
    path = here / "play/data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    words = pa.array([f"s{row}" for row in range(len(table))])
    pq.write_table(table.set_column(table.column_names.index("observation.state"), "observation.state", words), path)
    for command in ("show", "validate"):
        assert "episode 0: observations must be numbers, but they are of type object" in refused(
            "datasets", command, "play", "--obs-keys", "observation.state"
        )


def test_faults_are_named_by_their_rows_in_the_source(here, capsys):
    action = np.full((12, 1), 0.5, np.float32)
    action[9] = np.nan
    obs, ends = np.arange(24, dtype=np.float32).reshape(12, 2), np.arange(12) % 4 == 3
    np.savez("play.npz", observations=obs, actions=action, terminals=ends)
    found = {"play.npz": [9]}
    rows = [f"{t},{t % 2},{'nan' if t == 6 else 0.1 * t}" for t in range(10)]  # two episodes with alternating rows
    Path("logs").mkdir()
    for number, lines in enumerate(([f"{t},0,1" for t in range(8, 11)], rows)):
        Path(f"logs/{number}.csv").write_text("\n".join(["obs,episode,action", *lines]))
    found |= {"logs/1.csv": [6], "logs": [3 + 6]}
    robomimic(here / "lift.hdf5", [EPISODES[0], EPISODES[1] | dict(action=EPISODES[1]["action"] * np.nan)])
    found["lift.hdf5"] = list(range(4, 9))
    places = {"play.npz": {}, "logs/1.csv": {}, "logs": {"1.csv": [6]}, "lift.hdf5": {"demo_1": [0, 1, 2, 3, 4]}}
    for name, due in found.items():
        (fault,) = (finding for finding in validate(name) if finding.kind == "not finite")
        assert fault.rows.tolist() == due, name
        assert {place: rows.tolist() for place, rows in fault.places.items()} == places[name], name
    assert main(["datasets", "validate", "logs"]) == 1
    assert "(1 rows: 9; 6 of 1.csv)" in " ".join(capsys.readouterr().out.split())
    for name, row in {"play.npz": 9, "logs": 6, "lift.hdf5": 0}.items():  # of the file, or of the named demonstration
        with pytest.raises(UserError, match=f"actions has NaN or infinite values in .* rows, the first of them {row};"):
            offlinerl.load_dataset(name)
    cut = np.isin(np.arange(10), [1, 3])
    arrays = dict(obs=np.where(np.arange(10) == 7, np.nan, 1.0), action=np.ones(10), reward=cut, terminated=cut & False)
    with pytest.raises(UserError, match="obs has NaN or infinite values in 1 rows, the first of them 7;"):
        offlinerl.load_dataset(arrays | dict(truncated=cut))


def test_parts_of_a_written_dataset_can_be_chosen(here):
    whole = offlinerl.load_dataset(robomimic(here / "lift.hdf5", images=True))
    whole.write("lift")
    for keys, due in {("eef_pos",): expected()[0][:, :2], ("gripper", "eef_pos"): expected()[0][:, [2, 0, 1]]}.items():
        np.testing.assert_array_equal(offlinerl.load_dataset("lift", obs_keys=list(keys)).obs, due)
    pictures = offlinerl.load_dataset("lift", obs_keys=["agentview_image", "gripper"])
    assert list(pictures.observations) == ["agentview_image", "gripper"]
    with pytest.raises(UserError, match="no part 'joints'; they have"):
        offlinerl.load_dataset("lift", obs_keys=["joints"])


def test_faults_in_several_files_are_named_by_the_rows_of_each(here, capsys):
    (here / "logs").mkdir()
    for number in range(6):
        rows = [f"{number}{t},{'nan' if 7 - number < t < 11 else 0.1 * t}" for t in range(12)]
        Path(f"logs/{number}.csv").write_text("\n".join(["obs,action", *rows]))
    (fault,) = (finding for finding in validate("logs") if finding.kind == "not finite")
    assert list(fault.places) == [f"{number}.csv" for number in range(6)]
    assert all(rows.tolist() == list(range(8 - number, 11)) for number, rows in enumerate(fault.places.values()))
    assert sum(map(len, fault.places.values())) == len(fault.rows)
    assert main(["datasets", "validate", "logs"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "(33 rows: 8, 9, 10, 19, 20, ...; 8, 9, 10 of 0.csv; 7, 8, 9, 10 of 1.csv; " in said
    assert "6, 7, 8, 9, 10 of 2.csv; and in 3 more)" in said


def test_a_missing_number_is_no_jump_as_well(here):
    path = robomimic(here / "lift.hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_4/obs/eef_pos"][3, 0] = np.nan
        file["data/demo_5/next_obs/eef_pos"][1, 0] = np.inf
    assert [finding.kind for finding in validate(str(path)) if finding.fault] == ["not finite"]
    with h5py.File(path, "a") as file:
        file["data/demo_6/next_obs/eef_pos"][1, 0] = 99
    (jump,) = (finding for finding in validate(str(path)) if finding.kind == "jump")
    assert {place: rows.tolist() for place, rows in jump.places.items()} == {"demo_6": [1]}


@pytest.mark.parametrize("kind", ["csv", "robomimic", "files", "minari"])
def test_an_episode_of_one_terminal_step_is_no_late_terminal(here, kind):
    lengths = [3, 1, 1, 3]
    if kind == "robomimic":
        source = robomimic(here / "lift.hdf5", [episode(number, steps) for number, steps in enumerate(lengths)])
        with h5py.File(source, "a") as file:
            for number, steps in enumerate(lengths):
                file[f"data/demo_{number}/dones"][...] = np.arange(steps) == steps - 1
    elif kind == "minari":
        ends = [np.arange(steps) == steps - 1 for steps in lengths]
        found = (
            Episode(np.eye(len(end) + 1, 2), np.ones((len(end), 1)), np.ones(len(end)), end, end & False, {})
            for end in ends
        )
        about = dict(observation_space=gym.spaces.Box(-9, 9, (2,)), action_space=gym.spaces.Box(-1, 1, (1,)))
        write_minari(source := here / "mine", found, dataset_id="test/some-v0", env_spec=None, **about)
    else:
        runs = [[f"{run}{t},{t / 10},{run},{int(t == T - 1)},1" for t in range(T)] for run, T in enumerate(lengths)]
        source = here / "logs"
        source.mkdir()
        for number, rows in enumerate([sum(runs, [])] if kind == "csv" else runs):
            (source / f"{number}.csv").write_text("\n".join(["obs,action,episode,done,reward", *rows]))
    assert "overlapping ends" not in [finding.kind for finding in validate(str(source))]


@pytest.mark.parametrize("ids", [True, False])
def test_a_table_s_episode_that_goes_on_after_its_end_is_still_told(here, ids):
    rows = [f"{t},{t / 10},{int(t in (2, 3, 7))},1{',7' * ids}" for t in range(8)]
    Path("log.csv").write_text("\n".join([f"obs,action,done,reward{',episode' * ids}", *rows]))
    (note,) = (finding for finding in validate("log.csv") if finding.kind == "overlapping ends")
    assert note.rows.tolist() == [3]


def test_a_file_becomes_a_minari_dataset(here):
    robomimic(here / "lift.hdf5")
    assert main(["datasets", "import", "lift.hdf5", "lift/mine-v0"]) == 0
    assert_rows(offlinerl.load_dataset("lift/mine-v0"))
    assert main(["datasets", "export", "lift.hdf5", "flat.hdf5"]) == 0
    assert_rows(load_hdf5("flat.hdf5"))


def test_a_parquet_file_without_pyarrow_says_what_to_install(here, monkeypatch):
    Path("log.parquet").write_bytes(b"PAR1 and so on PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        offlinerl.load_dataset("log.parquet")


def test_numbers_with_underscores_are_words(here, refused):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    for cells, row in (("1", "2_5"), 1), (("1", "", "2_5"), 2), (("1.5", "2_5.0"), 1), (("0_0", "1_1"), 0):
        rows = "".join(f"{cell},1,0\n" for cell in cells)
        Path("log.csv").write_text(f"obs,action,done\n{rows}")
        line = refused("datasets", "show", "log.csv")
        assert f"column obs must be numbers, but row {row} holds '{cells[row]}'" in line
    frame = pandas.DataFrame(dict(obs=np.array(["1", "2_5"], object), action=[1, 2], done=[0, 1]))
    with pytest.raises(UserError, match="column obs must be numbers, but row 1 holds '2_5'"):
        offlinerl.load_dataset(frame)


def test_a_frame_that_has_a_column_twice_is_refused(here):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(np.arange(12.0).reshape(4, 3), columns=["x", "u", "x"])
    for table in (frame, frame.set_axis(["1", "u", 1], axis=1)):
        name = str(table.columns[0])
        with pytest.raises(UserError, match=f"the table has two columns named '{name}'; rename or drop one"):
            offlinerl.load_dataset(table, columns=dict(obs=[name], action=["u"]))


@pytest.mark.parametrize("kind", ["csv", "npz", "hdf5"])
@pytest.mark.parametrize("cut", [[3], []])
def test_masks_end_episodes_beside_truncations(here, kind, cut):
    columns = masked(next_observations=None, timeouts=np.isin(np.arange(8), cut).astype(float))
    path = here / f"log.{kind}"
    if kind == "csv":
        rows = zip(*(column.ravel() for column in columns.values()), strict=True)
        path.write_text("\n".join(",".join(map(str, row)) for row in [columns, *rows]))
    else:
        write_columns(path, columns)
    data = offlinerl.load_dataset(path)
    kept = np.setdiff1d(np.arange(8), cut)  # nothing is known of what follows a truncation
    np.testing.assert_array_equal(data.obs[:, 0], kept)
    assert kept[data.terminated].tolist() == [1, 7] and kept[data.last].tolist() == ([1, 2, 7] if cut else [1, 7])
    assert validate(str(path)) == []


def test_an_episode_that_goes_on_in_the_next_file_is_told(here, capsys):
    def write(*parts, header="x,u,r,done,run"):
        for number, (first, runs, done) in enumerate(parts):
            rows = (f"{first + row},0.5,1,{int(row in done)},{run}\n" for row, run in enumerate(runs))
            Path(f"logs/part{number}.csv").write_text("".join([f"{header}\n", *rows]))

    (here / "logs").mkdir()
    columns = ["obs=x", "action=u", "reward=r", "terminated=done", "episode=run"]
    write((0, "aaabbb", [2]), (6, "bbcc", [1, 3]), (10, "ccdd", [1]), (14, "dd", [1]))
    said = "an episode may be split in two: part1.csv begins with episode b, with which part0.csv ends"
    for source in ("logs", "logs/*.csv"):
        data = offlinerl.load_dataset(source, columns=columns)
        assert data.episode_lengths.tolist() == [3, 2, 2, 2, 2, 1, 2], "they are not merged"
        (note,) = validate(source)
        assert note.kind == "split episode" and not note.fault and note.message.startswith(said)
        assert "and so in 1 more file: put" in note.message
    assert main(["datasets", "show", "logs"]) == 0 and said in capsys.readouterr().out
    offlinerl.fit("bc", "logs", over=dict(train=FEW))
    assert said in capsys.readouterr().out
    for source in ("logs", "logs/part0.csv"):
        assert load(source, table="disk").provenance == load(source).provenance
    write((0, "aaabbb", [2, 5]), (6, "bbcc", [1, 3]), (10, "dd", [1]), (12, "ee", [1]))
    assert validate("logs") == []


def rounded_away(kind, place):
    """A log of two episodes whose observations are float64."""
    action, done = np.linspace(-1, 1, len(place)), np.arange(len(place)) % 30 == 29
    if kind == "csv":
        rows = zip(*place.T, action, done.astype(int), strict=True)
        Path("log.csv").write_text("\n".join(["obs_0,obs_1,obs_2,action,done", *(",".join(map(str, r)) for r in rows)]))
    elif kind == "hdf5":
        write_columns(Path("log.hdf5"), dict(observations=place, actions=action, rewards=action, terminals=done))
    elif kind == "arrays":
        return offlinerl.load_dataset(dict(obs=place, action=action, reward=action, terminated=done))
    else:
        (Path("logs")).mkdir()
        for number in range(2):
            rows = zip(*place[30 * number :][:30].T, action, done[:30].astype(int), strict=False)
            lines = ["obs_0,obs_1,obs_2,action,done", *(",".join(map(str, row)) for row in rows)]
            Path(f"logs/{number}.csv").write_text("\n".join(lines))
        return offlinerl.load_dataset("logs")
    return offlinerl.load_dataset(f"log.{kind}")


@pytest.mark.parametrize("kind", ["csv", "hdf5", "arrays", "several"])
def test_values_that_float32_merges_are_told(here, capsys, kind):
    """East and north in metres, of which north keeps half metres, and a part at rest in a simulator."""
    rng = np.random.default_rng(0)
    place = np.cumsum(rng.uniform(-0.1, 0.1, (60, 3)), 0) + [0.0, 5_812_345.0, 0.0]
    place[:, 2] = 0.5 + np.where(np.arange(60) % 30 < 2, 1e-3, 1e-12) * rng.normal(size=60)
    data = rounded_away(kind, place)
    assert data.provenance["rounded"] == {"": [1]} and data.obs.dtype == np.float32
    says = "float32, in which observations are stored, is too coarse for their dimension 1: small changes are lost"
    if kind != "arrays":
        path = "logs" if kind == "several" else f"log.{kind}"
        (note,) = (finding for finding in validate(path) if finding.kind == "rounding")
        assert note.message.startswith(says) and not note.fault
        capsys.readouterr()
        offlinerl.fit("bc", path, over=dict(train=FEW))
        assert says in capsys.readouterr().out
        place[:, 1] -= 5_812_345.0
        if kind != "several":
            assert "rounded" not in rounded_away(kind, place).provenance


def test_whole_numbers_that_float32_merges_are_told():
    stamp = 1_700_000_000_000 + 50 * np.arange(60)
    arrays = dict(obs=dict(stamp=stamp[:, None], count=np.arange(60)), action=np.linspace(-1, 1, 60), reward=stamp)
    data = offlinerl.load_dataset(arrays | dict(terminated=np.arange(60) % 30 == 29))
    assert data.provenance["rounded"] == {"stamp": [0]}


def test_actions_of_several_axes_are_numbers_whatever_their_type(here):
    """Only observations may be images, which stay uint8."""
    for name, action in dict(a=np.ones((20, 2, 2), np.uint8), b=np.full((20, 2, 2), 0.7)).items():
        (here / "logs").mkdir(exist_ok=True)
        np.savez(here / f"logs/{name}.npz", x=np.arange(20.0), u=action)
    data = offlinerl.load_dataset("logs", columns="obs=x action=u")
    assert data.action.dtype == np.float32 and np.unique(data.action).tolist() == pytest.approx([0.7, 1])
    parts = [dict(obs=np.arange(20.0), action=of) for of in (np.ones((20, 2, 2), np.uint8), np.full((20, 2, 2), 0.7))]
    np.testing.assert_array_equal(offlinerl.load_dataset(parts).action, data.action)


def test_images_among_actions_are_left_out(here, refused):
    np.savez(here / "log.npz", x=np.arange(20.0), u=np.ones((20, 16, 16, 3), np.uint8), v=np.ones(20))
    line = refused("datasets", "validate", "log.npz", "--columns", "obs=x", "action=u,v")
    assert "column u holds images, which are no part of a vector: leave it out" in line
    np.savez(here / "log.npz", x=np.arange(20.0), touch=np.ones((20, 4, 3), np.uint8), u=np.ones(20))
    assert offlinerl.load_dataset("log.npz", columns="obs=x,touch action=u").obs.shape == (19, 13)


@pytest.mark.parametrize("kind", [np.int64, np.uint64])
def test_stamps_in_nanoseconds_keep_their_differences(here, kind, capsys):
    stamps = np.arange(20, dtype=kind) * 100 + np.array(1_700_000_000_000_000_001, kind)
    stamps[10:] += np.array(100, kind)
    np.savez(here / "log.npz", t=stamps, x=np.arange(20.0), u=np.ones(20))
    assert main(["datasets", "validate", "log.npz", "--columns", "obs=x", "action=u", "step=t"]) == 0
    assert "the median of 100, up to 200" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "header",
    ["obs_0,obs_1,next_obs_1,next_obs_0", "obs_10,obs_11,next_obs_11,next_obs_10", "obs_b,obs_a,next_obs_a,next_obs_b"],
)
def test_successors_have_the_order_of_observations_whatever_that_of_their_columns(tmp_path, header):
    (tmp_path / "log.csv").write_text(f"{header},action,truncated\n1,2,4,3,0,1\n5,6,8,7,0,1\n")
    data = load(tmp_path / "log.csv")
    assert data.obs.tolist() == [[1, 2], [5, 6]] and data.next_obs.tolist() == [[3, 4], [7, 8]]


def test_columns_that_are_named_keep_their_order(tmp_path):
    (tmp_path / "log.csv").write_text("x,y,y_next,x_next,u,done\n1,2,4,3,0,1\n5,6,8,7,0,1\n")
    for following, due in (("*_next", [3, 4]), ("y_next,x_next", [4, 3])):
        columns = parse_columns(f"obs=x,y action=u truncated=done next_obs={following}")
        assert load(tmp_path / "log.csv", columns=columns).next_obs[0].tolist() == due


def test_stamps_are_told_apart_to_the_nanosecond(tmp_path):
    pandas = pytest.importorskip("pandas")
    apart = pandas.to_timedelta([0, 1_000_300, 1_000_900, 3_000_000, 4_000_000, 5_000_000], unit="ns")
    frame = pandas.DataFrame(dict(q=range(6), u=range(6), e=1, stamp=pandas.to_datetime("2026-01-01") + apart))
    frame.to_csv(tmp_path / "log.csv", index=False, date_format="%Y-%m-%dT%H:%M:%S.%f000")
    text = frame.assign(stamp=[stamp.isoformat() for stamp in frame.stamp])
    for columns in ("obs=q action=u step=stamp", "obs=q action=u step=stamp episode=e"):
        for source in (frame, text, frame.assign(stamp=apart)):
            data = offlinerl.load_dataset(source.sample(frac=1, random_state=0) if "episode" in columns else source,
                                          columns=columns)  # fmt: skip
            assert data.obs[:, 0].tolist() == [0, 1, 2, 3, 4], columns
    longer = text.assign(stamp=text.stamp.str.ljust(29, "0") + "999")  # digits beyond nanoseconds are left out
    assert len(offlinerl.load_dataset(longer.iloc[1:], columns="obs=q action=u step=stamp").obs) == 4
    for wrong in ("2026-01-315", "2026-01-31T12:005", "2026-01-31T12:00:005"):
        with pytest.raises(UserError, match="and others are dates"):
            offlinerl.load_dataset(text.assign(stamp=[*text.stamp[:-1], wrong]), columns="obs=q action=u step=stamp")
    twice = frame.assign(stamp=frame.stamp[0])
    with pytest.raises(UserError, match="rows 0 and 1 are of one episode, 1, and of one step, 2026-01-01T00:00:00"):
        offlinerl.load_dataset(twice, columns="obs=q action=u step=stamp episode=e")


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("N/A", "as if it were missing; repair or remove such rows"),
        ("-", "as if it were missing"),
        ("1,000", "write it without a comma, or with a decimal point if that is what it stands for"),
        ("3,5", "write it with a decimal point"),
        ("low", "as in 0 for low"),
    ],
)
def test_advice_on_a_cell_that_is_no_number(tmp_path, cell, says):
    (tmp_path / "log.csv").write_text(f"x;u\n0.1;1\n{cell};2\n0.3;3\n")
    with pytest.raises(UserError, match=re.escape(says)):
        load(tmp_path / "log.csv", columns=parse_columns("obs=x action=u"))


def test_the_columns_of_a_frame_may_be_numbers():
    pandas = pytest.importorskip("pandas")
    data = offlinerl.load_dataset(pandas.DataFrame({0: [1.0, 2.0], 1: [3.0, 4.0]}), columns=dict(obs=[0], action=[1]))
    assert data.obs.tolist() == [[1]] and data.action.tolist() == [[3]]
