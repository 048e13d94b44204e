"""Merging, splitting, filtering and showing datasets."""

import copy
import fcntl
import json
import os
from collections import OrderedDict
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import yaml
from pendulum import ID, empty_workplace, install
from test_formats import EPISODES, assert_rows, d3rlpy, robomimic

import offlinerl
from offlinerl.cli import main
from offlinerl.data import edit, registry
from offlinerl.data.episode import Episode
from offlinerl.data.inferred import spec_of_data
from offlinerl.data.minari_writer import write_minari
from offlinerl.util.errors import UserError


@pytest.fixture
def here(tmp_path):
    with empty_workplace(tmp_path) as folder:
        yield folder


def test_merged_datasets_hold_all_episodes_and_name_their_sources(here, capsys):
    robomimic(here / "a.hdf5", EPISODES[:3]), robomimic(here / "b.hdf5", EPISODES[3:])
    assert main(["datasets", "merge", "a.hdf5", "b.hdf5", "--out", "both.hdf5"]) == 0
    data = offlinerl.load_dataset("both.hdf5")
    assert_rows(data)
    origin = data.provenance["provenance"]
    assert origin["format"] == "merged" and [of["name"] for of in origin["sources"]] == ["a", "b"]
    assert origin["sources"][1]["format"] == "robomimic HDF5" and origin["sources"][1]["file"] == "b.hdf5"
    assert main(["datasets", "merge", "both.hdf5", "a.hdf5", "--out", "three/parts-v0"]) == 0
    data = offlinerl.load_dataset("three/parts-v0")
    assert_rows(data, EPISODES + EPISODES[:3])
    assert data.provenance["provenance"]["sources"][0]["provenance"]["format"] == "merged", "also what came before"
    assert main(["datasets", "merge", "a.hdf5", "b.hdf5", "--out", "both.hdf5"]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["datasets", "merge", "a.hdf5", "b.hdf5", "--out", "both"]) == 1
    assert "--out must be an HDF5 file" in capsys.readouterr().err


def test_parts_of_other_shapes_or_rewards_do_not_merge(here):
    install(here / "minari")
    robomimic(here / "a.hdf5")
    pendulum, other = offlinerl.load_dataset(ID), offlinerl.load_dataset("a.hdf5")
    with pytest.raises(UserError, match=r"actions of shape \(2,\) do not match those of shape \(1,\)"):
        edit.merge([pendulum, other])
    with pytest.raises(UserError, match="rewards by other rules"):
        edit.merge([pendulum, offlinerl.load_dataset(ID, reward="minus_one")])
    whole = edit.merge([pendulum, pendulum])
    assert whole.entry.env_id == "Pendulum-v1" and len(whole) == 2 * len(pendulum)
    assert whole.provenance["env_spec"] == pendulum.provenance["env_spec"]


def log(name, obs, columns="x,y", action=0.5):
    """A table of four rows, and what its columns are."""
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(f"{columns},u\n" + "".join(f"{t},{100 + t},{action}\n" for t in range(4)))
    Path(f"{name}.columns.yaml").write_text(yaml.safe_dump(dict(obs) | dict(action=["u"]), sort_keys=False))
    return name


def together(first, second):
    return main(["datasets", "merge", first, second, "--out", "both.hdf5", "--overwrite"])


@pytest.mark.parametrize(
    ("one", "other", "columns", "says"),
    [
        ([("obs", ["x", "y"])], [("obs", ["y", "x"])], "x,y", "observes the columns y, x, and a x, y: choose the same"),
        ([("obs", ["x", "y"])], [("obs", ["*_x", "*_y"])], "pos_x,pos_y", "columns pos_x, pos_y, and a x, y: choose"),
        ([("obs.p", ["x"]), ("obs.v", ["y"])], [("obs.v", ["y"]), ("obs.p", ["x"])], "x,y", "observes v, p, and a obs"),
        ([("obs.p", ["x", "y"])], [("obs.p", ["x", "y"])], "x,y", None),
        ([("obs.p", ["x", "y"])], [("obs.p", ["y", "x"])], "x,y", "observes the columns y, x, and a x, y: choose"),
        ([("obs.p", ["x", "y"])], [("obs.p", ["pos_x", "pos_y"])], "pos_x,pos_y", None),
    ],
)  # fmt: skip
def test_tables_merge_if_their_columns_mean_the_same(here, capsys, one, other, columns, says):
    log("a.csv", one), log("b.csv", other, columns)
    assert together("a.csv", "b.csv") == bool(says)
    assert (says or "") in capsys.readouterr().err
    if not says:
        np.testing.assert_array_equal(offlinerl.load_dataset("both.hdf5").obs, [[t, 100 + t] for t in range(3)] * 2)


def test_tables_merge_in_the_given_order_of_columns(here):
    log("a.csv", [("obs", ["x", "y"])]), log("b.csv", [("obs", ["y", "x"])])
    given = ["--columns", "obs=y,x", "action=u"]
    assert main(["datasets", "merge", "a.csv", "b.csv", "--out", "both.hdf5", *given]) == 0
    assert offlinerl.load_dataset("both.hdf5").obs.tolist() == [[100 + t, t] for t in range(3)] * 2


@pytest.mark.parametrize("actions", [["u_*"], ["u_1", "u_2"]])
def test_actions_merge_if_their_columns_are_in_one_order(here, capsys, actions):
    for name, columns in dict(a="u_1,u_2", b="u_2,u_1").items():
        Path(f"{name}.csv").write_text(f"x,{columns}\n" + "0,1,2\n" * 4)
        given = actions if name == "a" or actions == ["u_*"] else actions[::-1]
        Path(f"{name}.csv.columns.yaml").write_text(yaml.safe_dump(dict(obs=["x"], action=given)))
    assert together("a.csv", "b.csv") == 1
    said = "the actions of b are the columns u_2, u_1, and those of a u_1, u_2: name the same, in one order, with --col"
    assert said in capsys.readouterr().err
    Path("b.csv.columns.yaml").write_text(yaml.safe_dump(dict(obs=["x"], action=["u_1", "u_2"])))
    assert together("a.csv", "b.csv") == 0
    assert offlinerl.load_dataset("both.hdf5").action.tolist() == [[1, 2]] * 3 + [[2, 1]] * 3


def test_all_actions_with_names_are_compared(here):
    rows = {name: np.zeros((4, 1)) for name in ("obs", "reward", "terminated")}
    parts = [offlinerl.load_dataset(rows | dict(action=np.ones((4, 2))))]
    for order in ("u_1,u_2", "u_2,u_1"):
        table = dict(x=np.zeros(4), u_1=np.zeros(4), u_2=np.ones(4))
        parts.append(offlinerl.load_dataset(table, columns=f"obs=x action={order}"))
    assert len(edit.merge(parts[:2])) == 6
    with pytest.raises(UserError, match="are the columns u_2, u_1, and those of .* u_1, u_2"):
        edit.merge(parts)


def test_actions_whose_columns_have_no_name_in_common_merge(here):
    for name in "ab":
        Path(f"{name}.csv").write_text(f"x,{name}_1,{name}_2\n" + "0,1,2\n" * 4)
        Path(f"{name}.csv.columns.yaml").write_text(yaml.safe_dump(dict(obs=["x"], action=[f"{name}_1", f"{name}_2"])))
    assert together("a.csv", "b.csv") == 0


@pytest.mark.parametrize("folder", [True, False])
def test_robomimic_files_with_other_part_names_do_not_merge(here, capsys, folder):
    Path("logs").mkdir()
    robomimic(here / "logs/a.hdf5", EPISODES[:3]), robomimic(here / "logs/b.hdf5", EPISODES[3:])
    assert_rows(offlinerl.load_dataset("logs"))
    with h5py.File("logs/b.hdf5", "a") as file:
        for demo in file["data"].values():
            for name in ("obs", "next_obs"):
                demo.move(f"{name}/gripper", f"{name}/a_joint")
    assert (main(["datasets", "show", "logs"]) if folder else together("logs/a.hdf5", "logs/b.hdf5")) == 1
    b, a = ("logs/b.hdf5", "logs/a.hdf5") if folder else "ba"
    said = (
        f"{b} observes a_joint, eef_pos, and {a} observes eef_pos, gripper: choose the same, in one order, with --obs"
    )
    assert said in capsys.readouterr().err


def test_tables_of_a_folder_with_another_order_of_parts_are_refused(here, capsys):
    log("logs/a.csv", [("obs.p", ["x"]), ("obs.v", ["y"])]), log("logs/b.csv", [("obs.v", ["y"]), ("obs.p", ["x"])])
    assert main(["datasets", "show", "logs"]) == 1
    assert "logs/b.csv observes v, p, and logs/a.csv observes p, v" in capsys.readouterr().err
    assert main(["datasets", "show", "logs", "--obs-keys", "v,p"]) == 0


def test_minari_parts_in_another_order_merge_only_if_one_part_is_chosen(here, capsys):
    values = dict(pos=np.arange(4, dtype=np.float32)[:, None], vel=np.arange(100, 104, dtype=np.float32)[:, None])
    for name, keys in {"pos/first-v0": ("pos", "vel"), "vel/first-v0": ("vel", "pos")}.items():
        box = gym.spaces.Box(-999, 999, (1,), np.float32)
        write_minari(
            registry.minari_root() / name, [Episode({key: values[key] for key in keys}, np.zeros((3, 1), np.float32),
            np.zeros(3), np.zeros(3, bool), np.arange(3) == 2)], dataset_id=name, env_spec=None, action_space=box,
            observation_space=gym.spaces.Dict(OrderedDict((key, box) for key in keys)),
        )  # fmt: skip
    assert together("pos/first-v0", "vel/first-v0") == 1
    assert "vel/first-v0 observes vel, pos, and pos/first-v0 observes pos, vel" in capsys.readouterr().err
    both = ["pos/first-v0", "vel/first-v0", "--out", "both.hdf5"]
    assert main(["datasets", "merge", *both, "--obs-keys", "vel,pos"]) == 0
    assert offlinerl.load_dataset("both.hdf5").obs.tolist() == [[100 + t, t] for t in range(3)] * 2
    assert main(["datasets", "export", "pos/first-v0", "pos.hdf5"]) == 0
    assert together("pos.hdf5", "pos/first-v0") == 0 and together("pos.hdf5", "vel/first-v0") == 1


def test_discrete_and_continuous_actions_do_not_merge(here, capsys):
    obs = [("obs", ["x", "y"])]
    log("a.csv", obs, action=1), log("b.csv", obs, action=0.5), log("c.csv", obs, action="1.0")
    assert together("a.csv", "b.csv") == 1
    assert "the actions of a are choices, and those of b are not" in capsys.readouterr().err
    assert together("c.csv", "b.csv") == together("a.csv", "a.csv") == 0
    d3rlpy(here / "a.h5")
    with pytest.raises(UserError, match=r"actions of shape \(1,\) .* before them; keep the episodes of one kind"):
        edit.merge([offlinerl.load_dataset(name) for name in ("a.h5", d3rlpy(here / "c.h5", discrete=True))])


@pytest.mark.parametrize(
    ("words", "out"),
    [
        (["merge", "a.hdf5", "a.hdf5"], ["{}"]),
        (["split", "a.hdf5"], ["one-{}", "other-{}"]),
        (["filter", "a.hdf5", "--episodes", "0,1"], ["{}"]),
    ],
)
def test_a_file_in_d4rls_format_cannot_hold_images_and_a_state_but_a_minari_dataset_can(here, refused, words, out):
    robomimic(here / "a.hdf5", images=True)
    said = refused("datasets", *words, "--out", *(name.format("some.hdf5") for name in out))
    assert said.endswith("choose one with --obs-keys, or write a Minari dataset, as with --out mine/some-v0")
    assert main(["datasets", *words, "--out", *(name.format("some-v0") for name in out)]) == 0
    assert isinstance(offlinerl.load_dataset(out[0].format("some-v0")).obs, dict)
    assert refused("datasets", "export", "a.hdf5", "b.hdf5").endswith("or another format, as in --format robomimic")


def test_a_split_has_every_episode_once(here):
    robomimic(here / "a.hdf5")
    assert (
        main(["datasets", "split", "a.hdf5", "--share", "0.7", "--seed", "3", "--out", "rest.hdf5", "held.hdf5"]) == 0
    )
    parts = [offlinerl.load_dataset(name) for name in ("rest.hdf5", "held.hdf5")]
    assert [len(part.episode_starts) for part in parts] == [5, 2]
    rows = [tuple(row) for part in parts for row in part.obs]
    assert sorted(rows) == sorted(tuple(row) for row in offlinerl.load_dataset("a.hdf5").obs)
    assert parts[1].provenance["provenance"]["part"] == "second"
    again = edit.split(offlinerl.load_dataset("a.hdf5"), 0.7, 3)
    np.testing.assert_array_equal(again[0].obs, parts[0].obs)
    assert not np.array_equal(edit.split(offlinerl.load_dataset("a.hdf5"), 0.7, 4)[0].obs, parts[0].obs)
    with pytest.raises(UserError, match="has one episode"):
        edit.split(parts[0].take([0]), 0.5)


def test_episodes_are_kept_by_return_length_and_number(here, capsys):
    data = offlinerl.load_dataset(robomimic(here / "a.hdf5"))
    returns, lengths = np.array([one["reward"].sum() for one in EPISODES]), [len(one["action"]) for one in EPISODES]
    middle = float(np.median(returns))
    by = {
        ("--min-return", str(middle)): [n for n in range(7) if returns[n] >= middle],
        ("--max-return", str(middle)): [n for n in range(7) if returns[n] <= middle + 1e-6],
        ("--min-length", "6"): [n for n in range(7) if lengths[n] >= 6],
        ("--max-length", "5", "--min-length", "5"): [n for n in range(7) if lengths[n] == 5],
        ("--episodes", "1-3,6"): [1, 2, 3, 6],
        ("--top", "0.3"): sorted(np.argsort(-returns)[:2]),
    }
    for flags, numbers in by.items():
        if "return" in flags[0]:
            flags = (flags[0], str(middle + (1e-4 if "max" in flags[0] else -1e-4)))
        assert main(["datasets", "filter", "a.hdf5", *flags, "--out", "some.hdf5", "--overwrite"]) == 0
        assert_rows(offlinerl.load_dataset("some.hdf5"), [EPISODES[n] for n in numbers])
    with pytest.raises(UserError, match="no episode of a is like that: returns are"):
        edit.some(data, min_length=100)
    for number in (7, -1):
        with pytest.raises(UserError, match=f"has 7 episodes, from 0 to 6, and no episode {number}"):
            edit.some(data, episodes=[number])
    assert main(["datasets", "filter", "a.hdf5", "--out", "some.hdf5"]) == 2
    assert main(["datasets", "filter", "a.hdf5", "--success", "--out", "some.hdf5", "--overwrite"]) == 1
    assert "different rewards, and success shows where there are two" in capsys.readouterr().err


def test_success_is_the_higher_of_two_rewards(here):
    sparse = [one | dict(reward=one["terminated"] - 1.0) for one in EPISODES]
    robomimic(here / "a.hdf5", sparse)
    assert main(["datasets", "filter", "a.hdf5", "--success", "--out", "good.hdf5"]) == 0
    assert main(["datasets", "filter", "a.hdf5", "--no-success", "--out", "bad.hdf5"]) == 0
    assert_rows(offlinerl.load_dataset("good.hdf5"), sparse[1::2])
    assert_rows(offlinerl.load_dataset("bad.hdf5"), sparse[0::2])
    assert offlinerl.load_dataset("good.hdf5").provenance["provenance"]["success"] is True


def test_discrete_actions_and_the_environment_survive(here):
    d3rlpy(here / "a.h5", discrete=True)
    for target in ("some.hdf5", "some/choices-v0"):
        assert main(["datasets", "filter", "a.h5", "--min-length", "5", "--out", target]) == 0
        assert np.dtype(offlinerl.load_dataset(target).provenance["action_dtype"]).kind == "i"
    with h5py.File("some.hdf5") as file:
        assert file["actions"].dtype == np.int64
    install(here / "minari")
    assert main(["datasets", "filter", ID, "--episodes", "0-2", "--out", "few.hdf5"]) == 0
    data = offlinerl.load_dataset("few.hdf5")
    assert data.entry.env_id == "Pendulum-v1" and len(data.episode_starts) == 3


def test_foreign_provenance_does_not_prevent_reading(here):
    robomimic(here / "a.hdf5")
    assert main(["datasets", "export", "a.hdf5", "b.hdf5"]) == 0
    with h5py.File("b.hdf5", "a") as file:
        file.attrs["provenance"] = "from the lab"
    assert offlinerl.load_dataset("b.hdf5").provenance["provenance"] == "from the lab"


def test_a_frame_of_pandas_holds_every_row_and_is_read_again(here):
    pytest.importorskip("pandas", reason="pandas is not installed")
    data = offlinerl.load_dataset(robomimic(here / "a.hdf5"))
    frame = data.to_pandas(next_obs=True)
    np.testing.assert_array_equal(frame[["obs_0", "obs_1", "obs_2"]], data.obs)
    np.testing.assert_array_equal(frame["action_1"], data.action[:, 1])
    assert frame["episode"].nunique() == 7 and frame["step"].tolist()[:6] == [0, 1, 2, 3, 0, 1]
    assert_rows(offlinerl.load_dataset(frame))
    assert_rows(offlinerl.load_dataset(data.to_pandas()), final=False)
    robomimic(here / "b.hdf5", images=True)
    with pytest.raises(UserError, match="obs_agentview_image are images"):
        offlinerl.load_dataset("b.hdf5").to_pandas()


def test_a_frame_keeps_discrete_actions_discrete(here):
    pytest.importorskip("pandas", reason="pandas is not installed")
    ends = np.arange(6) % 3 == 2
    data = offlinerl.load_dataset(
        dict(obs=np.arange(12.0).reshape(6, 2), action=np.arange(6) % 3, reward=np.ones(6), terminated=ends)
    )
    again = offlinerl.load_dataset(data.to_pandas(next_obs=True))
    for one in (data, again):
        assert spec_of_data(one)[1] == "discrete actions from 0 to 2, those in the data"
    data.write("written")
    mapped = offlinerl.load_dataset("written").take(np.array([1]))
    assert mapped.to_pandas()["action_0"].tolist() == [0, 1, 2]


def test_slices_are_datasets(here):
    data = offlinerl.load_dataset(robomimic(here / "a.hdf5"))
    for begin, end in ((0, 4), (2, 9), (5, 6), (0, len(data))):
        part = data[begin:end]
        for name in ("obs", "next_obs", "action", "reward", "terminated"):
            np.testing.assert_array_equal(getattr(part, name), getattr(data, name)[begin:end])
        np.testing.assert_array_equal(part.last[:-1], data.last[begin : end - 1])
        assert part.last[-1] and len(part.observations) <= end - begin + len(part.episode_starts)
    with pytest.raises(TypeError, match="has slices"):
        data[3]
    for wrong in (slice(0, 0), slice(0, 9, 2)):
        with pytest.raises(ValueError, match="at least one row"):
            data[wrong]


def test_a_datasets_repr_describes_it_in_one_line(here):
    data = offlinerl.load_dataset(robomimic(here / "a.hdf5"))
    assert repr(data) == "<Dataset a: 37 transitions in 7 episodes, 3 observations, 2 actions>"


def test_a_written_folder_is_loaded_by_its_path(here):
    offlinerl.load_dataset(robomimic(here / "a.hdf5")).write("written")
    assert_rows(offlinerl.load_dataset("written"))


def test_show_begins_with_the_most_important_facts(here, capsys):
    d3rlpy(here / "a.h5")
    assert main(["datasets", "show", "a.h5", "--json", "a.json"]) == 0
    lines = dict(line.split("\t") for line in capsys.readouterr().out.splitlines() if "\t" in line)
    assert list(lines)[:6] == ["episodes", "steps", "returns", "lengths", "ends", "observations"]
    assert lines["steps"] == "33, and 4 more that have no successor" and lines["ends"] == "3 terminated, 4 cut off"
    assert lines["observations"] == "3 numbers" and lines["actions"].startswith("2 numbers from -0.")
    assert lines["from"] == "d3rlpy HDF5 a.h5" and lines["environment"] == "not named"
    facts = json.loads(Path("a.json").read_text())
    assert (facts["rows"], facts["episodes"], facts["provenance"]["rows_dropped"]) == (33, 7, 4)
    assert main(["datasets", "show", "a.h5", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == facts
    one = dict(obs=np.zeros((2, 1)), action=np.array([[-1.0], [2]]), reward=np.ones(2), terminated=np.array([0, 1]))
    offlinerl.load_dataset(one).write("one")
    assert main(["datasets", "show", "one", "--png", "one.png"]) == 0
    said = capsys.readouterr().out
    assert "observations\t1 number\n" in said and "actions\t1 number from -1 to 2\n" in said
    d3rlpy(here / "b.h5", discrete=True)
    assert main(["datasets", "show", "b.h5"]) == 0
    assert "actions\t2 choices, from 0 on" in capsys.readouterr().out


def swings(name, **metadata):
    """A Minari dataset of four episodes of three steps with 3 observations, as from an environment."""
    rng = np.random.default_rng(0)
    made = [
        Episode(*(rng.uniform(-1, 1, shape).astype(np.float32) for shape in ((4, 3), (3, 1), 3)), np.zeros(3, bool),
                np.arange(3) == 2) for _ in range(4)
    ]  # fmt: skip
    env_spec = metadata.pop("env_spec", gym.spec("Pendulum-v1"))
    return write_minari(
        registry.minari_root() / name, made, dataset_id=name, env_spec=env_spec, metadata=metadata,
        observation_space=gym.spaces.Box(-9, 9, (3,), np.float32), action_space=gym.spaces.Box(-2, 2, (1,), np.float32),
    )  # fmt: skip


def metadata_of(name):
    return json.loads((registry.minari_root() / name / "data/metadata.json").read_text())


WAYS = dict(
    filter=["filter", "one/swing-v0", "--min-length", "1"], merge=["merge", "one/swing-v0", "one/swing-v0"],
    import_=["import", "one/swing-v0"], file=["import", "file.hdf5"],
)  # fmt: skip


def made_of_one(way):
    """Make a dataset from another one in one of the ways, and return its name."""
    if way == "file":
        assert main(["datasets", "filter", "one/swing-v0", "--min-length", "1", "--out", "file.hdf5"]) == 0
    out = [] if "import" in WAYS[way] else ["--out"]
    assert main(["datasets", *WAYS[way], *out, "other/swing-v0"]) == 0
    return "other/swing-v0"


@pytest.mark.parametrize("way", WAYS)
def test_data_of_single_frames_keeps_its_frame_stack(here, way):
    swings("one/swing-v0", frame_stack=3)
    name = made_of_one(way)
    data = offlinerl.load_dataset(name)
    np.testing.assert_array_equal(data.obs[:12], offlinerl.load_dataset("one/swing-v0").obs)
    assert data.obs.shape[1:] == (3,) and data.entry.env["stack"] == data.provenance["frame_stack"] == 3
    assert json.loads(metadata_of(name)["env_spec"])["id"] == "Pendulum-v1"


@pytest.mark.parametrize("way", ["filter", "merge", "import_"])
def test_scores_and_the_environment_of_evaluation_are_kept(here, way):
    swings("one/swing-v0", ref_min_score=-1200.0, ref_max_score=-150.0, eval_env_spec=gym.spec("Pendulum-v1").to_json(),
           env_spec=gym.make("Pendulum-v1", max_episode_steps=9).spec)  # fmt: skip
    name = made_of_one(way)
    entry, metadata = registry.resolve(name), metadata_of(name)
    assert (entry.score_kind, entry.score["min"], entry.score["max"]) == ("minari", -1200, -150)
    assert json.loads(metadata["env_spec"])["max_episode_steps"] == 9
    assert json.loads(metadata["eval_env_spec"])["max_episode_steps"] == 200


def test_scores_are_dropped_unless_all_parts_have_the_same(here):
    swings("one/swing-v0", ref_min_score=-1200.0, ref_max_score=-150.0)
    swings("two/swing-v0", ref_min_score=-1200.0, ref_max_score=-100.0)
    assert main(["datasets", "merge", "one/swing-v0", "two/swing-v0", "--out", "both/swing-v0"]) == 0
    assert registry.resolve("both/swing-v0").score is None and registry.resolve("both/swing-v0").env_id == "Pendulum-v1"
    assert main(["datasets", "import", "one/swing-v0", "three/swing-v0", "--env", "Pendulum-v1"]) == 0
    assert registry.resolve("three/swing-v0").score is None, "of another environment than the dataset's own"


@pytest.mark.parametrize("way", ["filter", "merge", "import_"])
def test_an_environment_that_is_not_installed_is_still_named(here, way):
    spec = copy.deepcopy(gym.spec("Pendulum-v1"))
    spec.id, spec.entry_point = "NotInstalled-v7", "nowhere:Robot"
    swings("one/swing-v0", env_spec=spec)
    name = made_of_one(way)
    assert registry.resolve(name).env_id == "NotInstalled-v7"
    assert metadata_of(name)["action_space"] == metadata_of("one/swing-v0")["action_space"]


def test_names_of_published_datasets_cannot_be_taken(here, capsys):
    robomimic(here / "a.hdf5")
    out = ["--out", "D4RL/kitchen/complete-v2"]
    for argv in (
        ["import", "a.hdf5", out[1]],
        ["filter", "a.hdf5", "--min-length", "1", *out],
        ["merge", *["a.hdf5"] * 2, *out],
    ):
        assert main(["datasets", *argv]) == 1
        assert "D4RL/kitchen/complete-v2 is the name of a published dataset; choose another" in capsys.readouterr().err
    assert not (registry.minari_root() / "D4RL").exists()
    assert main(["datasets", "import", "a.hdf5", "mine"]) == 1
    assert "id mine is no name of a dataset; choose one like cartpole/random-v0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ("a.hdf5", "taken.hdf5", "taken.hdf5 already exists"), ("a.hdf5", "b", "--out must be an HDF5 file"),
        ("a.hdf5", "./a.hdf5", "--out names a.hdf5 twice"), ("mine/a-v0", "mine/a-v0", "twice"),
        ("a.hdf5", "D4RL/kitchen/complete-v2", "published dataset"),
    ],
)  # fmt: skip
def test_a_split_is_refused_before_any_part_is_written(here, capsys, first, second, says):
    swings("one/swing-v0")
    Path("taken.hdf5").write_text("mine")
    overwrite = ["--overwrite"] if "twice" in says else []
    assert main(["datasets", "split", "one/swing-v0", "--share", "0.5", "--out", first, second, *overwrite]) == 1
    assert says in capsys.readouterr().err
    assert not Path("a.hdf5").exists() and not (registry.minari_root() / "mine").exists()


def test_an_export_to_the_id_of_a_dataset_names_the_command_that_writes_one(here, refused):
    swings("one/swing-v0")
    line = refused("datasets", "export", "one/swing-v0", "two/swing-v1")
    assert "name a file, such as two/swing-v1.hdf5, or use `offlinerl datasets merge one/swing-v0 --out" in line
    assert not Path("two").exists()


@pytest.mark.parametrize(
    ("source", "command"),
    [
        ("a.hdf5", ["export", "a.hdf5", "a.hdf5"]),
        ("a.hdf5", ["export", "link.hdf5", "a.hdf5"]),
        ("a.hdf5", ["export", "*.hdf5", "a.hdf5", "--format", "robomimic"]),
        ("logs/a.hdf5", ["filter", "logs", "--min-length", "1", "--out", "logs/a.hdf5"]),
        ("a.hdf5", ["merge", "one/swing-v0", "a.hdf5", "--out", "a.hdf5"]),
        ("one/swing-v0", ["split", "one/swing-v0", "--share", "0.5", "--out", "b.hdf5", "one/swing-v0"]),
        ("one/swing-v0", ["import", "one/swing-v0", "one/swing-v0"]),
        ("one/swing-v0", ["import", "minari/one/swing-v0/data", "one/swing-v0"]),
    ],
)
def test_a_dataset_is_never_replaced_by_its_own_derivative(here, refused, source, command):
    swings("one/swing-v0")
    Path("logs").mkdir()
    for name in ("a.hdf5", "logs/a.hdf5"):
        assert main(["datasets", "export", "one/swing-v0", name]) == 0
    Path("link.hdf5").symlink_to("a.hdf5")
    before = offlinerl.load_dataset(source)
    line = refused("datasets", *command, "--overwrite")
    assert "is also to be read and would be replaced: choose another place to write" in line
    np.testing.assert_array_equal(offlinerl.load_dataset(source).obs, before.obs)
    assert not Path("b.hdf5").exists()


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("out.hdf5", ["export", "one/swing-v0", "out.hdf5"]),
        ("out.hdf5", ["export", "one/swing-v0", "out.hdf5", "--format", "robomimic"]),
        ("out", ["export", "one/swing-v0", "out", "--format", "lerobot", "--fps", "10"]),
        ("minari/other/swing-v0", ["import", "one/swing-v0", "other/swing-v0"]),
        ("minari/other/swing-v0", ["filter", "one/swing-v0", "--min-length", "1", "--out", "other/swing-v0"]),
    ],
)
def test_leftovers_of_a_killed_command_are_deleted_by_the_next_one(here, name, command):
    swings("one/swing-v0")
    path = here / name
    left, other = (path.with_name(f".{of}.0123abcd") for of in (path.name, "another.hdf5"))
    for place in (left, other):
        place.mkdir(parents=True)
        (place / "half").write_text("of it")
    folder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_SH)  # as if another process were writing there
    assert main(["datasets", *command]) == 0 and left.exists()
    os.close(folder)
    assert main(["datasets", *command, "--overwrite"]) == 0
    assert path.exists() and other.exists() and not left.exists()


def test_shows_default_picture_never_replaces_another_file(here, capsys):
    Path("log.csv").write_text("obs,action,reward,done\n1,.1,0,0\n2,.2,1,1\n")
    for _ in range(2):
        assert main(["datasets", "show", "log.csv"]) == 0
    assert [file.name for file in here.glob("*.png")] == ["log.png"], "its own one is drawn anew"
    Path("log.png").write_text("a photo")
    for _ in range(2):
        assert main(["datasets", "show", "log.csv"]) == 0
    assert Path("log.png").read_text() == "a photo" and "picture: log-2.png" in capsys.readouterr().out
    assert sorted(file.name for file in here.glob("*.png")) == ["log-2.png", "log.png"]
    assert main(["datasets", "show", "log.csv", "--png", "log.png"]) == 0
    assert Path("log.png").read_bytes().startswith(b"\x89PNG"), "as it was asked for"
