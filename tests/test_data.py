"""Loading: no row may depend on another episode, and no row may be lost without notice."""

from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from conftest import transitions

from offlinerl.data.d4rl import load_hdf5
from offlinerl.data.dataset import Dataset
from offlinerl.data.episode import Episode
from offlinerl.data.load import load
from offlinerl.data.minari_reader import load_minari
from offlinerl.data.minari_writer import write_minari
from offlinerl.data.rewards import with_reward
from offlinerl.experience.sources import EpisodeData
from offlinerl.experience.table import Table
from offlinerl.types import Spec
from offlinerl.util.errors import UserError

REAL = Path(__file__).parents[2] / "shared" / "data"


def write_d4rl(path, lengths, terminal, dtype=np.float32, timeouts=True, next_observations=False):
    """Episode e, step t observes [100 e + t]; ``terminal[e]`` says how it ends."""
    steps = np.concatenate([np.arange(length) for length in lengths])
    episode = np.repeat(np.arange(len(lengths)), lengths)
    last = np.r_[np.diff(episode) > 0, True]
    done = np.array(terminal)[episode] & last
    obs = (100 * episode + steps)[:, None].astype(dtype)
    with h5py.File(path, "w") as file:
        file["observations"], file["rewards"], file["terminals"] = obs, steps.astype(dtype), done
        file["actions"] = np.stack([episode, steps], axis=1).astype(dtype) / 100
        if timeouts:
            file["timeouts"] = last & ~done
        if next_observations:
            file["next_observations"] = obs + 1
    return path


def qlearning_dataset(file, max_episode_steps=None):
    """D4RL's algorithm, row by row."""
    data = {key: file[key][()] for key in file if isinstance(file[key], h5py.Dataset)}
    rows, step = [], 0
    for i in range(len(data["rewards"]) - 1):
        done = bool(data["terminals"][i])
        final = data["timeouts"][i] if "timeouts" in data else step == max_episode_steps - 1
        if final:
            step = 0
            continue
        if done:
            step = 0
        rows.append(i)
        step += 1
    rows = np.array(rows)
    return (
        data["observations"][rows],
        data["actions"][rows],
        data["observations"][rows + 1],
        data["rewards"][rows],
        data["terminals"][rows],
    )


def assert_is_qlearning(dataset, reference):
    for column, expected in zip(
        (dataset.obs, dataset.action, dataset.next_obs, dataset.reward, dataset.terminated),
        reference,
        strict=True,
    ):
        np.testing.assert_array_equal(column, expected.astype(column.dtype))


def episodes(lengths, dtype=np.float32):
    for number, length in enumerate(lengths):
        steps = np.arange(length + 1, dtype=dtype)
        last = np.arange(length) == length - 1
        yield Episode(
            (100 * number + steps)[:, None],
            steps[:-1, None] / 100,
            steps[:-1],
            last & (number % 2 == 0),
            last & (number % 2 == 1),
        )


def write(path, items, observation_space=None, action_space=None, env_spec=None, dataset_id="test/data-v0"):
    box = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    return write_minari(
        path,
        items,
        dataset_id=dataset_id,
        env_spec=env_spec,
        observation_space=observation_space or box,
        action_space=action_space or box,
        metadata=dict(author="someone"),
    )


# ------------------------------------------------------------------------------------------ D4RL files


def test_lossless_keeps_every_row_with_a_successor_and_crosses_no_episode(tmp_path):
    data = load_hdf5(write_d4rl(tmp_path / "a.hdf5", [3, 1, 4], [True, False, False]))
    np.testing.assert_array_equal(data.obs[:, 0], [0, 1, 2, 200, 201, 202])
    np.testing.assert_array_equal(data.next_obs[:, 0], [1, 2, 2, 201, 202, 203])
    np.testing.assert_array_equal(data.terminated, [0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(data.last, [0, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(data.episode_lengths, [3, 3])
    assert data.provenance["rows_dropped"] == 2


def test_next_observations_lose_no_row(tmp_path):
    path = write_d4rl(tmp_path / "a.hdf5", [3, 1, 4], [True, False, False], next_observations=True)
    data = load_hdf5(path)
    assert len(data) == 8 and data.provenance["rows_dropped"] == 0
    np.testing.assert_array_equal(data.next_obs, data.obs + 1)
    np.testing.assert_array_equal(np.flatnonzero(data.last), [2, 3, 7])


def test_without_timeouts_terminals_end_episodes(tmp_path):
    path = write_d4rl(tmp_path / "a.hdf5", [3, 4], [True, True], timeouts=False)
    np.testing.assert_array_equal(np.flatnonzero(load_hdf5(path).last), [2, 6])


def test_without_timeouts_the_horizon_ends_episodes(tmp_path):
    path = write_d4rl(tmp_path / "a.hdf5", [3, 5, 5, 2], [True, False, False, False], timeouts=False)
    data = load_hdf5(path, max_episode_steps=5)
    np.testing.assert_array_equal(data.episode_lengths, [3, 4, 4, 1])
    inside = ~data.terminated
    np.testing.assert_array_equal(data.next_obs[inside], data.obs[inside] + 1)


@pytest.mark.parametrize("timeouts", [True, False])
@pytest.mark.parametrize("terminal", [[True, False, False, True], [False] * 4])
def test_d4rl_mode_is_d4rls_row_for_row(tmp_path, timeouts, terminal):
    path = write_d4rl(tmp_path / "a.hdf5", [3, 5, 5, 5], terminal, timeouts=timeouts, dtype=np.float64)
    with h5py.File(path) as file:
        reference = qlearning_dataset(file, 5)
    assert_is_qlearning(load_hdf5(path, "d4rl", max_episode_steps=5), reference)


@pytest.mark.parametrize("name", ["kitchen-complete-v0", "door-human-demos"])
def test_d4rl_mode_on_real_files(name):
    path = REAL / f"{name}.hdf5"
    if not path.exists():
        pytest.skip(f"{path.name} is not at hand")
    with h5py.File(path) as file:
        assert_is_qlearning(load_hdf5(path, "d4rl"), qlearning_dataset(file))


def test_real_kitchen_file():
    path = REAL / "kitchen-complete-v0.hdf5"
    if not path.exists():
        pytest.skip(f"{path.name} is not at hand")
    data = load(path)
    assert data.provenance["checksum"] == "verified"
    assert (len(data), len(data.episode_starts), data.provenance["rows_dropped"]) == (3680, 19, 0)
    assert data.terminated[data.last].all() and data.terminated.sum() == 19
    with h5py.File(path) as file:
        np.testing.assert_array_equal(data.obs, file["observations"])
        np.testing.assert_array_equal(data.next_obs[~data.last], file["observations"][1:][~data.last[:-1]])


def test_antmaze_episodes_are_split_at_jumps_and_never_at_terminals(tmp_path):
    obs = np.zeros((10, 3), np.float32)
    obs[:, 0] = [0, 0.5, 1, 1.5, 2, 21, 21.5, 22, 22.5, 23]
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["observations"], file["actions"] = obs, np.zeros((10, 2), np.float32)
        file["rewards"], file["terminals"] = np.zeros(10), np.arange(10) == 2
        file["timeouts"] = np.arange(10) == 7
    data = load_hdf5(tmp_path / "a.hdf5", split="jump")
    np.testing.assert_array_equal(data.obs[:, 0], np.float32([0, 0.5, 1, 1.5, 21, 21.5, 22.5]))
    np.testing.assert_array_equal(data.episode_lengths, [4, 2, 1])
    np.testing.assert_array_equal(np.flatnonzero(data.terminated), [2])
    assert np.abs(data.next_obs - data.obs).max() == 0.5


def test_reading_in_blocks_changes_nothing(tmp_path, monkeypatch):
    path = write_d4rl(tmp_path / "a.hdf5", [3, 1, 4, 6], [True, False, False, True])
    whole = load_hdf5(path)
    monkeypatch.setattr("offlinerl.data.d4rl.BLOCK", 3)
    pieces = load_hdf5(path)
    for column in ("obs", "action", "reward", "next_obs"):
        np.testing.assert_array_equal(getattr(whole, column), getattr(pieces, column))


def test_columns_are_float32_and_contiguous(tmp_path):
    data = load_hdf5(write_d4rl(tmp_path / "a.hdf5", [3, 4], [True, False], dtype=np.float64))
    for column in (data.obs, data.action, data.reward, data.next_obs):
        assert column.dtype == np.float32 and column.flags.c_contiguous


def test_discrete_actions_and_pixels_are_kept(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["observations"] = np.arange(4 * 12, dtype=np.uint8).reshape(4, 2, 2, 3)
        file["actions"], file["rewards"] = np.array([3, 1, 2, 0]), np.zeros(4)
        file["terminals"] = np.arange(4) == 3
    data = load_hdf5(tmp_path / "a.hdf5")
    assert data.obs.dtype == np.uint8 and data.obs.shape == (4, 2, 2, 3)
    np.testing.assert_array_equal(data.action, [[3], [1], [2], [0]])


# ------------------------------------------------------------------------------------------ parts of a dataset


def test_a_part_of_a_dataset_holds_its_episodes_and_nothing_else():
    ends = np.array([0, 1, 0, 0, 1, 1, 0, 1], bool)
    obs, following = np.arange(8, dtype=np.float32)[:, None], np.arange(1, 9, dtype=np.float32)[:, None]
    following[ends] += 0.5  # a separate observation after the episode's last step
    columns = dict(action=obs, reward=obs[:, 0], terminated=ends & (obs[:, 0] > 3), last=ends, name="whole")
    whole = Dataset.of_rows(obs, following, **columns)
    part = whole.take(np.array([3, 1]))
    rows = [2, 3, 4, 6, 7]
    for name in ("obs", "next_obs", "action", "reward", "terminated", "last"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rows], err_msg=name)
    assert part.episode_lengths.tolist() == [3, 2] and len(part.observations) == 7 and part.name == "whole"
    assert whole.episode_returns.tolist() == [1, 9, 5, 13]
    assert whole.best(0.5).reward.tolist() == [2, 3, 4, 6, 7] and whole.best(0.01).reward.tolist() == [6, 7]
    assert whole.best(1.0).reward.tolist() == whole.reward.tolist()


# ---------------------------------------------------------------------------------------------- n-step


def table(reward, terminated, last):
    rows = np.arange(len(reward), dtype=np.float32)[:, None]
    columns = dict(terminated=np.array(terminated, bool), last=np.array(last, bool), name="a table")
    return Dataset.of_rows(rows, rows + 1, action=rows, reward=np.float32(reward), **columns)


def test_truncation_bootstraps_and_termination_does_not():
    batch = transitions(table([1, 1, 1, 1], [0, 1, 0, 0], [0, 1, 0, 1]), 0.9)
    np.testing.assert_allclose(batch.discount, [0.9, 0, 0.9, 0.9])
    np.testing.assert_array_equal(batch.last, [False, True, False, True])


def test_n_step_by_hand():
    # an episode of four rows that terminates, and a truncated one of two
    data = table([1, 2, 4, 8, 16, 32], [0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 1])
    batch = transitions(data, 0.5, 3)
    np.testing.assert_allclose(batch.reward, [1 + 1 + 1, 2 + 2 + 2, 4 + 4, 8, 16 + 16, 32])
    np.testing.assert_allclose(batch.discount, [0.125, 0, 0, 0, 0.25, 0.5])
    np.testing.assert_array_equal(batch.next_obs[:, 0], [3, 4, 4, 4, 6, 6])
    np.testing.assert_array_equal(batch.last, [False, True, True, True, True, True])
    assert batch.reward.dtype == batch.discount.dtype == np.float32


def test_sums_and_windows_stop_where_the_successor_is_not_the_next_row():
    obs = np.arange(6, dtype=np.float32)[:, None]
    next_obs = np.array([[1.000001], [70], [3], [80], [5], [6]], np.float32)  # not the next row after 1 and 3
    data = Dataset.of_rows(
        obs, next_obs, action=obs / 10, reward=10 ** np.arange(6, dtype=np.float32),
        terminated=np.zeros(6, bool), last=np.arange(6) == 5,
    )  # fmt: skip
    assert data.leaps.tolist() == [1, 3] and len(data.episode_starts) == 1
    rows = Table(data, Spec(1, 1, (-1.0,), (1.0,)), 1.0, n_step=3)
    batch = rows.transitions(torch.arange(6))
    assert batch.reward.tolist() == [11, 10, 1100, 1000, 110000, 100000]
    np.testing.assert_allclose(batch.next_obs[:, 0], [70, 70, 80, 80, 6, 6])
    whole = EpisodeData(Table(data, Spec(1, 1, (-1.0,), (1.0,)), 1.0), (0,), batch_size=1).draw(1)
    assert whole.reward.flatten().tolist() == [1, 10, 100, 1000, 10_000, 100_000]
    assert whole.last.flatten().tolist() == [0, 0, 0, 0, 0, 1], "an episode goes on after them"
    assert rows.windows(torch.tensor(0), 4).mask.tolist() == [1, 1, 0, 0]
    assert rows.starts.tolist() == [0, 2, 4]
    second = rows.windows(torch.tensor(2), 4)
    assert second.mask.tolist() == [1, 1, 0, 0] and second.step.tolist() == [2, 3, 3, 3]
    assert second.to_go.tolist() == [111100, 111000, 111000, 111000], "returns count what is earned after them"
    assert second.best == second.largest == 111111


def test_returns_and_whole_episodes_end_at_a_terminal_step_in_the_middle():
    """An episode of AntMaze continues after the goal, and what it earns there no policy can."""
    data = table([1, 1, 1, 1, 1, 1, 5, 5], [0, 0, 1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1])
    rows = Table(data, Spec(1, 1, (-10.0,), (10.0,)), 1.0)
    assert len(rows.starts) == 1
    assert rows.to_go.tolist() == [3, 2, 1, 3, 2, 1, 10, 5]
    window = rows.windows(torch.tensor([0, 3, 6]), 4)
    assert window.mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert window.step[:, 0].tolist() == [0, 3, 6] and window.to_go[0].tolist() == [3, 2, 1, 1]
    assert EpisodeData(rows, (0,), batch_size=1).draw(1).last.flatten().tolist() == [0, 0, 1, 0, 0, 1, 0, 1]


@pytest.mark.parametrize("by", [0.0, 1e-5])
def test_a_stack_holds_each_frame_once_even_if_successors_are_rounded(by):
    """A successor that differs only by rounding from the next row's observation is not an additional frame."""
    obs = np.arange(1, 9, dtype=np.float32)[:, None]
    last = np.arange(8) % 4 == 3
    data = Dataset.of_rows(
        obs, obs + np.float32(1 + by), action=obs / 10, reward=obs[:, 0], terminated=last & False, last=last
    )
    assert not len(data.leaps)
    batch = Table(data, Spec(3, 1, (-1.0,), (1.0,)), 1.0, stack=3).transitions(torch.arange(8))
    stacks = [[1, 1, 1], [1, 1, 2], [1, 2, 3], [2, 3, 4], [5, 5, 5], [5, 5, 6], [5, 6, 7], [6, 7, 8]]
    assert batch.obs.tolist() == stacks
    nexts = [[1, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [5, 5, 6], [5, 6, 7], [6, 7, 8], [7, 8, 9]]
    np.testing.assert_allclose(batch.next_obs, nexts, atol=1e-4)


def test_n_step_equals_a_loop():
    random = np.random.default_rng(0)
    size, gamma, n = 300, 0.97, 7
    reward, terminated = random.normal(size=size), random.random(size) < 0.05
    last = terminated | (random.random(size) < 0.05)
    last[-1] = True
    got = transitions(table(reward, terminated, last), gamma, n)
    for i in range(size):
        total, k = 0.0, 0
        while True:
            total += gamma**k * reward[i + k]
            k += 1
            if last[i + k - 1] or k == n:
                break
        tail = i + k - 1
        np.testing.assert_allclose(
            [got.reward[i], got.discount[i], got.next_obs[i, 0]],
            [total, 0 if terminated[tail] else gamma**k, tail + 1],
            rtol=1e-5,
            atol=1e-6,
        )


def test_a_window_stops_at_a_terminal_inside_a_trajectory():
    terminated, last = np.array([[0, 1, 0, 0], [0, 0, 0, 1]], bool)
    batch = transitions(table([1, 1, 1, 1], terminated, last), 1, 3)
    np.testing.assert_array_equal(batch.reward, [2, 1, 2, 1])
    np.testing.assert_array_equal(batch.discount, [0, 0, 1, 1])
    np.testing.assert_array_equal(batch.next_obs[:, 0], [2, 2, 4, 4])


# --------------------------------------------------------------------------------------------- rewards


def test_reward_rules():
    data = table([0, 1, 0, 1, 0, 3], [0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 1])
    np.testing.assert_array_equal(with_reward(data, "count").reward, [0, 1, 1, 2, 0, 3])
    np.testing.assert_array_equal(with_reward(data, "minus_one").reward, [-1, 0, -1, 0, -1, 2])
    np.testing.assert_array_equal(with_reward(data, "hundredfold").reward, [0, 100, 0, 100, 0, 300])
    np.testing.assert_allclose(with_reward(data, "scale_by_return_range").reward, data.reward * 1000)
    assert with_reward(data, "none").reward is data.reward
    counted = table([7, 7], [0, 1], [0, 1])
    np.testing.assert_array_equal(with_reward(counted, "count").reward, counted.reward)


def test_rewards_that_follow_a_rule_keep_it_in_a_folder(tmp_path):
    data = with_reward(table([0, 1, 0, 3], [0, 1, 0, 0], [0, 1, 0, 1]), "minus_one")
    data.write(tmp_path / "written")
    again = load(tmp_path / "written")
    np.testing.assert_array_equal(again.reward, [-1, 0, -1, 2])
    assert again.provenance["reward"] == again.entry.reward == "minus_one"
    for rule in ("none", "minus_one"):
        assert load(tmp_path / "written", reward=rule).provenance["reward"] == "minus_one"
        np.testing.assert_array_equal(load(tmp_path / "written", reward=rule).reward, data.reward)
    with pytest.raises(UserError, match="follow the rule minus_one already"):
        load(tmp_path / "written", reward="scale_by_return_range")


@pytest.mark.parametrize("on_disk", [False, True])
def test_an_episode_keeps_its_last_successor_without_the_next_episode(tmp_path, on_disk):
    """An episode that is truncated where the next one continues, such as a part of a long walk."""
    obs = np.arange(6, dtype=np.float32)[:, None]
    last = np.array([0, 1, 0, 1, 0, 1], bool)
    data = Dataset.of_rows(obs, obs + 1, action=obs, reward=obs[:, 0], terminated=~last & last, last=last)
    if on_disk:
        data.write(tmp_path / "written")
        data = Dataset.mapped(tmp_path / "written")
    np.testing.assert_array_equal(data.next_obs, obs + 1)
    for episodes in ([0], [1], [2], [0, 2]):
        part = data.take(np.array(episodes))
        np.testing.assert_array_equal(part.next_obs, np.asarray(part.obs) + 1)


# ---------------------------------------------------------------------------------------------- Minari


def test_minari_round_trip_through_minari_itself(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = gymnasium.make("Pendulum-v1", g=9.0)
    written = list(episodes([3, 1, 5]))
    write(tmp_path / "test" / "data-v0", iter(written), env_spec=env.spec)
    read = minari.load_dataset("test/data-v0")
    assert (read.total_episodes, read.total_steps) == (3, 9)
    assert list(minari.list_local_datasets()) == ["test/data-v0"]
    for episode, expected in zip(read, written, strict=True):
        for field in ("observations", "actions", "rewards", "terminations", "truncations"):
            got, wanted = getattr(episode, field), getattr(expected, field)
            np.testing.assert_array_equal(got, wanted)
            assert got.dtype == wanted.dtype
    recovered = read.recover_environment()
    assert recovered.spec.id == "Pendulum-v1" and recovered.unwrapped.g == 9.0


@pytest.mark.parametrize("together", [1, 40, 1 << 18])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_minari_keeps_the_last_successor(tmp_path, dtype, together, monkeypatch):
    monkeypatch.setattr("offlinerl.data.minari_reader.TOGETHER", together)
    data = load_minari(write(tmp_path / "data-v0", episodes([3, 1, 5], dtype)))
    np.testing.assert_array_equal(data.obs[:, 0], [0, 1, 2, 100, 200, 201, 202, 203, 204])
    np.testing.assert_array_equal(data.next_obs, data.obs + 1)
    np.testing.assert_array_equal(np.flatnonzero(data.last), [2, 3, 8])
    np.testing.assert_array_equal(np.flatnonzero(data.terminated), [2, 8])
    assert data.obs.dtype == data.reward.dtype == np.float32 and data.obs.flags.c_contiguous


def test_minari_episodes_may_differ_in_dtype(tmp_path, monkeypatch):
    """For example, an environment may return the integer 0 before it returns fractions as rewards."""
    import minari
    from minari.data_collector.episode_buffer import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    due = [[0, 0, 0], [0, 0.5, 0.9], [1, 2, 3], [0.25, 0, 0]]
    buffers = [
        EpisodeBuffer(
            id=number, observations=np.arange(4.0)[:, None], actions=np.zeros((3, 1), np.float32), rewards=rewards,
            terminations=[False] * 3, truncations=[False, False, True], infos={},
        )
        for number, rewards in enumerate(due)
    ]  # fmt: skip
    minari.create_dataset_from_buffers(
        "test/types-v0", buffers, observation_space=gymnasium.spaces.Box(-9, 9, (1,)),
        action_space=gymnasium.spaces.Box(-1, 1, (1,)),
        algorithm_name="x", code_permalink="x", author="x", author_email="x@x.x", description="x",
    )  # fmt: skip
    with h5py.File(tmp_path / "test/types-v0/data/main_data.hdf5") as file:
        assert [file[f"episode_{number}/rewards"].dtype.kind for number in range(4)] == list("ifif")
    np.testing.assert_array_equal(load_minari("test/types-v0").reward, np.ravel(due).astype(np.float32))


def test_minari_public_iteration_gives_the_same_table(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    path = write(tmp_path / "data-v0", episodes([3, 1, 5]))
    direct = load_minari(path)
    monkeypatch.setattr("offlinerl.data.minari_reader._has_jpeg", lambda metadata: True)
    public = load_minari(path)
    for column in ("obs", "action", "reward", "terminated", "last", "next_obs"):
        np.testing.assert_array_equal(getattr(direct, column), getattr(public, column))


def test_dict_observations_are_concatenated_in_order(tmp_path):
    def box(size):
        return gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)

    goal = gymnasium.spaces.Dict(y=box(1))
    space = gymnasium.spaces.Dict(observation=box(2), achieved=box(1), desired=goal)
    observations = dict(
        observation=np.array([[1.0, 2], [3, 4]]),
        achieved=np.array([[5.0], [6]]),
        desired=dict(y=np.array([[7.0], [8]])),
    )
    one = np.ones(1, bool)
    item = Episode(observations, np.zeros((1, 1), np.float32), np.ones(1), ~one, one)
    path = write(tmp_path / "data-v0", [item], observation_space=space)
    first = dict(observation=np.array([1, 2]), achieved=np.array([5]), desired=dict(y=np.array([7])))
    flat = gymnasium.spaces.flatten(space, first)
    np.testing.assert_array_equal(load_minari(path).obs[0], flat)
    chosen = load_minari(path, obs_keys=["observation", "desired"])
    np.testing.assert_array_equal(chosen.next_obs, [[3, 4, 8]])


def test_discrete_minari_actions(tmp_path):
    one = np.ones(2, bool)
    item = Episode(np.zeros((3, 1), np.float32), np.array([2, 1]), np.ones(2), ~one, ~one)
    path = write(tmp_path / "data-v0", [item], action_space=gymnasium.spaces.Discrete(3))
    data = load_minari(path)
    np.testing.assert_array_equal(data.action, [[2], [1]])
    np.testing.assert_array_equal(data.last, [False, True])


def test_minari_values_that_float32_merges_are_told(tmp_path):
    """Metres north, of which half ones are kept."""
    for name, offset in ("far", 5_812_345.0), ("near", 0.0):
        moved = list(episodes([30, 20], np.float64))
        for one in moved:
            one.observations[:] = offset + 0.1 * np.arange(len(one.observations))[:, None]
        box = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
        data = load_minari(write(tmp_path / f"{name}-v0", iter(moved), box))
        assert data.provenance.get("rounded") == ({"": [0]} if offset else None)
