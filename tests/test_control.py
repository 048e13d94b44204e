"""Our environments of the DeepMind Control Suite, compared with dm_control itself."""

import math
import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from offlinerl.data.registry import Entry
from offlinerl.envs import control
from offlinerl.envs.make import make, spec_of, steps_allowed, with_limits
from offlinerl.util.errors import UserError

CHEETAH = "dm_control/cheetah-run-v0"


@pytest.fixture
def suite():
    pytest.importorskip("dm_control", reason="dm_control is not installed")
    return control.load()


def actions(env, count, seed=0):
    rng = np.random.default_rng(seed)
    space = env.action_space
    return rng.uniform(space.low, space.high, (count, *space.shape)).astype(np.float32)


def rollout(env, steps=20, **reset):
    rows = [env.reset(**reset)[0]]
    rows += [env.step(action)[0] for action in actions(env, steps)]
    return np.stack(rows)


def test_every_task_of_the_suite_is_registered_but_lqr(suite):
    ours = {(domain, task) for domain, tasks in control.TASKS.items() for task in tasks}
    assert ours == {pair for pair in suite.ALL_TASKS if pair[0] != "lqr"}
    assert {f"dm_control/{domain}-{task}-v0" for domain, task in ours} <= set(gym.registry)


@pytest.mark.parametrize(
    "domain, task",
    [
        ("cheetah", "run"),
        ("hopper", "hop"),
        ("walker", "run"),
        ("ball_in_cup", "catch"),
        ("quadruped", "run"),  # bounds that float32 cannot hold
        ("manipulator", "bring_ball"),  # an array of two dimensions
        ("finger", "turn_hard"),  # numbers, and a target that the seed moves
    ],
)
def test_observations_and_rewards_are_those_of_the_suite(suite, domain, task):
    env = gym.make(f"dm_control/{domain}-{task}-v0")
    raw = suite.load(domain, task, task_kwargs={"random": 5})

    def flat(now):
        return np.concatenate([np.asarray(part, np.float32).ravel() for part in now.observation.values()])

    env.reset(seed=6)  # earlier episodes must not matter
    np.testing.assert_array_equal(env.reset(seed=5)[0], flat(raw.reset()))
    for action in actions(env, 40):
        observation, reward, terminated, truncated, _ = env.step(action)
        now = raw.step(action)
        np.testing.assert_array_equal(observation, flat(now))
        assert reward == now.reward and isinstance(reward, float)
        assert env.observation_space.contains(observation) and not terminated and not truncated
    assert env.action_space.dtype == np.float32
    np.testing.assert_allclose(env.action_space.high, raw.action_spec().maximum)
    np.testing.assert_allclose(env.action_space.low, raw.action_spec().minimum)


def test_an_episode_is_truncated_after_1000_steps_and_not_terminated(suite):
    env = gym.make("dm_control/cartpole-balance-v0")
    env.reset(seed=0)
    flags = [env.step(action)[2:4] for action in actions(env, 1000)]
    assert flags == [(False, False)] * 999 + [(False, True)]
    assert env.spec.max_episode_steps == 1000
    with pytest.raises(gym.error.ResetNeeded):
        env.step(env.action_space.sample())


@pytest.mark.parametrize("step, repeat", [(7, 1), (1000, 1), (6, 4), (8, 4)])
def test_a_discount_of_0_terminates_unless_the_time_limit_truncates(suite, monkeypatch, step, repeat):
    env = gym.make("dm_control/cartpole-balance-v0", action_repeat=repeat)
    task, physics = env.unwrapped.control.task, env.unwrapped.control.physics
    monkeypatch.setattr(task, "get_termination", lambda _: 0.0 if physics.time() > (step - 0.5) * 0.01 else None)
    env.reset(seed=0)
    flags = []
    while not flags or not any(flags[-1]):
        flags.append(env.step(np.zeros(1, np.float32))[2:4])
    assert len(flags) == math.ceil(step / repeat)
    assert flags[-1] == ((False, True) if step == 1000 else (True, False))


def test_an_action_is_repeated_and_its_rewards_are_summed(suite):
    once, thrice = (gym.make("dm_control/cartpole-swingup-v0", action_repeat=repeat) for repeat in (1, 3))
    once.reset(seed=1)
    thrice.reset(seed=1)
    steps = 0
    for action in actions(thrice, 334):
        observation, reward, _, truncated, _ = thrice.step(action)
        held = [once.step(action) for _ in range(min(3, 1000 - steps))]
        steps += len(held)
        np.testing.assert_array_equal(observation, held[-1][0])
        assert reward == sum(row[1] for row in held)
        assert truncated == (steps == 1000) == held[-1][3]
    assert thrice.spec.max_episode_steps == 334
    assert thrice.metadata["render_fps"] == pytest.approx(100 / 3)
    assert gym.make(thrice.spec).unwrapped.action_repeat == 3


def test_a_shorter_time_limit_can_be_set(suite):
    env = gym.make(CHEETAH, max_episode_steps=2)
    env.reset(seed=0)
    assert [env.step(action)[2:4] for action in actions(env, 2)] == [(False, False), (False, True)]
    assert env.spec.max_episode_steps == 2


@pytest.mark.parametrize("name", ["cheetah-run", "humanoid-stand", "swimmer-swimmer6", "point_mass-hard"])
def test_a_seed_decides_an_episode(suite, name):
    env, again = (gym.make(f"dm_control/{name}-v0") for _ in range(2))
    rollout(env, seed=7)  # earlier episodes must not matter
    first, following = rollout(env, seed=3), rollout(env)
    np.testing.assert_array_equal(first, rollout(again, seed=3))
    np.testing.assert_array_equal(following, rollout(again))
    assert not np.array_equal(first, following)
    assert not np.array_equal(first, rollout(env, seed=4))


@pytest.mark.filterwarnings("ignore:.*A Box observation space .* value is", "ignore:.*For Box action spaces")
@pytest.mark.parametrize("name", ["cheetah-run", "quadruped-walk", "fish-swim"])
def test_gymnasiums_checker_finds_no_fault(suite, name):
    check_env(gym.make(f"dm_control/{name}-v0").unwrapped, skip_render_check=True)


def test_the_package_makes_a_task_and_knows_its_shapes(suite):
    env = make({"id": CHEETAH, "kwargs": {"action_repeat": 2}})
    assert env.spec.max_episode_steps == 500
    assert (spec_of(env).obs_dim, spec_of(env).action_dim) == (17, 6)
    for repeat in (0, 1.5):
        with pytest.raises(UserError, match="action_repeat must be a whole number of at least 1, not"):
            make({"id": CHEETAH, "kwargs": {"action_repeat": repeat}})


def test_without_rendering_there_is_no_image(suite):
    env = gym.make(CHEETAH).unwrapped
    env.reset(seed=0)
    assert env.render() is None
    env.close()


RENDER = f"""
import gymnasium, offlinerl.envs
env = gymnasium.make("{CHEETAH}", render_mode="rgb_array", height=48, width=64, camera_id="side")
env.reset(seed=0)
image = env.render()
assert image.shape == (48, 64, 3) and image.dtype == "uint8" and image.std() > 1, image
assert env.metadata["render_fps"] == 100
env.close()
"""


def test_an_image_has_the_size_asked_for(suite):
    """In a separate process, because the first import of dm_control fixes the renderer of the whole process."""
    for backend in ("egl", "osmesa"):
        environment = {**os.environ, "MUJOCO_GL": backend}
        done = subprocess.run([sys.executable, "-c", RENDER], env=environment, capture_output=True, text=True)
        if done.returncode == 0:
            return
        assert "AssertionError" not in done.stderr, done.stderr
    pytest.skip("neither EGL nor OSMesa draws here")


def test_registering_does_not_import_the_simulator():
    code = "import sys, offlinerl.envs, gymnasium; gymnasium.spec(sys.argv[1]); print('dm_control' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, CHEETAH], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_longest_episode_is_known_without_the_simulator(monkeypatch):
    monkeypatch.setitem(sys.modules, "dm_control", None)
    assert steps_allowed({"id": CHEETAH}) == 1000 == steps_allowed({"id": "dm_control/humanoid_CMU-run-v0"})
    assert steps_allowed({"id": CHEETAH, "kwargs": {"action_repeat": 3}}) == 334
    assert steps_allowed({"id": "dm_control/manipulation-reach_duplo-v0"}) == 250
    assert steps_allowed({"id": "dm_control/lqr-lqr_2_1-v0"}) is None


@pytest.mark.parametrize(
    ("env", "limits", "steps"),
    [("Hopper-v5", {}, 500), (CHEETAH, {}, 500), (CHEETAH, {"max_episode_steps": 7}, 4), ("MountainCar-v0", {}, 100)],
)
def test_a_repeated_action_counts_as_one_step(env, limits, steps):
    drawn = with_limits({"id": env}, {"pixels": True, **limits})
    assert steps_allowed(drawn) == Entry("some", {}, drawn).steps_allowed == steps


def test_without_dm_control_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dm_control", None)
    with pytest.raises(UserError) as error:
        make({"id": CHEETAH})
    assert str(error.value) == (
        f"environment {CHEETAH} cannot be made: the DeepMind Control Suite is not installed; "
        "pip install 'offlinerl[pixels]'"
    )


@pytest.mark.slow
def test_every_task_has_the_documented_length_and_range_of_rewards(suite):
    for domain, task in suite.ALL_TASKS:
        if domain == "lqr" or task == "escape":  # escape needs OpenGL
            continue
        env = control.Control(domain, task)
        first = rollout(env, seed=3)
        rewards, over = [], False
        while not over:
            observation, reward, terminated, over, _ = env.step(env.action_space.sample())
            assert not terminated and env.observation_space.contains(observation)
            rewards.append(reward)
        assert len(rewards) == control.EPISODE_STEPS - 20
        assert min(rewards) >= 0 and max(rewards) <= 1
        np.testing.assert_array_equal(rollout(env, seed=3), first)
