"""A robot arm that plays, as OGBench made its data."""

from functools import cache

import gymnasium as gym
import numpy as np
import pytest
import yaml

from offlinerl.cli import main
from offlinerl.data.arrays import from_arrays
from offlinerl.data.episode import Episode
from offlinerl.data.journal import Journal
from offlinerl.data.load import load
from offlinerl.data.registry import entry
from offlinerl.envs.make import make
from offlinerl.recipes import rollouts
from offlinerl.recipes.manipulation import relabelled
from offlinerl.recipes.recipe import read
from offlinerl.training.tasks import dataset_score

relabel_utils = pytest.importorskip("ogbench.relabel_utils", reason="the extra `manipulation` is not installed")

SCENES = "cube-single", "scene", "puzzle-3x3"


@cache
def judged(scene):
    """The environment of an evaluation, after a reset."""
    env = make(entry(scene).env)
    env.reset(seed=0)
    return env.unwrapped


def played(scene, lanes, path, steps=1, length=120):
    """Short episodes of a recipe, from a journal that may have some of them."""
    recipe = dict(read(scene))
    recipe["env"] = {**recipe["env"], "max_episode_steps": length}
    recipe.pop("goal")
    with Journal(path) as journal:
        rollouts.play(recipe, lanes, steps, journal, lambda: True)
        return [journal[place] for place in rollouts.order(recipe, lanes, journal)]


@pytest.mark.parametrize("scene", SCENES)
def test_the_goal_is_that_of_ogbenchs_default_task(scene):
    default = gym.make(f"ogbench:{scene}-singletask-v0", disable_env_checker=True).unwrapped
    env, goal = judged(scene), read(scene)["goal"]
    assert env.cur_task_id == default._reward_task_id
    if "cubes" in goal:
        assert np.array_equal(env._data.mocap_pos[: len(goal["cubes"])], goal["cubes"])
    if "buttons" in goal:
        assert env._target_button_states.tolist() == goal["buttons"]
    if scene == "scene":
        assert (env._target_drawer_pos, env._target_window_pos) == (goal["drawer"], goal["window"])


@pytest.mark.parametrize("scene", SCENES)
def test_rewards_are_those_that_ogbench_gives_its_data(scene):
    """Rewards of states in which each object is or is not at its target."""
    env, goal, rng = judged(scene), read(scene)["goal"], np.random.default_rng(0)
    shown, inner = [], []
    for _ in range(40):
        near = rng.choice([0.0, 0.03, 0.05], 3)
        for i, place in enumerate(goal.get("cubes", ())):
            env._data.joint(f"object_joint_{i}").qpos[:3] = np.add(place, [0, near[0], 0])
        if "buttons" in goal:
            env._cur_button_states[:] = np.where(rng.random(len(goal["buttons"])) < 0.9, goal["buttons"], 0)
        if scene == "scene":
            env._data.joint("drawer_slide").qpos[0] = goal["drawer"] - near[1]
            env._data.joint("window_slide").qpos[0] = goal["window"] + near[2]
        shown.append(env.compute_observation())
        inner.append((env._data.qpos.copy(), getattr(env, "_cur_button_states", np.zeros(0)).copy()))
    theirs = dict(zip(("qpos", "button_states"), map(np.stack, zip(*inner, strict=True)), strict=True))
    relabel_utils.relabel_dataset(scene, env, theirs)
    none = np.zeros(40, bool)
    episode = Episode(np.float32([*shown, shown[-1]]), np.zeros((40, 5)), np.zeros(40, np.float32), none, none)
    ours = relabelled(episode, goal)
    assert np.array_equal(ours.rewards, theirs["rewards"]) and len(set(ours.rewards.tolist())) > 1
    assert np.array_equal(ours.terminations, theirs["masks"] == 0) and 0 < ours.terminations.sum() < 40


@pytest.mark.slow
def test_an_episode_depends_only_on_its_lane_and_number(tmp_path):
    played("cube-single", (0, 1), tmp_path / "both", length=40)
    again = played("cube-single", (0, 1), tmp_path / "both", steps=80, length=40)  # continue from the journal
    alone = played("cube-single", (1,), tmp_path / "alone", steps=80, length=40)
    assert len(again) == 4 and len(alone) == 2 and again[2].seed == alone[0].seed
    for one, other in zip(again[2:], alone, strict=True):
        assert one.observations.tobytes() == other.observations.tobytes()
        assert one.actions.tobytes() == other.actions.tobytes()
    assert not np.array_equal(again[0].actions, again[2].actions)
    assert abs(again[0].actions).max() <= 1


@pytest.mark.slow
def test_the_robot_moves_objects(tmp_path):
    (cube,) = played("cube-single", (0,), tmp_path / "cube")
    height = cube.observations[:, 21] / 10
    assert height.max() > 0.1 and np.ptp(cube.observations[:, 19:21] / 10, axis=0).max() > 0.05
    (puzzle,) = played("puzzle-3x3", (0,), tmp_path / "puzzle")
    states = puzzle.observations[:, 19:55:4]
    assert (np.diff(states, axis=0) != 0).any(1).sum() >= 2, "two presses in six seconds"


def test_it_is_generated_and_trained_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OFFLINERL_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(read("cube-single")["env"], "max_episode_steps", 50)
    assert main(["datasets", "generate", "cube-single", "--size", "50", "--workers", "1"]) == 0
    data = load("cube-single")
    assert len(data) == 50 and data.obs.shape[1] == 28 and set(data.reward.tolist()) <= {-1.0, 0.0}
    few = ("--updates", "2", "--batch", "8", "--eval-every", "2", "--eval-episodes", "1", "--final-episodes", "1")
    assert main(["fit", "bc", "--dataset", "cube-single", *few, "--out", "run"]) == 0
    assert "precision" not in capsys.readouterr().err
    about = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert about["fit"]["dataset"] == "cube-single"


def test_episodes_of_the_data_succeed_where_a_step_is_terminal():
    """This holds although no reward is above 0."""
    rows = np.arange(6)
    data = from_arrays(
        dict(obs=rows[:, None].astype(np.float32), action=np.zeros((6, 1), np.float32), reward=-1.0 * (rows != 1),
             terminated=rows == 1, truncated=rows % 2 == 1)
    )  # fmt: skip
    assert dataset_score(entry("cube-single"), data) == pytest.approx(100 / 3)


def test_a_missing_extra_is_named(monkeypatch, refused):
    monkeypatch.setattr("offlinerl.envs.make.find_spec", lambda name: None)
    line = refused("fit", "sac", "--env", "ogbench:cube-single-v0")
    assert "pip install 'offlinerl[manipulation]'" in line
