"""The Kitchen environment against D4RL's data, its demonstrator, and the built-in dataset made from both."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import h5py
import mujoco
import numpy as np
import pytest

from offlinerl.data import registry
from offlinerl.data.episode import Episode
from offlinerl.envs.kitchen import ENV_ID, TASKS, Kitchen, register
from offlinerl.recipes.demonstrator import KitchenDemonstrator
from offlinerl.recipes.kitchen import episode as demonstration
from offlinerl.recipes.recipe import read
from offlinerl.util.errors import UserError
from offlinerl.util.paths import share

REAL = Path(__file__).parents[2] / "shared" / "data" / "kitchen-complete-v0.hdf5"
BUILT_IN = share("datasets", "kitchen", "data")

needs_real_data = pytest.mark.skipif(not REAL.is_file(), reason="D4RL's kitchen-complete-v0 is not at hand")


@pytest.fixture
def kitchen():
    env = Kitchen()
    yield env
    env.close()


@pytest.fixture(scope="module")
def real():
    with h5py.File(REAL) as file:
        return {key: file[key][:] for key in ("observations", "actions", "terminals")}


@pytest.fixture(scope="module")
def built_in():
    with h5py.File(BUILT_IN / "main_data.hdf5") as file:
        names = ("observations", "actions", "rewards", "terminations", "truncations")
        episodes = sorted(file, key=lambda key: int(key.split("_")[1]))
        return [Episode(*(file[key][name][:] for name in names)) for key in episodes]


def rollout(env, seed, steps=15, action_seed=0):
    rng = np.random.default_rng(action_seed)
    rows = [env.reset(seed=seed)[0]]
    rows += [env.step(rng.uniform(-1, 1, 9).astype(np.float32))[0] for _ in range(steps)]
    return np.stack(rows)


def demonstrate(env, order, seed=0, noise=0.0):
    env.reset(seed=seed)
    demonstrator = KitchenDemonstrator(env, order, noise, np.random.default_rng(seed))
    steps = []
    while not demonstrator.finished and len(steps) < 280:
        _, reward, terminated, _, info = env.step(demonstrator.act())
        steps.append((reward, info))
        if terminated:
            break
    return steps, terminated


@needs_real_data
def test_observation_is_laid_out_as_in_the_real_data(real):
    env = Kitchen(noise=0)
    env.reset(seed=0)
    row = real["observations"][120]  # in the middle of an episode, where all joints differ
    env.data.qpos[:] = row[:30]
    mujoco.mj_forward(env.model, env.data)
    franka = env.franka
    np.testing.assert_allclose(env._observation(franka._get_obs(franka.robot_env._get_obs())), row, atol=1e-6)


@needs_real_data
def test_noise_has_the_size_of_the_real_data_on_every_joint(real, kitchen):
    """The objects start at rest, so their first readings differ only by noise."""
    starts = np.flatnonzero(np.concatenate([[True], real["terminals"][:-1] > 0]))
    theirs = real["observations"][starts, 9:30]
    ours = np.stack([kitchen.reset(seed=seed)[0][9:30] for seed in range(len(starts))])
    assert np.all(np.abs(np.log2(ours.std(0) / theirs.std(0))) < 1)


@needs_real_data
def test_real_actions_complete_tasks_and_each_is_rewarded_once(real):
    env = Kitchen(noise=0)
    env.reset(seed=0)
    rewards, infos = [], []
    for action in real["actions"][: int(np.argmax(real["terminals"])) + 1]:
        _, reward, terminated, _, info = env.step(action)
        rewards.append(reward)
        infos.append(info)
        if terminated:
            break
    assert {"microwave", "kettle"} <= set(infos[-1]["completed"])
    assert sum(rewards) == len(infos[-1]["completed"])
    assert [len(info["completed"]) for info in infos] == list(np.cumsum(rewards))


def test_the_goal_holds_exactly_the_requested_tasks():
    goal = Kitchen(["light switch"]).goal
    assert np.flatnonzero(goal).tolist() == [17, 18]
    np.testing.assert_allclose(goal[17:19], [-0.69, -0.05])
    with pytest.raises(ValueError, match="dishes"):
        Kitchen(["dishes"])


def test_a_seed_decides_an_episode(kitchen):
    again = Kitchen()
    kitchen.reset(seed=7)  # earlier episodes must not matter
    np.testing.assert_array_equal(rollout(kitchen, 3), rollout(again, 3))
    assert not np.array_equal(rollout(kitchen, 3), rollout(kitchen, 4))


def test_several_threads_step_like_one(kitchen):
    serial = [rollout(kitchen, seed, 30, seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda seed: rollout(Kitchen(), seed, 30, seed), range(4)))
    np.testing.assert_array_equal(serial, threaded)


def test_actions_beyond_the_bounds_are_clipped(kitchen):
    kitchen.reset(seed=0)
    far = kitchen.step(np.full(9, 5, np.float32))[0]
    kitchen.reset(seed=0)
    np.testing.assert_array_equal(far, kitchen.step(np.ones(9, np.float32))[0])


@pytest.mark.parametrize("order", [TASKS, TASKS[::-1]])
def test_the_demonstrator_completes_all_four(kitchen, order):
    steps, terminated = demonstrate(kitchen, order)
    rewards, infos = zip(*steps, strict=True)
    assert sum(rewards) == 4 and rewards[-1] == 1 and terminated
    assert infos[-1] == {"completed": TASKS, "success": True}
    assert infos[0] == {"completed": (), "success": False}  # a copy, because the simulator keeps extending its list


def test_an_episode_ends_when_the_requested_tasks_are_complete():
    env = Kitchen(["bottom burner"])
    steps, terminated = demonstrate(env, ["bottom burner"])
    assert terminated and sum(reward for reward, _ in steps) == 1 and steps[-1][1]["success"]


def test_the_demonstrator_refuses_unknown_tasks(kitchen):
    kitchen.reset(seed=0)
    with pytest.raises(ValueError, match="dishes"):
        KitchenDemonstrator(kitchen, ["kettle", "dishes"])


def test_the_registered_environment_has_d4rls_time_limit():
    register()
    env = gym.make(ENV_ID)
    assert env.spec.max_episode_steps == 280
    assert env.observation_space.contains(env.reset(seed=0)[0])


def test_the_built_in_dataset_is_of_mixed_quality(built_in):
    scores = np.array([100 * episode.rewards.sum() / 4 for episode in built_in])
    assert len(built_in) == read("kitchen")["episodes"]
    assert 40 <= scores.mean() <= 55
    assert (scores == 100).mean() > 0.15 and (scores <= 25).mean() > 0.15
    for episode in built_in:
        steps = len(episode.rewards)
        assert episode.observations.shape == (steps + 1, 60) and episode.actions.shape == (steps, 9)
        assert episode.observations.dtype == episode.actions.dtype == np.float32
        assert np.abs(episode.actions).max() <= 1
        assert episode.terminations[-1] == (episode.rewards.sum() == 4) != episode.truncations[-1]
        assert not episode.terminations[:-1].any() and not episode.truncations[:-1].any()


def test_the_built_in_dataset_is_small_and_minari_reads_it(built_in):
    minari = pytest.importorskip("minari")
    assert sum(file.stat().st_size for file in BUILT_IN.iterdir()) <= 6_000_000
    dataset = minari.MinariDataset(BUILT_IN)
    assert dataset.id == "offlinerl/kitchen-v0" and dataset.total_episodes == len(built_in)
    assert dataset.env_spec.id == ENV_ID
    np.testing.assert_array_equal(dataset[1].observations, built_in[1].observations)


def test_each_episode_can_be_generated_again_alone(built_in):
    """Bit for bit on one platform. Others round differently, and contacts amplify this."""
    numbers = np.argsort([len(episode.rewards) for episode in built_in])[[0, 20]].tolist()
    made = [demonstration(read("kitchen"), number) for number in numbers]
    for number, episode in zip(numbers, made, strict=True):
        for ours, theirs in zip(episode[:3], built_in[number][:3], strict=True):
            np.testing.assert_allclose(ours[:25], theirs[:25], atol=1e-5)
        assert episode.rewards.sum() == built_in[number].rewards.sum()
    again = demonstration(read("kitchen"), numbers[0])
    for one, other in zip(again[:5], made[0][:5], strict=True):
        np.testing.assert_array_equal(one, other)


def test_d4rls_three_kinds_of_data_have_recipes():
    """Their demonstrations hold all four tasks in order: always, in some of the episodes, and never."""
    shares = {}
    for kind in ("complete", "partial", "mixed"):
        recipe, wanted = read(f"kitchen-{kind}"), registry.entry(f"kitchen-{kind}").env["kwargs"]["tasks"]
        orders = recipe["orders"]
        whole = [order["weight"] for order in orders if set(wanted) <= set(order["value"])]
        assert all(len(order["value"]) == 4 for order in orders)
        assert [order["value"] for order in orders if set(wanted) <= set(order["value"])] in ([], [wanted])
        shares[kind] = sum(whole) / sum(order["weight"] for order in orders)
    assert shares == dict(complete=1, partial=0.2, mixed=0)
    episode = demonstration(read("kitchen-mixed"), 0)
    assert 2 <= episode.rewards.sum() <= 3 and episode.truncations[-1] and not episode.terminations.any()


def test_an_unknown_recipe_is_named():
    with pytest.raises(UserError, match="there is no recipe porridge; there are: .*kitchen"):
        read("porridge")
