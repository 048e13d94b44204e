"""The ways through AntMaze on which its data is collected, as in D4RL."""

import tempfile

import numpy as np
import pytest
import torch

import offlinerl.envs.ant
from offlinerl.agents import checkpoint
from offlinerl.agents.sac import SAC
from offlinerl.data.episode import Episode
from offlinerl.data.registry import resolve
from offlinerl.envs.make import make, specification
from offlinerl.envs.mazes import MAZES
from offlinerl.envs.pool import Pool
from offlinerl.recipes.antmaze import Navigator, cell_of, collecting, direction, next_cells, relabelled
from offlinerl.rollout.loop import EnvironmentLoop
from offlinerl.rollout.policy import Policy
from offlinerl.types import Spec
from offlinerl.util.paths import share


def test_the_way_through_the_umaze():
    onwards = next_cells(MAZES["umaze"], (3, 1))
    way = [(1, 1)]
    while way[-1] != (3, 1):
        way.append(onwards[way[-1]])
    assert way == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]


def test_the_way_is_a_shortest_path():
    """Medium maze: the way from (1, 1) to (6, 6) by hand; from every cell, each step leads one cell closer."""
    onwards = next_cells(MAZES["medium"], (6, 6))

    def steps(cell):
        count = 0
        while cell != (6, 6):
            cell, count = onwards[cell], count + 1
        return count

    assert steps((1, 1)) == 10 and steps((2, 6)) == 8 and steps((6, 5)) == 1
    for row, column in MAZES["medium"].free:
        beside = {(row, column - 1), (row, column + 1), (row + 1, column), (row - 1, column)} & set(
            MAZES["medium"].free
        )
        if (row, column) != (6, 6):
            assert steps((row, column)) == 1 + min(map(steps, beside))


def test_a_cell_extends_from_its_centre_to_the_next_one():
    umaze = MAZES["umaze"]
    for xy, cell in {
        (0.1, 0.1): (1, 1),
        (3.9, 0): (1, 1),
        (4.1, 0): (1, 2),
        (8.1, 3.9): (1, 3),
        (8.1, 4.1): (2, 3),
    }.items():
        assert cell_of(umaze, np.array(xy)) == cell
    assert cell_of(umaze, np.array([-1.0, -1.0])) == (1, 1)
    assert cell_of(umaze, np.array([4.1, 7.0])) == (3, 2)  # and not in the wall below


@pytest.mark.parametrize("name", MAZES)
def test_a_point_that_follows_the_waypoints_reaches_every_cell(name):
    maze, rng = MAZES[name], np.random.default_rng(0)

    def inside(xy):
        """Whether a square of 0.6 m there touches no wall."""
        corners = [(xy[0] + x, xy[1] + y) for x in (-0.3, 0.3) for y in (-0.3, 0.3)]
        return all(maze.rows[round(y / 4) + 1][round(x / 4) + 1] != "#" for x, y in corners)

    for start in maze.free:
        for goal_cell in maze.free[:: len(maze.free) // 6]:
            xy, goal = maze.centre(start) + rng.uniform(0, 1, 2), maze.centre(goal_cell) + rng.uniform(0, 1, 2)
            for _ in range(800):
                if np.linalg.norm(xy - goal) <= 0.5:
                    break
                move = 0.3 * direction(maze, xy, goal, rng.uniform(0, 1, 2))
                for part in (move * [1, 0], move * [0, 1]):  # it slides along walls
                    xy = xy + part if inside(xy + part) else xy
            assert np.linalg.norm(xy - goal) <= 0.5, (start, goal_cell, xy)


class Recorder(Policy):
    """Records its observations and does nothing."""

    def __init__(self):
        self.seen = []

    def begin(self, where, episodes):
        self.begun = episodes.copy()

    def act(self, obs, explore=False):
        self.seen.append((obs, explore))
        return torch.zeros(*obs.shape[:2], 8)


def played(walker, steps=40, lanes=3, **settings):
    env = collecting("medium-play")
    pool = Pool(env, lanes)
    navigator = Navigator(walker, pool.envs, **settings)
    loop = EnvironmentLoop(pool, 1, lambda s, e, episode: 10 + e)
    loop.begin(np.ones((1, lanes), bool), np.zeros((1, lanes), int), navigator)
    return [loop.step(navigator) for _ in range(steps)], pool


def test_the_walker_sees_the_ant_and_a_direction():
    walker = Recorder()
    steps, pool = played(walker)
    assert walker.begun.tolist() == [[0, 0, 0]]
    for step, (obs, explore) in zip(steps, walker.seen, strict=True):
        assert obs.shape == (1, 3, 29) and obs.dtype == torch.float32 and explore
        np.testing.assert_array_equal(obs[..., :27], step.obs[..., 2:])
        np.testing.assert_allclose(obs[..., 27:].norm(dim=-1), 1, rtol=1e-5)
    ways = torch.stack([obs[0, 0, 27:] for obs, _ in walker.seen])
    assert len(ways.unique(dim=0)) == len(ways)  # the waypoint's offset is drawn in every step
    noise = np.stack([step.action for step in steps])
    assert abs(noise.std() - 0.2) < 0.02 and np.abs(noise).max() <= 1
    for env in pool.envs:
        env = env.unwrapped
        assert tuple(env.maze.cells("g")) == ((6, 6),) and env.continuing_task


def test_in_an_environment_without_an_episode_the_ant_gets_no_direction():
    """For example, after a kill, all episodes of an environment may already be in the journal."""
    pool = Pool(collecting("medium-play"), 2)
    navigator = Navigator(Recorder(), pool.envs)
    loop = EnvironmentLoop(pool, 1, lambda s, e, episode: 10 + e)
    loop.begin(np.array([[False, True]]), np.zeros((1, 2), int), navigator)
    step = loop.step(navigator)
    assert list(step.answers) == [1] and not navigator.walker.seen[0][0][0, 0, 27:].any()


def test_an_episode_depends_on_its_seed_and_not_on_other_environments():
    agent = SAC(Spec(29, 8, (-1.0,) * 8, (1.0,) * 8), seeds=(0,))
    whole, alone = played(agent, 5)[0], played(agent, 5, lanes=1)[0]
    for left, right in zip(whole, alone, strict=True):
        np.testing.assert_allclose(left.action[0, 0], right.action[0, 0], atol=1e-6)


def test_starts_and_goals_of_the_data_are_those_of_d4rl():
    env = make(collecting("medium-play"))
    free = MAZES["medium"].free
    assert env.unwrapped.goals == [(2, 6), (5, 1), (6, 5)]
    assert sorted([*env.unwrapped.starts, *env.unwrapped.goals]) == free
    assert env.spec.max_episode_steps == 1000
    diverse = make(collecting("umaze-diverse")).unwrapped
    assert diverse.starts == diverse.goals == MAZES["umaze"].free
    umaze = make(collecting("umaze"))
    assert umaze.unwrapped.starts is None and umaze.unwrapped.goals == [(3, 1)]
    assert umaze.spec.max_episode_steps == 1000 and resolve("antmaze-umaze-v2").steps_allowed == 700


def test_rewards_depend_on_the_next_position():
    obs = np.zeros((6, 29), np.float32)
    obs[:, 0] = [0, 1, 2, 3, 4, 5]
    none = np.zeros(5, bool)
    episode = Episode(obs, np.zeros((5, 8), np.float32), np.zeros(5, np.float32), none, np.arange(5) == 4)
    again = relabelled(episode, np.array([2.4, 0]))
    assert again.rewards.tolist() == [0, 1, 0, 0, 0] and again.rewards.dtype == np.float32
    assert again.terminations.tolist() == [False, True, False, False, False]
    assert again.truncations.tolist() == [False] * 4 + [True] and not episode.terminations.any()


def test_the_shipped_ant_reaches_goals_eight_metres_away():
    """In an open space, with the noise of the data collection: at least 80% of the goals within 20 s."""
    ant = offlinerl.envs.ant.AntDirection()
    walker = checkpoint.load_agent(share("datasets", "policies", "ant-direction.safetensors"))
    rng, reached, goals = np.random.default_rng(0), 0, 12
    for number in range(goals):
        obs, _ = ant.reset(seed=number)
        walker.begin(np.ones((1, 1), bool), np.full((1, 1), number))
        angle = rng.uniform(0, 2 * np.pi)
        goal = ant.data.qpos[:2] + 8 * np.array([np.cos(angle), np.sin(angle)])
        for _ in range(200):
            way = goal - ant.data.qpos[:2]
            if np.linalg.norm(way) <= 0.5:
                reached += 1
                break
            obs[-2:] = way / np.linalg.norm(way)
            with torch.no_grad():
                action = walker.act(torch.from_numpy(obs)[None, None], explore=True)[0, 0].numpy()
            obs, *_ = ant.step(np.clip(action + rng.normal(0, 0.2, 8), -1, 1))
    assert reached >= 0.8 * goals


def test_a_maze_of_gymnasium_robotics_leaves_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    env = make({"id": "PointMaze_UMaze-v3"})
    env.reset(seed=0)
    env.close()
    make({"spec": specification(env)}).close()
    assert not [*tmp_path.iterdir()]
