"""Unusual contents of files: read as they are meant, or refused in a sentence that names the row."""

import builtins
import json
import sys
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from pendulum import empty_workplace

import offlinerl
from offlinerl.cli import main
from offlinerl.data import describe, registry, validate
from offlinerl.data.d4rl import load_hdf5
from offlinerl.data.episode import Episode
from offlinerl.data.load import load
from offlinerl.data.minari_reader import load_minari
from offlinerl.data.minari_writer import write_minari
from offlinerl.training import config
from offlinerl.util.errors import UserError

REAL = Path(__file__).parents[2] / "shared" / "data"
FEW = ["--updates=4", "--eval-every=4", "--eval-episodes=1", "--final-episodes=1", "--compile=false", "--batch=8"]
LENGTH, EPISODES = 200, 5  # Pendulum's
ROWS = LENGTH * EPISODES


@pytest.fixture(autouse=True)
def here(tmp_path):
    with empty_workplace(tmp_path):
        yield tmp_path


@pytest.fixture
def refused(capsys):
    """Runs a command line that must fail with one line, and returns the line."""

    def check(*argv):
        capsys.readouterr()
        assert main([str(word) for word in argv]) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("offlinerl")]
        assert "Traceback" not in line
        return line

    return check


def pendulum(**changes):
    """Columns of five episodes of Pendulum by random actions, without flags; those that are None are left out."""
    rng = np.random.default_rng(0)
    columns = dict(
        observations=rng.uniform(-1, 1, (ROWS, 3)).astype(np.float32),
        actions=rng.uniform(-2, 2, (ROWS, 1)).astype(np.float32),
        rewards=-rng.random(ROWS).astype(np.float32),
        terminals=np.zeros(ROWS, bool),
    )
    return {key: column for key, column in {**columns, **changes}.items() if column is not None}


def lake(episodes=6, length=7, **changes):
    """Columns of FrozenLake, whose observations and actions are numbers."""
    rng, rows = np.random.default_rng(0), episodes * length
    columns = dict(
        observations=rng.integers(0, 16, rows), actions=rng.integers(0, 4, rows), rewards=np.zeros(rows, np.float32),
        terminals=np.arange(rows) % length == length - 1,
    )  # fmt: skip
    return {**columns, **changes}


def write(columns, path="some.hdf5"):
    with h5py.File(path, "w") as file:
        for key, column in columns.items():
            file[key] = column
    return path


def ends_every(length, rows=ROWS):
    return np.arange(rows) % length == length - 1


@pytest.mark.parametrize("name", ["observations", "actions"])
def test_columns_without_numbers_are_refused(name, refused):
    """No network can be built for such columns."""
    columns = pendulum(**{name: np.zeros((ROWS, 0), np.float32)}, timeouts=ends_every(200))
    np.savez("some.npz", **columns)
    says = rf"{name} are of shape \(0,\), which holds no number"
    for path in (write(columns), "some.npz"):
        with pytest.raises(UserError, match=says):
            load(path)
        assert "holds no number" in refused("datasets", "validate", path)
    arrays = dict(
        obs=columns["observations"], action=columns["actions"], reward=columns["rewards"], terminated=np.zeros(ROWS)
    )
    with pytest.raises(UserError, match=r"of shape \(0,\), which holds no number"):
        offlinerl.load_dataset(arrays)


# ------------------------------------------------------------------------------------------------- where episodes end


@pytest.mark.parametrize("terminals", [np.zeros(ROWS, bool), np.zeros(ROWS, np.float32), np.zeros((ROWS, 1)), None])
def test_without_ends_the_environments_time_limit_ends_episodes(terminals):
    data = load(write(pendulum(terminals=terminals)), "Pendulum-v1")
    np.testing.assert_array_equal(data.episode_lengths, [LENGTH - 1] * EPISODES)  # the last row has no successor
    assert not data.terminated.any()


def test_the_suites_own_time_limit_ends_episodes_too():
    rng, rows = np.random.default_rng(0), 3000
    columns = dict(observations=rng.normal(size=(rows, 17)), actions=rng.uniform(-1, 1, (rows, 6)))
    path = write(columns | dict(rewards=np.zeros(rows), terminals=np.zeros(rows)))
    np.testing.assert_array_equal(load(path, "dm_control/cheetah-run-v0").episode_lengths, [999] * 3)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1)])
@pytest.mark.parametrize("name", ["timeouts", "truncations", "truncateds", "episode_terminals", "dones_float", "dones"])
def test_ends_with_other_names_beside_terminals_are_truncations(name, dtype, shape):
    columns = pendulum(**{name: ends_every(100).astype(dtype).reshape(shape)})
    data = load(write(columns), "Pendulum-v1")
    np.testing.assert_array_equal(data.episode_lengths, [99] * 10)
    assert not data.terminated.any()


@pytest.mark.parametrize("name", ["terminals", "terminations", "terminated", "terminateds"])
def test_terminations_with_other_names_are_read(name):
    over = np.isin(np.arange(ROWS), [49, 349])
    data = load_hdf5(write(pendulum(**{"terminals": None, name: over, "truncations": ends_every(200)})))
    np.testing.assert_array_equal(np.flatnonzero(data.terminated), [49, 348])  # a truncated row has been left out
    np.testing.assert_array_equal(data.episode_lengths, [50, 149, 150, 49, 199, 199, 199])


@pytest.mark.parametrize("name", ["dones", "done", "dones_float", "episode_terminals"])
def test_ends_without_terminals_are_terminal_except_at_the_time_limit(name):
    done = np.isin(np.arange(ROWS), [49, 249, 449, 649, 849, ROWS - 1])
    data = load(write(pendulum(**{"terminals": None, name: done})), "Pendulum-v1")
    np.testing.assert_array_equal(data.episode_lengths, [50, 199, 199, 199, 199, 150])
    assert np.flatnonzero(data.terminated).tolist() == [49, len(data) - 1]


def test_terminations_and_truncations_are_distinguished():
    over = np.isin(np.arange(ROWS), [99])
    columns = pendulum(terminals=over, episode_terminals=ends_every(100))
    data = load_hdf5(write(columns))
    assert np.flatnonzero(data.terminated).tolist() == [99]
    np.testing.assert_array_equal(data.episode_lengths, [100] + [99] * 9)


@pytest.mark.parametrize("name", ["episode", "episode_id", "episode_ids", "trajectory"])
@pytest.mark.parametrize("flags", [{}, dict(terminals=None), dict(terminals=None, dones=ends_every(50))])
def test_episodes_are_separated_by_their_ids_as_in_a_table(name, flags):
    ids = np.arange(ROWS) // 100 + 7
    columns = pendulum(**flags, **{name: ids})
    data = load_hdf5(write(columns))
    np.savez("some.npz", **columns)
    table = load("some.npz")
    for of in ("obs", "next_obs", "terminated", "last"):
        np.testing.assert_array_equal(getattr(data, of), getattr(table, of), of)
    assert len(data.episode_lengths) == (20 if "dones" in flags else 10) and name in data.provenance["episode_ends"]
    assert [found.kind for found in validate.validate("some.hdf5")] == ["action range"]  # Pendulum's, not named
    words = np.array([f"run {number}" for number in ids], "S8").reshape(-1, 1)
    np.testing.assert_array_equal(load_hdf5(write(columns | {name: words})).last, data.last)


def test_an_id_in_separate_places_is_refused_unless_ends_are_between():
    with pytest.raises(UserError, match="the row 500 is of an episode, 0 by episode, that others came after: write"):
        load_hdf5(write(pendulum(episode=np.arange(ROWS) // 100 % 5)))
    data = load_hdf5(write(pendulum(episode=np.arange(ROWS) // 100 % 5, timeouts=ends_every(100))))
    assert data.episode_lengths.tolist() == [99] * 10, "two logs, each of which counts from 0"
    data = load(write(pendulum(episode=np.arange(5))), "Pendulum-v1")  # one number per episode instead of per row
    assert data.episode_lengths.tolist() == [LENGTH - 1] * EPISODES


@pytest.mark.parametrize("name", ["timeouts", "truncations", "dones", "terminals"])
def test_an_episode_longer_than_the_environment_allows_is_refused_with_the_row(name, refused):
    ends = np.isin(np.arange(ROWS), [99, 499, ROWS - 1])
    extra = dict(truncations=np.zeros(ROWS, bool)) if name == "terminals" else {}
    write(pendulum(**{name: ends}, **extra))
    line = refused("fit", "bc", "--dataset", "some.hdf5", "--env", "Pendulum-v1", *FEW)
    assert "begins in row 100" in line and "row 300" in line and "200 steps" in line and "--env" in line


def test_flags_that_are_all_false_do_not_merge_episodes(refused):
    write(pendulum(timeouts=np.zeros(ROWS, bool)))
    assert "row 200" in refused("fit", "bc", "--dataset", "some.hdf5", "--env", "Pendulum-v1", *FEW)


def test_without_any_flag_and_limit_a_file_is_one_episode_and_every_command_says_so(capsys):
    columns = pendulum(terminals=None, rewards=None)
    data = load(write(columns))
    assert data.episode_lengths.tolist() == [ROWS - 1] and not data.terminated.any() and not data.reward.any()
    for command in ("datasets", "validate"), ("datasets", "show"), ("fit", "bc", *FEW, "--out", "run", "--dataset"):
        main([*command, "some.hdf5"])
        said = capsys.readouterr().out
        assert f"nothing in some.hdf5 marks where episodes end, so its {ROWS:,} rows are one episode: if" in said
    Path("logs").mkdir()
    for number in range(3):
        write(columns, f"logs/{number}.hdf5")
    logs = load("logs")
    assert logs.episode_lengths.tolist() == [ROWS - 1] * 3
    assert "nothing in 0.hdf5 marks" in (note := describe.unmarked_ends(logs)) and "and so in 2 more files" in note


def test_a_file_without_any_flag_has_whole_episodes_or_is_refused(refused):
    write(pendulum(terminals=None))
    task = ("--dataset", "some.hdf5", "--env", "Pendulum-v1", "--out", "run", *FEW)
    line = refused("fit", "bc", *task, "--max-episode-steps", "300")
    assert "lacks terminals and timeouts" in line and "with 1 in timeouts, or number" in line
    assert main(["fit", "bc", *task]) == 0  # five episodes of 200 steps


def test_no_transition_crosses_an_episode_in_training(capsys):
    write(pendulum())
    assert main(["fit", "bc", "--dataset", "some.hdf5", "--env", "Pendulum-v1", "--out", "run", *FEW]) == 0
    assert "995 transitions in 5 episodes" in capsys.readouterr().out


def test_datasets_known_to_have_longer_episodes_still_load(here):
    write(pendulum(actions=np.zeros((ROWS, 28)), observations=np.zeros((ROWS, 39)), timeouts=ends_every(250)))
    assert len(load("some.hdf5", "door-human-v1").episode_starts) == 4
    obs = np.arange(ROWS)[:, None] // 500 * 100.0 * np.ones((1, 29))
    write(pendulum(observations=obs, actions=np.zeros((ROWS, 8)), timeouts=np.zeros(ROWS, bool)))
    data = load("some.hdf5", "antmaze-umaze-v2", mode="lossless")
    np.testing.assert_array_equal(data.episode_lengths, [499, 499])


@pytest.mark.parametrize(
    "name, env", [("kitchen-complete-v0", None), ("kitchen-complete-v0", "kitchen-complete-v0"),
                  ("door-human-demos", None), ("door-human-demos", "door-human-v1")],
)  # fmt: skip
def test_real_files_keep_loading(name, env):
    path = REAL / f"{name}.hdf5"
    if not path.exists():
        pytest.skip(f"{path.name} is not at hand")
    assert len(load(str(path), env).episode_starts) == (19 if "kitchen" in name else 25)


# --------------------------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize("name", ["terminals", "timeouts", "truncations", "dones_float"])
@pytest.mark.parametrize("value, shown", [(np.nan, "nan"), (-1, "-1"), (0.5, "0.5"), (2, "2")])
def test_flags_that_mean_nothing_are_refused_with_the_row(name, value, shown):
    flags = np.zeros(ROWS)
    flags[[7, 30]] = value
    with pytest.raises(UserError, match=rf"some.hdf5: {name} must be 0 or 1, but row 7 holds {shown}"):
        load_hdf5(write(pendulum(**{name: flags})))


def minari(here, terminations=None, actions=None, space=None, rewards=None, name="test/some-v0"):
    last = np.arange(4) == 3
    action = np.zeros((4, 1), np.float32) if actions is None else np.array(actions)
    item = Episode(
        np.zeros((5, 2), np.float32), action, np.ones(4) if rewards is None else rewards,
        last & False if terminations is None else np.array(terminations), last,
    )  # fmt: skip
    return write_minari(
        here / "minari" / name, [item], dataset_id=name, env_spec=None,
        observation_space=Box(-1, 1, (2,), np.float32), action_space=space or Box(-1, 1, (1,), np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("value", [np.nan, -1, 0.5, 3])
def test_flags_in_minari_too(here, value):
    minari(here, terminations=[0, 0, value, 1])
    with pytest.raises(UserError, match=f"episode 0: terminations must be 0 or 1, but row 2 holds {value:g}"):
        load("test/some-v0")


# ------------------------------------------------------------------------------------------------------- actions


@pytest.mark.parametrize("value, shown", [(0.5, "0.5"), (-1, "-1"), (4, "4")])
def test_discrete_actions_that_do_not_exist_are_refused_with_the_files_row(value, shown, refused):
    columns = lake()
    columns["actions"] = columns["actions"].astype(float)
    columns["actions"][16] = value
    write(columns)
    line = refused("fit", "bc", "--dataset", "some.hdf5", "--env", "FrozenLake-v1", *FEW)
    assert f"the action in row 16 holds {shown}" in line and "from 0 to 3" in line


@pytest.mark.parametrize("value", [1.5, -1, 3])
def test_discrete_actions_in_minari_too(here, value):
    minari(here, actions=[0, 1, value, 2], space=Discrete(3))
    with pytest.raises(UserError, match=f"episode 0: the action in row 2 holds {value:g} .* from 0 to 2"):
        load("test/some-v0")


def test_actions_in_other_units_are_refused(refused):
    write(pendulum(actions=np.random.default_rng(0).uniform(-100, 100, (ROWS, 1))))
    line = refused("fit", "bc", "--dataset", "some.hdf5", "--env", "Pendulum-v1", *FEW)
    assert "of 995 entries of the actions (9" in line and "other units" in line and "-2 to 2" in line


def test_a_few_clipped_actions_are_reported(capsys):
    columns = pendulum()
    columns["actions"][:100] *= 100
    write(columns)
    assert main(["fit", "bc", "--dataset", "some.hdf5", "--env", "Pendulum-v1", "--out", "run", *FEW]) == 0
    out = capsys.readouterr().out
    assert "entries of the actions" in out and "are clipped" in out


def test_valid_actions_cause_no_message(capsys):
    columns = pendulum()
    columns["actions"][:2] = np.float32([[2], [-2]])
    write(columns)
    assert main(["fit", "bc", "--dataset", "some.hdf5", "--env", "Pendulum-v1", "--out", "run", *FEW]) == 0
    assert "clipped" not in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------- other shapes


def test_columns_of_shape_n_by_1_are_read_like_those_of_shape_n():
    wide = {key: column[:, None] for key, column in pendulum(timeouts=ends_every(200)).items() if column.ndim == 1}
    narrow, same = load_hdf5(write(pendulum(timeouts=ends_every(200)))), load_hdf5(write(pendulum(**wide)))
    for column in ("obs", "action", "reward", "terminated", "last", "next_obs"):
        np.testing.assert_array_equal(getattr(narrow, column), getattr(same, column))


def test_minari_rewards_of_shape_n_by_1_are_read(here):
    minari(here, rewards=np.arange(4.0)[:, None])
    np.testing.assert_array_equal(load("test/some-v0").reward, [0, 1, 2, 3])


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("following", [False, True])
def test_discrete_observations_are_one_hot_for_their_environment(dtype, shape, following):
    columns = lake()
    raw = columns["observations"]
    columns["observations"] = raw.astype(dtype).reshape(shape)
    columns["actions"] = columns["actions"].reshape(shape)
    if following:
        columns["next_observations"] = np.roll(raw, -1).astype(dtype).reshape(shape)
    data = load(write(columns), "FrozenLake-v1")
    np.testing.assert_array_equal(data.obs, np.eye(16)[raw])
    inside = ~data.terminated
    np.testing.assert_array_equal(data.next_obs[inside], np.eye(16)[np.roll(raw, -1)][inside])


def test_discrete_observations_train(capsys):
    write(lake())
    argv = ["fit", "is_reinforce", "--dataset", "some.hdf5", "--env", "FrozenLake-v1", "--out", "run", *FEW]
    assert main(argv) == 0
    assert "16 observations" in capsys.readouterr().out
    assert main(["evaluate", "run/last.ckpt", "--episodes", "1"]) == 0


def test_discrete_observations_that_do_not_exist_are_refused():
    columns = lake()
    columns["observations"][9] = 16
    with pytest.raises(UserError, match="observation of row [89] .* holds 16 instead of a whole number from 0 to 15"):
        load(write(columns), "FrozenLake-v1")


# -------------------------------------------------------------------------------------------------------- images


class Camera(gym.Env):
    """Observes an image beside its state; the parts may be nested."""

    action_space = Box(-1, 1, (2,), np.float32)

    def __init__(self, nested=False):
        image = Box(0, 255, (24, 24, 3), np.uint8)
        state, goal = Box(-1, 1, (4,), np.float32), Box(-1, 1, (2,), np.float32)
        low = dict(seen=Dict(camera=image, state=state), goal=goal) if nested else dict(
            camera=image, state=state, goal=goal
        )  # fmt: skip
        self.observation_space = Dict(low)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, False, {}


@pytest.fixture
def camera():
    gym.register("Camera-v0", "test_odd_data:Camera", max_episode_steps=6)
    yield
    del gym.registry["Camera-v0"]


def stack(samples):
    if isinstance(samples[0], dict):
        return {key: stack([sample[key] for sample in samples]) for key in samples[0]}
    return np.stack(samples)


def record_camera(here, nested):
    env = gym.make("Camera-v0", nested=nested, disable_env_checker=True)
    last = np.arange(6) == 5
    episodes = [
        Episode(stack([env.observation_space.sample() for _ in range(7)]), np.zeros((6, 2), np.float32), np.ones(6),
                last & False, last)
        for _ in range(3)
    ]  # fmt: skip
    write_minari(
        here / "minari/test/camera-v0", episodes, dataset_id="test/camera-v0", env_spec=env.spec,
        observation_space=env.observation_space, action_space=env.action_space,
    )  # fmt: skip


@pytest.mark.parametrize(
    "nested, rest, image", [(False, "goal,state", "camera"), (True, "goal,seen/state", "seen/camera")]
)
def test_images_and_chosen_parts_can_be_trained_on(here, camera, nested, rest, image, capsys):
    record_camera(here, nested)
    fit = ["fit", "bc", "--dataset", "test/camera-v0", *FEW, "--out"]
    assert main([*fit, "seeing"]) == 0
    assert f"{image} 24x24x3" in capsys.readouterr().out
    assert main([*fit, "run", "--obs-keys", rest]) == 0
    assert "6 observations" in capsys.readouterr().out
    assert rest.split(",")[0] in Path("run/config.yaml").read_text()
    for run in ("seeing", "run"):
        assert main(["evaluate", f"{run}/last.ckpt", "--episodes", "1"]) == 0
        assert main(["fit", "--resume", run, "--updates", "8"]) == 0
    assert main(["fit", "bc", "--config", "run/config.yaml", "--out", "again"]) == 0


def test_a_part_that_is_not_there_is_named(here, camera, refused):
    record_camera(here, False)
    fit = ["fit", "bc", "--dataset", "test/camera-v0", *FEW]
    line = refused(*fit, "--obs-keys", "stat")
    assert "no part 'stat'" in line and "state" in line


def test_parts_of_unequal_lengths_are_named(here):
    parts = {name: np.zeros((4, 2), np.float32) for name in ("a", "b")}
    spaces = Dict({name: Box(-1, 1, (2,), np.float32) for name in parts}), Box(-1, 1, (1,), np.float32)
    one = Episode(parts, np.zeros((3, 1), np.float32), np.zeros(3), np.zeros(3, bool), np.arange(3) == 2)
    path = write_minari(
        registry.minari_root() / "two/parts-v0", [one, one], dataset_id="two/parts-v0", env_spec=None,
        observation_space=spaces[0], action_space=spaces[1],
    )  # fmt: skip
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        del file["episode_1/observations/b"]
        file["episode_1/observations/b"] = np.zeros((1, 2), np.float32)
    with pytest.raises(UserError, match="episode 1: the parts of its observations have unequal lengths: a 4 rows, b 1"):
        load("two/parts-v0")


def test_an_agent_for_vectors_refuses_images(camera, refused):
    line = refused("fit", "ppo", "--env", "Camera-v0", "--steps", "2048")
    assert "camera [24, 24, 3]" in line and "--obs-keys" in line
    steps = ["--steps", "40", "--eval-every", "40", "--final-episodes", "1", "--eval-episodes", "1", "--batch", "8"]
    assert main(["fit", "td3", "--env", "Camera-v0", *steps, "--out", "acting"]) == 0


@pytest.mark.parametrize("shape, dtype", [((8, 8, 3), np.uint8), ((8, 8), np.uint8), ((4, 4, 2), np.float32)])
def test_a_dataset_of_nothing_but_images_does_not_fit_an_environment_of_vectors(here, refused, shape, dtype):
    space, last = Box(0, 255 if dtype == np.uint8 else 1, shape, dtype), np.arange(4) == 3
    space.seed(0)
    item = Episode(
        stack([space.sample() for _ in range(5)]), np.zeros((4, 1), np.float32), np.ones(4), last & False, last
    )
    write_minari(
        here / "minari/test/images-v0", [item], dataset_id="test/images-v0", env_spec=gym.spec("Pendulum-v1"),
        observation_space=space, action_space=Box(-1, 1, (1,), np.float32),
    )  # fmt: skip
    assert str(shape) in refused("fit", "bc", "--dataset", "test/images-v0", *FEW)


def test_an_image_file_does_not_fit_an_environment_of_vectors(refused):
    write(pendulum(observations=np.zeros((ROWS, 6, 6, 3), np.uint8)))
    assert "(6, 6, 3)" in refused("fit", "bc", "--dataset", "some.hdf5", "--env", "Pendulum-v1", *FEW)


def test_obs_keys_of_observations_without_parts_are_refused(refused):
    write(pendulum())
    line = refused("fit", "bc", "--dataset", "some.hdf5", "--env", "Pendulum-v1", "--obs-keys", "state", *FEW)
    assert "without parts" in line and "--obs-keys" in line


# -------------------------------------------------------------------------------------- validate, import, export


def kinds(name, env=None):
    return {finding.kind: finding.fault for finding in validate.validate(registry.resolve(name, env))}


def test_validate_knows_the_environments_bounds(capsys):
    write(pendulum(timeouts=ends_every(200)))
    assert main(["datasets", "validate", "some.hdf5", "--env", "Pendulum-v1"]) == 0
    assert kinds("some.hdf5", "Pendulum-v1").get("action range") is None
    columns = pendulum(timeouts=ends_every(200))
    columns["actions"][3] = 2.1
    write(columns)
    assert kinds("some.hdf5", "Pendulum-v1")["action range"]
    assert main(["datasets", "validate", "some.hdf5", "--env", "Pendulum-v1"]) == 1
    assert "fault: action range" in capsys.readouterr().out


def words_of(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_a_few_per_cent_beyond_the_usual_bounds_are_no_fault(capsys):
    rng = np.random.default_rng(0)
    write(pendulum(timeouts=ends_every(200), actions=rng.normal(scale=0.6, size=(ROWS, 1))))  # a tenth beyond 1
    assert kinds("some.hdf5")["action range"] is False


def test_columns_are_remembered_although_a_file_has_faults(capsys):
    Path("log.csv").write_text("x,u,r\n" + "".join(f"{t},{4 if t == 7 else 0.5},0\n" for t in range(300)))
    assert main(["datasets", "validate", "log.csv", "--columns", "obs=x", "action=u", "reward=r"]) == 1
    assert "fault: action range" in words_of(capsys)
    assert main(["datasets", "validate", "log.csv", "--action-range=-4,4"]) == 0


def test_without_bounds_other_units_are_a_note_and_outliers_a_fault(capsys):
    write(pendulum(timeouts=ends_every(200)))
    assert kinds("some.hdf5")["action range"] is False
    columns = pendulum(timeouts=ends_every(200), actions=np.zeros((ROWS, 1)))
    columns["actions"][5] = 3
    write(columns)
    assert kinds("some.hdf5")["action range"] is True
    assert main(["datasets", "validate", "some.hdf5"]) == 1
    assert "their bounds are not known: name the environment with --env, or give --action-range" in words_of(capsys)
    assert main(["datasets", "validate", "some.hdf5", "--action-range=-3,3"]) == 0
    assert "action range" not in words_of(capsys)
    assert main(["datasets", "validate", "some.hdf5", "--action-range=-2,2"]) == 1
    assert "fault: action range: 0.1% of the actions' entries lie outside [-2, 2] (1 rows: 5)" in words_of(capsys)


def test_a_given_range_holds_for_whole_numbers_and_not_for_choices(here, refused, capsys):
    Path("log.csv").write_text("x,a,b\n" + "".join(f"{x}.5,{x % 3 + 4},{x}\n" for x in range(9)))
    argv = ("datasets", "validate", "log.csv", "--columns", "obs=x", "action=a,b", "--action-range=-1,1")
    assert main([*argv]) == 1 and "fault: action range" in words_of(capsys)
    assert main([*argv[:-1], "--action-range", "4,6:0,8"]) == 0
    assert main([*argv[:-1], "--action-range", "4,6:0,7"]) == 1
    assert "lie outside the bounds of dimension 1 (1 rows: 8)" in words_of(capsys)
    assert main(["fit", "bc", "--dataset", "log.csv", "--action-range", "4,6:0,8", *FEW, "--out=run"]) == 0
    assert config.read(Path("run/config.yaml"))["fit"]["action_range"] == [[4.0, 0.0], [6.0, 8.0]]
    for given in ("4,6:0", "4,6:8,0", "4:6"):
        with pytest.raises(SystemExit):
            main([*argv[:-1], "--action-range", given])
        assert "is not two numbers, the lower one first" in capsys.readouterr().err
    assert "bounds of 3: give a pair for each" in refused(*argv[:-1], "--action-range", "4,6:0,8:0,1")
    both = (np.array([4, 0]), np.array([6, 8]))
    brief = dict(updates=2, batch=4, compile=False)
    trained = offlinerl.fit("bc", "log.csv", limits=dict(action_range=both), **brief).agent
    assert trained.spec.action_high == (6.0, 8.0)
    for wrong in ([[1, 2], [3]], [[1, 2], [1, 3]], [[], []], [[-1, 1], [-2, 2]], "1,2", [1, [2]], [0, 10**400], 3):
        with pytest.raises(UserError, match="action_range must be the lower and the upper bounds, two numbers or two"):
            offlinerl.fit("bc", "log.csv", limits=dict(action_range=wrong), **brief)
    write(lake())
    says = refused("datasets", "validate", "some.hdf5", "--env", "FrozenLake-v1", "--action-range=-1,1")
    assert "the actions of FrozenLake-v1 are discrete: leave out --action-range" in says


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8])
def test_images_of_numbers_beyond_one_are_named(dtype, here, capsys):
    """Only uint8 images are divided by 255."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 20, 20, 3)).astype(dtype)
    columns = dict(obs=images, action=rng.uniform(-1, 1, (40, 2)), reward=np.ones(40), terminated=np.arange(40) == 39)
    np.savez("images.npz", **columns)
    assert main(["datasets", "validate", "images.npz"]) == 0
    says = "images that are no uint8 are taken to be within 0 to 1, but these are within 0 to 255: store them as uint8"
    assert (f"note: image units: {says}" in words_of(capsys)) == (dtype != np.uint8)
    assert main(["fit", "bc", "--dataset", "images.npz", *FEW[:1], "--compile=false", "--batch=8"]) == 0
    assert (f" images: {says}" in words_of(capsys)) == (dtype != np.uint8)


def test_validate_refuses_images_with_channels_first(here, capsys):
    columns = dict(obs=np.zeros((40, 3, 20, 20), np.uint8), action=np.zeros((40, 2)), reward=np.ones(40))
    np.savez("images.npz", **columns, terminated=np.arange(40) == 39)
    assert main(["datasets", "validate", "images.npz"]) == 1
    assert "fault: refused: images of shape (3, 20, 20) have other axes than height, width" in words_of(capsys)


def test_validate_finds_another_shape():
    write(pendulum(observations=np.zeros((ROWS, 4)), timeouts=ends_every(200)))
    assert kinds("some.hdf5", "Pendulum-v1")["shape"]


@pytest.mark.parametrize("env", [None, "FrozenLake-v1"])
def test_valid_data_of_a_finite_problem_has_only_notes(capsys, env):
    columns = lake(episodes=40)
    columns["terminals"][3] = columns["terminals"][4] = True  # an episode of one step
    columns["timeouts"] = np.zeros_like(columns["terminals"])
    columns["timeouts"][3] = True  # both terminated and truncated
    write(columns)
    assert main(["datasets", "validate", "some.hdf5", *(["--env", env] if env else [])]) == 0
    out = capsys.readouterr().out
    assert "note: duplicates" in out and "note: overlapping ends" in out and "fault" not in out


def test_validate_finds_discrete_actions_that_do_not_exist():
    columns = lake()
    columns["actions"][4] = 9
    write(columns)
    assert kinds("some.hdf5", "FrozenLake-v1")["action range"]


def test_validate_needs_no_environment_that_the_dataset_names(here, refused):
    gym.register("Gone-v0", "test_odd_data:Camera")
    spec = gym.spec("Gone-v0")
    spec.entry_point = "no_such_module:Gone"
    del gym.registry["Gone-v0"]
    path = minari(here)
    metadata = json.loads((path / "data/metadata.json").read_text())
    (path / "data/metadata.json").write_text(json.dumps({**metadata, "env_spec": spec.to_json()}))
    assert main(["datasets", "validate", "test/some-v0"]) == 0
    assert "Gone" in refused("datasets", "validate", "test/some-v0", "--env", "Gone-v0")


def test_import_keeps_the_environments_spaces(here):
    write(pendulum())
    assert main(["datasets", "import", "some.hdf5", "test/p-v0", "--env", "Pendulum-v1"]) == 0
    metadata = registry.minari_metadata(here / "minari/test/p-v0/data")
    action, obs = json.loads(metadata["action_space"]), json.loads(metadata["observation_space"])
    assert (action["low"], action["high"], obs["high"]) == ([-2.0], [2.0], [1.0, 1.0, 8.0])
    assert kinds("test/p-v0").get("action range") is None


def test_import_keeps_discrete_actions():
    minari = pytest.importorskip("minari")
    write(lake())
    assert main(["datasets", "import", "some.hdf5", "test/lake-v0", "--env", "FrozenLake-v1"]) == 0
    stored = minari.load_dataset("test/lake-v0")
    assert isinstance(stored.observation_space, Discrete) and isinstance(stored.action_space, Discrete)
    assert stored[0].observations.shape == (8,) and stored[0].actions.tolist() == lake()["actions"][:7].tolist()
    np.testing.assert_array_equal(load("test/lake-v0").obs, load("some.hdf5", "FrozenLake-v1").obs)


def test_import_refuses_another_shape(here, refused):
    write(pendulum())
    line = refused("datasets", "import", "some.hdf5", "test/p-v0", "--env", "MountainCarContinuous-v0")
    assert "(3,)" in line and "(2,)" in line and "MountainCarContinuous-v0" in line
    assert not (here / "minari/test").exists()


def test_import_takes_a_module_as_fit_does(here, monkeypatch):
    (here / "swing_module.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control.pendulum import PendulumEnv\n"
        "class Swing(PendulumEnv):\n    pass\n"
        "gymnasium.register('Swing-v3', 'swing_module:Swing', max_episode_steps=100)\n"
    )
    monkeypatch.syspath_prepend(str(here))
    try:
        write(pendulum())
        assert main(["datasets", "import", "some.hdf5", "test/swing-v0", "--env", "swing_module:Swing-v3"]) == 0
        assert len(load("test/swing-v0").episode_starts) == 10
        assert main(["datasets", "validate", "some.hdf5", "--env", "swing_module:Swing-v3"]) == 0
        assert main(["fit", "bc", "--dataset", "test/swing-v0", "--out", "run", *FEW]) == 0
    finally:
        gym.registry.pop("Swing-v3", None)
        sys.modules.pop("swing_module", None)


def test_an_exported_file_names_its_environment(here):
    write(pendulum())
    assert main(["datasets", "import", "some.hdf5", "test/p-v0", "--env", "Pendulum-v1"]) == 0
    assert main(["datasets", "export", "test/p-v0", "out.hdf5"]) == 0
    assert registry.resolve("out.hdf5").env_id == "Pendulum-v1"
    assert main(["datasets", "import", "out.hdf5", "test/q-v0"]) == 0
    assert registry.resolve("test/q-v0").env_id == "Pendulum-v1"
    assert main(["fit", "bc", "--dataset", "out.hdf5", "--out", "run", *FEW]) == 0
    for column in ("obs", "action", "reward", "terminated", "last", "next_obs"):
        np.testing.assert_array_equal(
            getattr(load("test/q-v0"), column), getattr(load("some.hdf5", "Pendulum-v1"), column)
        )


def test_chosen_parts_are_loaded_in_their_order(here, camera):
    record_camera(here, False)
    both, turned = (load("test/camera-v0", obs_keys=keys).obs for keys in (["state", "goal"], ["goal", "state"]))
    assert both.shape == (18, 6)
    np.testing.assert_array_equal(turned, np.roll(both, 2, axis=1))


def test_existing_files_are_overwritten_only_on_request(refused):
    write(pendulum(timeouts=ends_every(200)))
    assert main(["datasets", "export", "some.hdf5", "out.hdf5"]) == 0
    assert "--overwrite" in refused("datasets", "export", "some.hdf5", "out.hdf5")
    assert main(["datasets", "export", "some.hdf5", "out.hdf5", "--overwrite"]) == 0
    for more in ([], ["--overwrite"]):
        assert main(["datasets", "import", "some.hdf5", "test/p-v0", *more]) == 0
    assert "--overwrite" in refused("datasets", "import", "some.hdf5", "test/p-v0")


# -------------------------------------------------------------------------------------------------- other formats


@pytest.mark.parametrize(
    "name, word",
    [("rows.feather", "a table"), ("rows.npy", "numpy"), ("rows.pkl", "Python objects"),
     ("rows.json", "a text or a table of another kind"), ("rows.zip", "an archive")],
)  # fmt: skip
@pytest.mark.parametrize("command", ["fit", "import", "show", "validate"])
def test_files_of_other_formats_are_identified(name, word, command, refused):
    Path(name).write_bytes(b'{"a": [1, 2],\n"b": [3, 4]}')
    argv = dict(
        fit=["fit", "bc", "--dataset", name, "--env", "Pendulum-v1"], show=["datasets", "show", name],
        validate=["datasets", "validate", name],
    ).get(command, ["datasets", "import", name, "test/a-v0"])  # fmt: skip
    line = refused(*argv)
    assert name in line and word in line and "observations" in line and "download" not in line


@pytest.mark.parametrize("name", ["rows.csv", "rows.npz"])
def test_for_tables_with_unknown_columns_the_message_says_how_to_name_them(name, refused):
    if name.endswith("npz"):
        np.savez(name, a=np.zeros(3), b=np.zeros(3))
    else:
        Path(name).write_bytes(b"a,b\n1,2\n")
    line = refused("fit", "bc", "--dataset", name, "--env", "Pendulum-v1")
    assert name in line and "--columns" in line and "it has a, b" in line


def test_for_arrow_datasets_without_pyarrow_the_message_says_what_to_install(here, monkeypatch):
    path = minari(here)
    metadata = json.loads((path / "data/metadata.json").read_text())
    (path / "data/metadata.json").write_text(json.dumps({**metadata, "data_format": "arrow"}))
    original = builtins.__import__

    def without(name, *more):
        if name.split(".")[0] == "pyarrow":
            raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")
        return original(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install pyarrow"):
        load_minari(path)
