"""D4RL's point and its mazes, compared with Gymnasium-Robotics' point, which has the same physics."""

import h5py
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from pendulum import empty_workplace

import offlinerl
from offlinerl.data.registry import resolve
from offlinerl.envs.make import make
from offlinerl.envs.mazes import walls_of

STEPS = dict(umaze=300, medium=600, large=800)
GOALS = dict(umaze=(1, 1), medium=(6, 6), large=(7, 9))


def maze2d(name="umaze", **kwargs):
    return make({"id": f"offlinerl/Maze2D-{name}-v0", "kwargs": kwargs})


def put(env, xy, velocity=(0.0, 0.0)):
    inner = env.unwrapped
    inner.data.qpos[:], inner.data.qvel[:] = xy, velocity
    mujoco.mj_forward(inner.model, inner.data)


@pytest.mark.parametrize("name, other", [("umaze", "UMaze"), ("medium", "Medium"), ("large", "Large")])
def test_the_point_moves_and_bumps_as_that_of_gymnasium_robotics(name, other):
    ours, theirs = maze2d(name), make({"id": f"PointMaze_{other}-v3"}, observed=False)
    point, maze, rng = theirs.unwrapped.point_env, theirs.unwrapped.maze, np.random.default_rng(0)
    theirs.reset(seed=0)
    origin, data = maze.cell_rowcol_to_xy(np.zeros(2)), ours.unwrapped.data

    def place(xy):
        """A place in our maze, whose x grows with the row, in theirs, where y falls with it."""
        row, column = xy + 0.2
        return origin + (column, -row)

    assert [[kind == "#" for kind in row] for row in ours.unwrapped.maze.rows] == [
        [kind == 1 for kind in row] for row in maze.maze_map
    ]
    bumps = 0
    for episode in range(5):
        ours.reset(seed=episode)
        point.set_state(place(data.qpos), np.array([data.qvel[1], -data.qvel[0]]))
        point.data.qacc_warmstart[:] = 0
        for force in rng.uniform(-1.2, 1.2, (15, 2)).repeat(20, axis=0):
            obs, *_ = ours.step(force)
            point.step(np.array([force[1], -force[0]]))
            bumps += data.ncon > 0
            np.testing.assert_allclose(place(obs[:2]), point.data.qpos, atol=1e-6)
            np.testing.assert_allclose([obs[3], -obs[2]], point.data.qvel, atol=1e-5)
    assert bumps > 200
    ours.close()
    theirs.close()


@pytest.mark.parametrize("name", STEPS)
def test_episodes_start_anywhere_and_end_with_the_time(name):
    env = maze2d(name)
    assert env.spec.max_episode_steps == STEPS[name]
    starts = np.array([env.reset(seed=seed)[0] for seed in range(300)])
    cells = np.rint(starts[:, :2]).astype(int)
    assert {*map(tuple, cells.tolist())} == {*env.unwrapped.maze.free}
    away = starts[:, :2] - cells
    assert np.abs(away).max() <= 0.1 and np.abs(away).max() > 0.09
    assert starts[:, 2:].std() == pytest.approx(0.1, rel=0.1)
    np.testing.assert_array_equal(env.reset(seed=7)[0], starts[7])
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(STEPS[name])]
    assert ends[-1] == (False, True) and not any(any(end) for end in ends[:-1])
    env.close()


@pytest.mark.parametrize("name", STEPS)
def test_rewards_are_those_at_the_new_place(name):
    sparse, dense = maze2d(name), maze2d(name, dense=True)
    for env in (sparse, dense):
        env.reset(seed=0)
    for away in (0.0, 0.1, 0.45):  # towards free cells in all three mazes
        for env in (sparse, dense):
            put(env, np.array(GOALS[name]) - (0.0, -away) if name == "umaze" else np.array(GOALS[name]) - (away, 0.0))
        (obs, reward, _, _, info), (_, graded, *_) = (env.step(np.zeros(2)) for env in (sparse, dense))
        distance = np.linalg.norm(obs[:2] - GOALS[name])
        assert distance == pytest.approx(away, abs=1e-3)
        assert reward == 1 and info["success"] and graded == pytest.approx(np.exp(-distance), rel=1e-5)
    put(sparse, np.array(GOALS[name]) + ((0.0, 0.52) if name == "umaze" else (-0.52, 0.0)))
    assert sparse.step(np.zeros(2))[1] == 0
    put(sparse, (1, 1), (80.0, 0.0))
    assert sparse.step(np.zeros(2))[0][2] <= 5  # velocities are clipped before a step
    check_env(dense.unwrapped, skip_render_check=True)
    sparse.close()
    dense.close()


def test_walls_are_around_the_cells():
    centres, width = walls_of(maze2d())
    assert width == 1 and len(centres) == 25 - 7
    np.testing.assert_allclose(centres[0], (-0.2, -0.2))
    with pytest.raises(ValueError, match="there is no maze 'open'; known: umaze, medium, large"):
        offlinerl.envs.maze2d.Maze2D("open")


def test_a_file_of_d4rl_trains_and_is_scored_as_d4rl_does(tmp_path):
    env, rng, rows = maze2d(), np.random.default_rng(0), []
    obs, _ = env.reset(seed=0)
    for _ in range(400):
        action = rng.uniform(-1, 1, 2).astype(np.float32)
        rows.append((obs, action, float(np.linalg.norm(obs[:2] - GOALS["umaze"]) <= 0.5)))
        obs, *_ = env.step(action)
    names = ("observations", "actions", "rewards")
    columns = {name: np.array(column, np.float32) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    ends = np.isin(np.arange(400), (90, 395))  # 305 steps, more than the environment allows
    with empty_workplace(tmp_path), h5py.File("maze2d-umaze-v1.hdf5", "w") as file:
        for name, column in dict(columns, terminals=np.zeros(400, bool), timeouts=ends).items():
            file[name] = column
        file.close()
        entry = resolve("maze2d-umaze-v1.hdf5")
        assert entry.score_of(161.86) == pytest.approx(100) and entry.max_episode_steps == 300
        run = offlinerl.fit(
            "bc", "maze2d-umaze-v1.hdf5", updates=2, batch=8, hidden=[8], compile=False, eval_episodes=1,
            final_episodes=2,
        )  # fmt: skip
        assert run.summary["env"] == "offlinerl/Maze2D-umaze-v0" and run.summary["score_kind"] == "normalized"
        given = offlinerl.fit("bc", "maze2d-umaze-v1.hdf5", score_range=(0, 300), updates=2, batch=8, compile=False)
        dense = offlinerl.evaluate(given, env="maze2d-umaze-dense-v1", episodes=1)  # which has references of its own
        assert given.summary["score_kind"] == "given" and dense["score_kind"] == "normalized"
        assert run.table["score"] == pytest.approx((run.table["return"] - 23.85) / (161.86 - 23.85) * 100)
